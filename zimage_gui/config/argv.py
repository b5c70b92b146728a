"""A command line as values of options. This module knows how words stand in an argv list; it must not know
what an option means, nor print anything.

There are no abbreviations; `-` and `_` are alike in names; `--name=value` and `--name value` too. A word
that begins with `--` and a letter is a name, never a value: a prompt that begins so is written
`--prompt=--…`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zimage_gui.config.build import names_of, unknown
from zimage_gui.config.foreign import elsewhere_of, inert_of
from zimage_gui.config.schema import Option, Options, options_of
from zimage_gui.errors import Problem

LAUNCHER = {
    "config_file": "TOML file with options, also as the first word of all. Options given beside it win.",
    "dry_run": "Check everything and print the resolved options as TOML, then stop.",
    "run_folder": "Folder of a run that was prepared already (used by the window).",
    "help": "Show the usual options.",
    "help_all": "Show all options.",
}
"""Words of the command line itself; they are not part of any config."""

_SWITCHES = ("dry_run", "help", "help_all")
_NAME = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?", re.DOTALL)
_BOOLEAN = {"true", "false", "1", "0", "yes", "no", "on", "off"}


@dataclass
class Parsed:
    """given: (name as spelled, raw value), in order, with positional words under their options' names."""

    given: list[tuple[str, object]] = field(default_factory=list)
    config_file: Path | None = None
    run_folder: Path | None = None
    dry_run: bool = False
    help: bool = False
    help_all: bool = False
    problems: list[Problem] = field(default_factory=list)


def parse(cls: type[Options], argv: Sequence[str]) -> Parsed:
    """The words after the command. Nothing is raised: what is wrong stands in `problems`."""
    parsed = Parsed()
    names, words, position = _takes(cls), list(argv), 0
    loose: list[str] = []
    while position < len(words):
        word = words[position]
        position += 1
        if word in ("-h", "-?"):
            word = "--help"
        match = _NAME.fullmatch(word)
        if match is None:
            loose.append(word)
            continue
        spelled, value = match[1], match[2]
        takes = names.get(spelled.replace("-", "_"))
        if takes is None:
            # Its values go with it, so that one wrong name gives one sentence.
            parsed.problems.append(unknown(cls, f"--{spelled}"))
            position += len(_values(words[position:], "list"))
            continue
        values = [] if value is not None else _values(words[position:], takes)
        position += len(values)
        _store(parsed, spelled, takes, [value] if value is not None else values)
    _place(parsed, cls, loose)
    return parsed


def _takes(cls: type[Options]) -> dict[str, str]:
    """Every name -> "switch", "value", "list" or a number of values."""
    names = {name: "switch" if name in _SWITCHES else "value" for name in LAUNCHER}
    foreign = inert_of(cls.command) | elsewhere_of(cls.command)
    names |= {name: entry.takes for name, entry in foreign.items()}
    names |= {name: _option_takes(known, switch) for name, (known, switch) in names_of(cls).items()}
    return names


def _option_takes(known: Option, switched: object) -> str:
    if switched is not None or known.kind == "bool":
        return "switch"
    return "list" if known.many or known.count else "value"


def _values(rest: Sequence[str], takes: str) -> list[str]:
    """The words that belong to the name before them."""
    values: list[str] = []
    for word in rest:
        if _NAME.fullmatch(word) or (takes == "switch" and word.lower() not in _BOOLEAN):
            break
        values.append(word)
        if takes != "list":
            break
    return values


def _store(parsed: Parsed, spelled: str, takes: str, values: list[str]) -> None:
    name = spelled.replace("-", "_")
    if takes == "switch":
        word = values[0].lower() if values else "true"
        if word not in _BOOLEAN:
            remedy = f"Write --{spelled}, or --{spelled} false"
            parsed.problems.append(Problem(f"--{spelled}", word, "takes only true or false", remedy))
            return
        on = word in ("true", "1", "yes", "on")
        if name in _SWITCHES:
            setattr(parsed, name, on)
        else:
            parsed.given.append((spelled, on))
        return
    if not values:
        parsed.problems.append(Problem(f"--{spelled}", "", "needs a value", f"Write --{spelled} VALUE"))
    elif name in ("config_file", "run_folder"):
        setattr(parsed, name, Path(values[0]))
    else:
        parsed.given.append((spelled, values[0] if takes == "value" else tuple(values)))


def _place(parsed: Parsed, cls: type[Options], loose: list[str]) -> None:
    """Words without a name: a TOML, then the command's positional options."""
    if loose and loose[0].lower().endswith(".toml") and parsed.config_file is None:
        parsed.config_file = Path(loose.pop(0))
    if (file := parsed.config_file) is not None and not (
        file.suffix.lower() == ".toml" or (file.suffix and file.is_file())
    ):
        parsed.config_file = file.with_name(file.name + ".toml")
    free = [name for name in cls.positionals if name not in {spelled for spelled, _ in parsed.given}]
    if free and options_of(cls)[free[-1]].many and len(loose) >= len(free):
        first = len(free) - 1
        parsed.given.append((free.pop(), tuple(loose[first:])))
        del loose[first:]
    for name, word in zip(free, loose, strict=False):
        parsed.given.append((name, word))
    for word in loose[len(free) :]:
        rule = f"is a word that {cls.command} does not expect"
        remedy = "Write --option before a value, and quotes around text with spaces"
        if parsed.config_file is not None and word.lower().endswith(".toml"):
            rule, remedy = f"is a second config file beside {parsed.config_file}", "Give only one"
        parsed.problems.append(Problem(word, "", rule, remedy))
