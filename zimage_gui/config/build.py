"""From what was written (options, a TOML, a form) to one frozen config, or to everything wrong with it.

This module knows spellings, order of precedence and the wording of refusals; it must not know where values
came from.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from zimage_gui.config.foreign import elsewhere_of, inert_of
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import Option, Options, options_of, show, tidy
from zimage_gui.errors import Problem, raise_if_any

Config = TypeVar("Config", bound=Options)

RIVALS: dict[str, tuple[str, ...]] = {
    "max_train_steps": ("max_train_epochs",),
    "dataset": ("dataset_config",),
    "dataset_config": ("dataset",),
    "prompt": ("from_file",),
    "from_file": ("prompt",),
    "output": ("output_dir", "output_name", "save_path"),
    "output_dir": ("output",),
    "output_name": ("output",),
    "save_path": ("output",),
    "model_dir": ("dit", "vae", "text_encoder", "tokenizer"),
}
"""Option -> options whose place it takes when they come from an earlier source or are defaults: steps on the
command line would otherwise lose to the epochs of the TOML. Within one source nothing is displaced."""


@dataclass
class Source:
    """Values from one place under their own names, with what was noticed while reading them.

    raw: the same before options that stand for others were replaced; misread: those of the problems that
    come from replacing them.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    misread: list[Problem] = field(default_factory=list)
    base: Path | None = None


def names_of(cls: type[Options]) -> dict[str, tuple[Option, object]]:
    """Every spelling of every option -> (option, the value a bare switch sets; None for names that
    take a value)."""
    names: dict[str, tuple[Option, object]] = {}
    for known in options_of(cls).values():
        names |= {spelling: (known, None) for spelling in known.spellings}
        names |= {switch: (known, value) for switch, value in known.extra.switches.items()}
    return names


def read(cls: type[Options], given: Sequence[tuple[str, object]], base: Path | None) -> Source:
    """Values under any spelling -> values under the options' own names; relative paths made absolute.

    base: folder of the TOML, in which relative paths are looked for first; None: the working directory alone.
    """
    source = Source(base=base)
    names, inert, elsewhere = names_of(cls), inert_of(cls.command), elsewhere_of(cls.command)
    origin: dict[str, str] = {}
    for spelled, value in given:
        name = spelled.strip().replace("-", "_")
        if (rule := _unreadable(value, names[name][0] if name in names else None)) is not None:
            source.problems.append(Problem(name, repr(value), rule, "Write it with other characters"))
        elif name in names:
            _take(source, origin, spelled, value, *names[name])
        elif name in inert:
            if inert[name].takes != "switch" or not _is_off(value):
                source.notes.append(f"{name} does nothing here: {inert[name].reason}.")
        elif name in elsewhere:
            if not elsewhere[name].is_harmless(value):
                shown = "" if value is True else show(value)
                source.problems.append(Problem(name, shown, elsewhere[name].what, elsewhere[name].remedy))
        else:
            source.problems.append(unknown(cls, spelled))
    source.raw = source.values
    source.notes += cls.remarks(source.raw)
    return _expand(cls, source, source.raw)


def _expand(cls: type[Options], source: Source, over_all: Mapping[str, Any]) -> Source:
    """The source with options that stand for others replaced. over_all: what all sources say together: a kind
    of network in a TOML may have its arguments on the command line."""
    options = options_of(cls)
    expanded, misread = cls.expand(dict(source.raw), over_all)
    problems = [problem for problem in source.problems if problem not in source.misread] + misread
    values, notes = {}, list(source.notes)
    for name, value in expanded.items():
        values[name] = resolved = _at(options[name], value, source.base)
        told = source.base is not None and options[name].kind == "path" and resolved
        if told and show(resolved) != show(value) and (note := f"{name}: {show(resolved)}") not in notes:
            notes.append(note)
    return replace(source, values=values, notes=notes, problems=problems, misread=misread)


def _is_off(value: object) -> bool:
    return str(value).strip().lower() in ("false", "0", "no", "off")


def _unreadable(value: object, known: Option | None) -> str | None:
    """Text that can neither be kept in a TOML nor name a file."""
    texts = [
        item for item in (value if isinstance(value, list | tuple) else (value,)) if isinstance(item, str)
    ]
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        return "is not valid Unicode"
    if known is not None and known.kind == "path" and any("\0" in text for text in texts):
        return "must not contain the character NUL"
    return None


def _take(
    source: Source, origin: dict[str, str], spelled: str, value: object, known: Option, switched: object
) -> None:
    if switched is not None:
        if _is_off(value):
            return
        value = switched
    # The same name twice: the last one counts. Two names of one option that disagree: an error.
    if origin.get(known.name, spelled) != spelled and not _same(known, source.values[known.name], value):
        other = f"{origin[known.name]} = {show(source.values[known.name])}"
        rule = f"is the same option as {other} and says otherwise"
        source.problems.append(Problem(spelled, show(value), rule, "Leave out one of the two"))
        return
    origin[known.name] = spelled
    source.values[known.name] = value


def _same(known: Option, one: object, other: object) -> bool:
    """Whether two raw values mean the same: 8 and "8", 2e-4 and "0.0002"."""
    texts = [show(tidy(known, value)).lower() for value in (one, other)]
    try:
        return float(texts[0]) == float(texts[1])
    except ValueError:
        return texts[0] == texts[1]


