"""The command line. This module knows how words become a run and how a run becomes an exit code; it must
not know any option, nor how work is done. Whatever is slow to import is imported when it is needed.
"""

from __future__ import annotations

import difflib
import functools
import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from zimage_gui.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER,
    Interrupted,
    UserError,
    raise_if_any,
)

if TYPE_CHECKING:
    from zimage_gui.commands import CommandSpec
    from zimage_gui.config.argv import Parsed
    from zimage_gui.config.schema import Options

PROGRAM = "zimage-gui"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    _speak_utf8()
    # Else pydantic asks every installed package for a plugin, which takes a fifth of `inspect`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _interrupts(_leave):
            return _dispatch(words)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; Python would complain again while closing stdout.
        sys.stdout = io.StringIO()
        return EXIT_FAILED


def _leave(signum: int, frame: object) -> None:
    """Until the work begins there is nothing to save, and an import cut short fails in words of its own."""
    os.write(2, b"Interrupted.\n")
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def _interrupts(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Who gets Ctrl-C meanwhile, unless whoever called us has chosen already."""
    ours = (signal.default_int_handler, signal.SIG_DFL, _leave)
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before not in ours:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _speak_utf8() -> None:
    """Paths and prompts are in any language; a Windows console or a pipe may default to something smaller."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "--help_all", "--help-all", "help"):
        print(_overview())
        return EXIT_DONE
    if words[0] == "--version":
        from zimage_gui import __version__

        print(f"{PROGRAM} {__version__}")
        return EXIT_DONE
    spec = _command(words[0])
    return _run_command(spec, words[1:])


def _overview() -> str:
    from zimage_gui.commands import COMMANDS

    lines = [f"usage: {PROGRAM} COMMAND [CONFIG.toml] [--option value …]", "", "Commands"]
    lines += [f"  {name:<16}{spec.help}" for name, spec in COMMANDS.items()]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help shows the options of a command."])


def _command(word: str) -> CommandSpec:
    from zimage_gui.commands import COMMANDS

    name = word.replace("_", "-")
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    remedy = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(COMMANDS)}"
    raise UserError.one(word, "", "is not a command", remedy)


def _run_command(spec: CommandSpec, words: Sequence[str]) -> int:
    from zimage_gui.config.argv import parse

    parsed = parse(spec.config_class, words)
    if parsed.help or parsed.help_all:
        from zimage_gui.config.help_text import command_help

        width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
        print(command_help(spec.config_class, PROGRAM, width, parsed.help_all), end="")
        return EXIT_DONE
    config = _config(spec, parsed)
    if parsed.dry_run:
        return _dry_run(spec, config)
    if spec.gpu or parsed.run_folder is not None:
        return _run_long(spec, config, parsed.run_folder)
    return _run_short(spec, config)


def _config(spec: CommandSpec, parsed: Parsed) -> Options:
    """The config from TOML and options, checked as far as it can be without the command's own code.

    Only when something is wrong that code is asked too: a person hears of all mistakes at once, and
    nobody waits for torch twice.
    """
    from zimage_gui.config.build import Source, gather, joined, read
    from zimage_gui.config.paths import unusable, with_look

    cls = spec.config_class
    sources = [Source(problems=parsed.problems)]
    if parsed.config_file is not None:
        from zimage_gui.config.toml_io import read_text, source

        folder = parsed.config_file.absolute().parent
        sources.append(source(cls, read_text(parsed.config_file), folder, str(parsed.config_file)))
    sources.append(read(cls, parsed.given, None))
    notes = [note for one in sources for note in one.notes]
    try:
        config, problems = gather(cls, sources)
        # Of a prepared run the window has asked.
        if not problems and parsed.config_file is not None and parsed.run_folder is None:
            _ask_about_code(config, set(sources[-1].values))
        problems, more = with_look(config, problems)
        notes += more
        if problems and parsed.run_folder is None and not unusable(config):
            problems = joined(problems, spec.check(config))
        raise_if_any(problems)
    finally:
        for note in dict.fromkeys(notes):
            print(note, file=sys.stderr)
    return config


