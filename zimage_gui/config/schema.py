"""How an option is declared, and how its declaration is read back. This module knows types, bounds, names and
sentences; it must not know any particular option, nor who asks (form, command line, TOML, docs).

Every command has one frozen pydantic model derived from `Options`; every field is made with `option(...)`.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from zimage_gui.errors import Problem

Kind = Literal["int", "float", "bool", "text", "choice", "path"]
PathKind = Literal["", "file", "folder", "any", "out_file", "out_folder", "out_any"]
"""What a path must be: an existing file, folder or either; or something that the command writes."""

SECTIONS: dict[str, str] = {
    "models": "Models",
    "dataset": "Dataset",
    "prompt": "Prompt",
    "picture": "Picture",
    "begin": "Begin from a picture",
    "lora": "LoRA",
    "grid": "Grid and comparison",
    "network": "LoRA in detail",
    "length": "Length",
    "optimizer": "Optimizer and learning rate",
    "timesteps": "Timesteps and loss",
    "cache": "Cache",
    "saving": "Saving and resuming",
    "previews": "Pictures during training",
    "validation": "Validation, average, early end",
    "output": "Output",
    "performance": "Memory and speed",
    "metadata": "Metadata in the file",
    "logging": "TensorBoard and Weights & Biases",
    "hub": "Hugging Face",
    "window": "Window",
    "run": "Run",
}
"""Key (the table in a TOML) and title of every section, in the order in which they are shown."""


@dataclass(frozen=True)
class When:
    """When an option has an effect. words: the rest of "Matters when …"; holds: the same asked of a config of
    the option's command, true where files decide that the config does not tell of."""

    words: str
    holds: Callable[[Any], object]

    def also(self, words: str, holds: Callable[[Any], object]) -> When:
        """Where both this and the other hold."""
        return When(f"{self.words} and {words}", lambda config: self.holds(config) and holds(config))


@dataclass(frozen=True)
class Extra:
    """What pydantic's own field does not hold; see `option`."""

    section: str
    label: str
    unit: str = ""
    aliases: tuple[str, ...] = ()
    switches: Mapping[str, object] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    advanced: bool = False
    path: PathKind = ""
    secret: bool = False
    matters: When | None = None
    blank: bool = False


def option(
    default: Any,
    *,
    section: str,
    label: str,
    help: str,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    switches: Mapping[str, object] | None = None,
    values: Mapping[str, str] | None = None,
    advanced: bool = False,
    path: PathKind = "",
    secret: bool = False,
    matters: When | None = None,
    blank: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare one option.

    aliases: other names with the same meaning; switches: names without a value that set this option, with
    what they set (`--sdpa`); values: other spellings of its values; unit: shown behind the number;
    matters: when the option has an effect, always if None; secret: never written anywhere;
    blank: empty text is a value, not the lack of one.
    """
    if section not in SECTIONS:
        raise ValueError(f"unknown section {section!r}")
    extra = Extra(
        section,
        label,
        unit,
        aliases,
        dict(switches or {}),
        dict(values or {}),
        advanced,
        path,
        secret,
        matters,
        blank,
    )
    bounds: dict[str, Any] = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return Field(
        default,
        description=help,
        exclude=True if secret else None,
        json_schema_extra=typing.cast("Any", {"option": extra}),
        **{name: bound for name, bound in bounds.items() if bound is not None},
    )


def like(cls: type[BaseModel], name: str, default: Any, help: str = "", **changes: Any) -> Any:
    """The option `name` of another class, declared again with another default, sentence or mark."""
    info = cls.model_fields[name]
    extra = _extra(info)
    low, high = _bounds_of(info)
    kept: dict[str, Any] = {part.name: getattr(extra, part.name) for part in fields(extra)}
    if low:
        kept["ge" if low[1] else "gt"] = low[0]
    if high:
        kept["le" if high[1] else "lt"] = high[0]
    return option(default, help=help or info.description or "", **{**kept, **changes})


@dataclass(frozen=True)
class Option:
    """One declared option, read back for a surface.

    kind is the type of one value; many: any number of values; count: exactly so many values (0: not fixed);
    optional: may be left empty. low and high are (bound, inclusive).
    """

    name: str
    extra: Extra
    help: str
    default: Any
    kind: Kind
    many: bool = False
    count: int = 0
    optional: bool = False
    choices: tuple[str, ...] = ()
    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None

    @property
    def section(self) -> str:
        return self.extra.section

    @property
    def label(self) -> str:
        return self.extra.label

    @property
    def advanced(self) -> bool:
        return self.extra.advanced

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name that takes a value, the field's own first."""
        return (self.name, *self.extra.aliases)

    @property
    def when(self) -> str:
        """When it has an effect, as a sentence; empty for always."""
        return f"Matters when {self.extra.matters.words}." if self.extra.matters else ""

    def rule(self) -> str:
        """What a value must be, as the rest of a sentence."""
        if self.kind == "choice":
            rule = "must be one of " + ", ".join(self.choices)
        elif self.kind == "bool":
            rule = "must be true or false"
        elif self.kind in ("int", "float"):
            rule = f"must be {'a whole number' if self.kind == 'int' else 'a number'}{self._bounds()}"
        else:
            rule = "must be a path" if self.kind == "path" else "must be text"
        if self.count:
            return f"takes exactly {self.count} values; each {rule}"
        return f"takes a list; each value {rule}" if self.many else rule

    def _bounds(self) -> str:
        parts = []
        if self.low:
            parts.append(f"{'of at least' if self.low[1] else 'above'} {_number(self.low[0])}")
        if self.high:
            parts.append(f"{'of at most' if self.high[1] else 'below'} {_number(self.high[0])}")
        return " " + " and ".join(parts) if parts else ""

    def remedy(self) -> str:
        """A value that works."""
        if self.default in (None, (), ""):
            return "Leave it out" if self.optional or self.many or self.default == "" else "Give it a value"
        return f"Its default is {show(self.default)}"


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else str(int(value))


def show(value: object) -> str:
    """A value as a person writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return " ".join(show(item) for item in value)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


class Options(BaseModel):
    """Base of every command's options: frozen, complete, unknown names refused.

    The constructor holds each field's own rule. Rules between fields are in `problems()`; `build.build`
    applies both and reports everything at once; the engine's `check` begins with `problems()` too.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    command: ClassVar[str] = ""
    positionals: ClassVar[tuple[str, ...]] = ()
    """Options that may also be given by position on the command line, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, values: Any) -> Any:
        """Same meaning, other spelling: empty text for an option that may be empty, one value for a list."""
        if not isinstance(values, Mapping):
            return values
        known = options_of(cls)
        expanded, problems = cls.expand(dict(values))
        if problems:
            raise ValueError("; ".join(problem.sentence() for problem in problems))
        return {
            name: tidy(known[name], value) if name in known else value for name, value in expanded.items()
        }

    @classmethod
    def expand(
        cls, values: dict[str, Any], over_all: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Problem]]:
        """Options that only stand for others are replaced by them; values are still unchecked here. over_all:
        what a TOML and the command line say together, where `values` are only one's."""
        return values, []

    @classmethod
    def remarks(cls, values: Mapping[str, Any]) -> list[str]:
        """One line for each part of a value that is accepted and does nothing here."""
        return []

    def with_(self, **changes: object) -> Self:
        """A changed copy, checked like any other."""
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**kept, **changes})

    def problems(self) -> list[Problem]:
        """Rules between fields. Every broken one is reported; nothing on disk is looked at."""
        return []