def unknown(cls: type[Options], spelled: str) -> Problem:
    """The refusal of a name: the command it belongs to, or the nearest known one."""
    name = spelled.strip().removeprefix("--").replace("-", "_")
    others = [
        command
        for command, other in COMMANDS.items()
        if other is not cls
        and (name in names_of(other) or name in elsewhere_of(command) or name in inert_of(command))
    ]
    rule = f"is not an option of {cls.command}"
    if others:
        return Problem(spelled, "", rule, f"It belongs to {', '.join(others)}: leave it out here")
    candidates = [*names_of(cls), *inert_of(cls.command), *elsewhere_of(cls.command)]
    near = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.6)
    remedy = f"Did you mean {near[0]}?" if near else f"zimage-gui {cls.command} --help lists them"
    return Problem(spelled, "", rule, remedy)


def _at(known: Option, value: object, base: Path | None) -> object:
    if known.kind != "path":
        return value
    if isinstance(value, list | tuple):
        return tuple(_at(known, item, base) for item in value)
    if isinstance(value, str) and not value:
        return value
    return absolute(value, base) if isinstance(value, str | Path) else value


def absolute(value: str | Path, base: Path | None) -> Path:
    """Relative to `base` when it exists there, else to the working directory. `~` is the home folder."""
    path = Path(value)
    if str(path).startswith("~"):
        path = Path(os.path.expanduser(path))
    if path.is_absolute() or "\0" in str(path):
        return path
    if base is not None and os.path.lexists(base / path):
        return Path(os.path.normpath(os.path.abspath(base / path)))
    return Path(os.path.abspath(path))


def finish(cls: type[Config], sources: Sequence[Source]) -> Config:
    """One config from all sources, the last one winning. Raises UserError with every problem of
    every source."""
    config, problems = gather(cls, sources)
    raise_if_any(problems)
    return config


def gather(cls: type[Config], sources: Sequence[Source]) -> tuple[Config, list[Problem]]:
    """The same with the problems given back: what is wrong has its default in the config, so that the
    rest can still be looked at."""
    if len([source for source in sources if source.raw]) > 1:
        over_all = {name: value for source in sources for name, value in source.raw.items()}
        sources = [_expand(cls, source, over_all) for source in sources]
    problems = [problem for source in sources for problem in source.problems]
    values: dict[str, Any] = {}
    for source in sources:
        _displace(cls, values, source.values)
        values |= source.values
    for name, known in options_of(cls).items():
        if known.kind == "path":
            values.setdefault(name, _at(known, known.default, None))
    config, wrong = _checked(cls, values)
    problems += wrong
    named = {problem.option for problem in problems}
    problems += [problem for problem in config.problems() if problem.option not in named]
    return config, list(dict.fromkeys(problems))


def each_field(cls: type[Config], values: Mapping[str, object]) -> tuple[Config, list[Problem]]:
    """A config whose options are looked at one by one: what they need together may still be missing. What
    is wrong has its default in it."""
    source = read(cls, list(values.items()), None)
    config, wrong = _checked(cls, source.values)
    return config, [*source.problems, *wrong]


def joined(problems: Sequence[Problem], more: Sequence[Problem]) -> list[Problem]:
    """Problems of two looks: what the first has named, by option or by path, the second need not repeat. An
    option may hold several paths, each with a problem of its own."""
    named = {problem.option for problem in problems}
    values = {problem.value for problem in problems} - {""}
    fresh = (one for one in more if one.value not in values)
    return [*problems, *(one for one in fresh if one.option not in named or os.path.isabs(one.value))]


def _displace(cls: type[Options], values: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Take what `new` replaces out of `values`."""
    options = options_of(cls)
    for name in [name for name in new if _is_given(options.get(name), new[name])]:
        for rival in RIVALS.get(name, ()):
            if rival not in options or rival in new:
                continue
            values.pop(rival, None)
            if options[rival].optional and options[rival].default is not None:
                values[rival] = ""


def _is_given(known: Option | None, value: object) -> bool:
    blank = known is not None and known.extra.blank
    return value not in ((None, ()) if blank else (None, "", ()))


def _checked(cls: type[Config], values: dict[str, Any]) -> tuple[Config, list[Problem]]:
    """A config, with defaults in place of the values that are wrong, and what is wrong with them."""
    try:
        return cls(**values), []
    except ValidationError as error:
        problems = field_problems(cls, error)
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
    rest = {name: value for name, value in values.items() if name not in wrong}
    return cls(**rest), problems


def field_problems(cls: type[Options], error: ValidationError) -> list[Problem]:
    """One sentence per wrong option, from the option's own declaration."""
    problems: dict[str, Problem] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else cls.command
        known = options_of(cls).get(name)
        if known is None:
            problems.setdefault(name, unknown(cls, name))
            continue
        own = item["type"] == "value_error"
        rule = item["msg"].removeprefix("Value error, ") if own else known.rule()
        value = item["input"]
        problems.setdefault(
            name, Problem(name, "" if known.extra.secret else show(value), rule, known.remedy())
        )
    return list(problems.values())


def build(cls: type[Config], values: Mapping[str, object], base: Path | None = None) -> Config:
    """A config from a mapping of options, spelled in any way. Raises UserError with all problems at once."""
    return finish(cls, [read(cls, list(values.items()), base)])