def _ask_about_code(config: Options, typed: set[str]) -> None:
    """A class that a TOML names is imported only when a person agrees, or names it on the command line."""
    from zimage_gui.config.trust import foreign_classes

    for option, name in foreign_classes(config).items():
        if option in typed:
            continue
        agreed = False
        if sys.stdin is not None and sys.stdin.isatty():
            print(
                f"The file names {option} = {name}: its code is run. Do you trust it? [y/N] ",
                end="",
                file=sys.stderr,
            )
            sys.stderr.flush()
            agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
        if not agreed:
            remedy = f"If you trust it, add --{option} {name}"
            raise UserError.one(option, name, "comes from a file and would run code of that package", remedy)


def _dry_run(spec: CommandSpec, config: Options) -> int:
    from zimage_gui.config.idle import idle_options
    from zimage_gui.config.toml_io import dump

    raise_if_any(spec.check(config))
    for idle in idle_options(config):
        print(f"Warning: {idle.sentence()}", file=sys.stderr)
    print(dump(config), end="")
    return EXIT_DONE


def _run_long(spec: CommandSpec, config: Options, run_folder: Path | None) -> int:
    """A command with a run folder, so that the window shows it too."""
    from zimage_gui.config.parallel_parts import Parallel, launched_place, processes_of
    from zimage_gui.jobs.beside import run_beside
    from zimage_gui.jobs.here import run_here
    from zimage_gui.jobs.processes import leave_a_core_free
    from zimage_gui.terminal import TerminalView

    place = launched_place()
    if place is not None and place.count > 1 and not isinstance(config, Parallel):
        rule = f"asks for several processes, and {spec.name} runs in one"
        raise UserError.one("WORLD_SIZE", str(place.count), rule, "Start one process")
    leave_a_core_free(processes_of(config))
    if run_folder is None:  # else the window has checked
        raise_if_any(spec.check(config))
    if place is not None and place.rank:
        with _interrupts(signal.default_int_handler):
            return run_beside(spec.load(), config, run_folder or Path.cwd(), place.rank)

    @functools.cache
    def view() -> TerminalView:
        # Made at the first event: from then on console.log gets what these streams print.
        return TerminalView(sys.stdout, sys.stderr)

    # Every command with gpu has the option; another one is run here only in a folder that exists.
    runs_dir = Path(getattr(config, "runs_dir", "runs"))
    listeners = (lambda event: view()(event),)
    with _interrupts(signal.default_int_handler):
        code = run_here(spec, config, runs_dir, run_name(config), listeners, run_folder)
    if getattr(config, "bell", False):
        print("\a", end="", flush=True)
    return code


def run_name(config: Options) -> str:
    """A word by which a person recognises the run among others: its result, else its pictures."""
    for name in ("output", "dataset", "dataset_config"):
        if name == "dataset" and (given := getattr(config, "output_name", "")):
            return str(given)
        path = getattr(config, name, None)
        if isinstance(path, Path):
            return path.stem
    return ""


def _run_short(spec: CommandSpec, config: Options) -> int:
    """A command that leaves nothing but its result."""
    from zimage_gui.config.idle import tell_idle
    from zimage_gui.events import Event
    from zimage_gui.terminal import TerminalView

    view = TerminalView(sys.stdout, sys.stderr)

    class Here:
        folder = Path.cwd()

        def emit(self, event: Event) -> None:
            view(event)

        def stop_requested(self) -> bool:
            return False

    work, here = spec.load(), Here()
    tell_idle(config, here)
    try:
        with _interrupts(signal.default_int_handler):
            work(config, here)
    except Interrupted:
        return EXIT_INTERRUPTED
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        import traceback

        from zimage_gui.jobs.hints import explain

        traceback.print_exc(file=sys.stderr)
        view(explain(error))
        return EXIT_FAILED
    return EXIT_DONE