def tidy(known: Option, value: object) -> object:
    """One raw value brought into the field's form; values that make no sense are left for pydantic
    to refuse."""
    if isinstance(value, bool) and known.kind == "choice":
        value = show(value)  # a TOML's true for "true"
    if isinstance(value, str):
        if known.kind == "choice":
            value = known.extra.values.get(
                value.lower(), value.lower() if value.lower() in known.choices else value
            )
        if value == "" and (known.optional or known.many) and not known.extra.blank:
            return () if known.many else None
    if known.many or known.count:
        if isinstance(value, str | int | float | Path) and not isinstance(value, bool):
            value = (value,)
        if known.kind == "choice" and isinstance(value, list | tuple):
            value = tuple(_choice(known, item) for item in value)
        return value
    if isinstance(value, bool) and known.kind in ("int", "float"):
        return show(value)  # pydantic would take true for 1
    return value


def _choice(known: Option, value: object) -> object:
    low = str(value).lower()
    return known.extra.values.get(low, low if low in known.choices else value)


@functools.cache
def options_of(cls: type[Options]) -> dict[str, Option]:
    """All options of a command in the order of declaration, by name."""
    hints = typing.get_type_hints(cls, include_extras=False)
    return {name: _read(name, info, hints[name]) for name, info in cls.model_fields.items()}


def by_section(cls: type[Options]) -> dict[str, list[Option]]:
    """The same, grouped by section key in the order in which sections are shown."""
    groups: dict[str, list[Option]] = {key: [] for key in SECTIONS}
    for found in options_of(cls).values():
        groups[found.section].append(found)
    return {key: group for key, group in groups.items() if group}


def _read(name: str, info: FieldInfo, hint: Any) -> Option:
    extra = _extra(info)
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        optional = True
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    many, count = False, 0
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        many = parts[-1] is Ellipsis
        count = 0 if many else len(parts)
        hint = parts[0]
    choices: tuple[str, ...] = ()
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
    kind = _kind(hint, choices, name)
    low, high = _bounds_of(info)
    return Option(
        name, extra, info.description or "", info.default, kind, many, count, optional, choices, low, high
    )


def _extra(info: FieldInfo) -> Extra:
    found: Extra = typing.cast("dict[str, Any]", info.json_schema_extra)["option"]
    return found


def _kind(hint: Any, choices: tuple[str, ...], name: str) -> Kind:
    if choices:
        return "choice"
    kinds: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text", Path: "path"}
    if hint not in kinds:
        raise TypeError(f"{name}: an option cannot be {hint}")
    return kinds[hint]


def _bounds_of(info: FieldInfo) -> tuple[tuple[float, bool] | None, tuple[float, bool] | None]:
    low = high = None
    for rule in info.metadata:
        if (bound := getattr(rule, "ge", None)) is not None:
            low = (bound, True)
        if (bound := getattr(rule, "gt", None)) is not None:
            low = (bound, False)
        if (bound := getattr(rule, "le", None)) is not None:
            high = (bound, True)
        if (bound := getattr(rule, "lt", None)) is not None:
            high = (bound, False)
    return low, high
