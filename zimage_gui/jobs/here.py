"""Knows how to run one command in this process, recorded in a run folder. Knows no command by name.

Both the command line and the detached processes that the window starts come through here.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import zimage_gui
from zimage_gui.config.idle import tell_idle
from zimage_gui.config.parallel_parts import processes_of
from zimage_gui.config.schema import Options
from zimage_gui.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER,
    Interrupted,
    NoMemory,
    ProcessLost,
    UserError,
)
from zimage_gui.events import Failed
from zimage_gui.jobs.companions import companions
from zimage_gui.jobs.console import recorded
from zimage_gui.jobs.folder import Listener, RunFolder
from zimage_gui.jobs.hints import RESUME, explain
from zimage_gui.jobs.reconcile import reconcile
from zimage_gui.jobs.resident import free_the_gpu
from zimage_gui.jobs.stopping import StopSignals

Entry = Callable[[Any, RunFolder], Sequence[Path]]


class Spec(Protocol):
    """What is needed of a command; `zimage_gui.commands.CommandSpec` has it."""

    @property
    def name(self) -> str: ...

    @property
    def gpu(self) -> bool: ...

    def load(self) -> Entry: ...


def run_here(
    spec: Spec,
    config: Options,
    runs_dir: Path,
    name: str = "",
    listeners: Sequence[Listener] = (),
    run_folder: Path | None = None,
) -> int:
    """Run a command to its end in this process; the exit code: 0, 1 failed, 2 user's mistake, 130 Ctrl-C.

    `run_folder` is an existing folder to run in (the window made it); without it a new one is made in
    `runs_dir`. Everything printed also goes to the folder's console.log. `listeners` get every event.
    Raises UserError only when no folder can be had.
    """
    if run_folder is None:
        run = RunFolder.create(runs_dir, spec.name, name, config, gpu=spec.gpu)
        # Putting other runs in order must not keep this one from starting.
        with contextlib.suppress(OSError):
            reconcile(runs_dir)
    else:
        run = RunFolder.open(run_folder)
    with recorded(run.folder, heading(spec.name)):
        signals = StopSignals(
            stopping=lambda: run.stop_noticed,
            last_words=lambda: run.end("stopped", failed=_left_at_once()),
        )
        with signals:
            run.begin(listeners, asked_elsewhere=lambda: signals.asked)
            code = execute(run, lambda: _work(spec, config, run))
            return EXIT_INTERRUPTED if code == EXIT_DONE and signals.asked and run.stop_noticed else code


def execute(run: RunFolder, work: Callable[[], Sequence[Path]]) -> int:
    """Do the work of a run that has begun, end the run accordingly and return the exit code."""
    try:
        results = work()
    except Interrupted:
        run.end("stopped")
        return EXIT_DONE
    except UserError as error:
        run.end("failed", failed=Failed(error_kind="user", message=str(error)))
        return EXIT_USER
    except NoMemory as error:
        failed = Failed(
            error_kind="out_of_memory", message=str(error), hint=error.hint, settings=error.settings
        )
        run.end("failed", failed=failed)
        return EXIT_FAILED
    except ProcessLost as error:
        run.end("failed", failed=Failed(error_kind="ProcessLost", message=str(error), hint=RESUME))
        return EXIT_FAILED
    except KeyboardInterrupt:
        run.end("stopped", failed=_left_at_once())
        return EXIT_INTERRUPTED
    except (Exception, SystemExit) as error:
        failed = explain(error)
        if failed.error_kind != "disk_full":  # no defect: where it was noticed helps nobody
            traceback.print_exc(file=sys.stderr)
        run.end("failed", failed=failed)
        return EXIT_FAILED
    run.end("stopped" if run.stop_noticed else "done", results)
    return EXIT_DONE


def _work(spec: Spec, config: Options, run: RunFolder) -> Sequence[Path]:
    tell_idle(config, run)
    if spec.gpu:
        free_the_gpu(run.folder.parent, run)
    with companions(run, processes_of(config)):
        return spec.load()(config, run)


def _left_at_once() -> Failed:
    return Failed(
        error_kind="interrupted",
        message="Left at once, without saving the last steps.",
        hint=RESUME,
    )


def heading(command: str) -> str:
    """The first line of every console.log, without which a bug report is a riddle."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "(not installed)"
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    versions = f"zimage-gui {zimage_gui.__version__}, torch {torch}, Python {platform.python_version()}"
    return f"{when} {command}: {versions}, {platform.platform()}"
