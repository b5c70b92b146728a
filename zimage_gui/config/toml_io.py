"""Configs as TOML text. This module knows TOML and its sections; it must not know what an option means.

A table in a config is only a group: `[lora] network_dim = 8` and `network_dim = 8` are the same. Reading is
done by tomllib. Writing is done by tomlkit: `toml` does not round-trip all control characters.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from zimage_gui.config.build import Source, finish, read
from zimage_gui.config.schema import SECTIONS, Options, by_section
from zimage_gui.errors import Problem, UserError
from zimage_gui.files import atomic_write

Config = TypeVar("Config", bound=Options)

LARGEST_FILE = 4_000_000
"""Bytes; a config has some thousand."""


def parse(text: str, option: str = "config_file", name: str = "") -> dict[str, Any]:
    """TOML text -> nested tables. Raises UserError that names the line."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        remedy = "Correct the line"
        if "\\" in str(error) or "hex value" in str(error):  # what "C:\models" and "C:\users" end in
            remedy = "Write Windows paths with / or in single quotes: 'C:\\folder\\file'"
        raise UserError.one(option, name, f"is not valid TOML: {error}", remedy) from error


def read_text(path: Path, option: str = "config_file") -> str:
    """A text file of the user, UTF-8 with or without a byte order mark."""
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise UserError.one(option, path, "is far too large to be a settings file", "Choose another file")
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError.one(option, path, "does not exist", "Check the path") from error
    except OSError as error:
        raise UserError.one(option, path, f"cannot be read ({error.strerror})", "Choose a file") from error
    except UnicodeDecodeError as error:
        raise UserError.one(option, path, "is not UTF-8 text", "Save it as UTF-8") from error


def source(cls: type[Options], text: str, base: Path | None, name: str = "") -> Source:
    """The options in a TOML text, sections flattened."""
    tables = parse(text, name=name)
    if isinstance(tables.get("datasets"), list):
        rule = "is a dataset file, not a file of this command's options"
        remedy = "Name it with dataset_config" if "dataset_config" in cls.model_fields else "Leave it out"
        return Source(problems=[Problem("config_file", name, rule, remedy)])
    given, problems = _flattened(cls, tables)
    found = read(cls, given, base)
    found.problems = problems + found.problems
    return found


def _flattened(cls: type[Options], tables: dict[str, Any]) -> tuple[list[tuple[str, object]], list[Problem]]:
    """(name, value) of every option in every table, and what does not stand where options stand."""
    given: dict[str, tuple[object, str]] = {}
    problems = []
    for key, value in tables.items():
        if key in cls.model_fields and _is_value(cls, key, value):
            rule, remedy = "is a table; this is an option", f"Write {key} = …, or name the table otherwise"
            problems.append(Problem(f"[{key}]", "", rule, remedy))
            continue
        if _holds_tables(value):
            rule = "is a list of tables; options are grouped in single tables"
            problems.append(Problem(f"[[{key}]]", "", rule, f"Write [{key}]"))
            continue
        pairs = value.items() if isinstance(value, dict) else ((key, value),)
        where = f"[{key}]" if isinstance(value, dict) else "the top"
        for inner, item in pairs:
            if isinstance(item, dict) or _holds_tables(item):
                rule = "is a table inside a table; options are grouped one level deep"
                problems.append(Problem(f"{key}.{inner}", "", rule, "Move its options up"))
            elif item != "" and (known := cls.model_fields.get(inner)) is not None and known.exclude:
                remedy = "Give it on the command line, in the environment or in a file of its own"
                problems.append(Problem(inner, "", "is a secret and never stands in a TOML", remedy))
            elif inner in given and given[inner][0] != item:
                rule = f"stands in {where} and, with another value, in {given[inner][1]}"
                problems.append(Problem(inner, "", rule, "Leave out one of the two"))
            else:
                given[inner] = item, where
    return [(name, value) for name, (value, _) in given.items()], problems


def _is_value(cls: type[Options], key: str, value: object) -> bool:
    """Whether a table with an option's name is meant as its value: it holds anything but options."""
    if key in SECTIONS or not isinstance(value, dict):
        return False
    return any(inner.replace("-", "_") not in cls.model_fields for inner in value)


def _holds_tables(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def loads(cls: type[Config], text: str, base: Path | None = None) -> Config:
    """A config from TOML text. Raises UserError with all problems."""
    return finish(cls, [source(cls, text, base)])


def load(cls: type[Config], path: Path) -> Config:
    """A config from a TOML file; relative paths in it count from its folder first. Raises UserError."""
    return finish(cls, [source(cls, read_text(path), path.absolute().parent, str(path))])


def dump(config: Options, *, comments: bool = False) -> str:
    """TOML text with one table per section. comments: each option's sentence above it. Secrets are
    left out."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment(f"zimage-gui {config.command}"))
    for key, group in by_section(type(config)).items():
        table = tomlkit.table()
        for known in group:
            value = getattr(config, known.name)
            if known.extra.secret:
                continue
            if comments:
                table.add(tomlkit.comment(known.help))
            if value is not None or known.default is not None:
                # TOML has no null; empty text means the same when it is read.
                table.add(known.name, "" if value is None else plain(value))
            elif comments:
                table.add(tomlkit.comment(f"{known.name} ="))
        if table or comments:
            if comments:
                table.comment(SECTIONS[key])
            document.add(tomlkit.nl())
            document.add(key, table)
    return tomlkit.dumps(document)


def plain(value: object) -> Any:
    """A value in TOML's own types."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def save(config: Options, path: Path, *, comments: bool = False) -> Path:
    """Write the TOML file whole or not at all."""
    return atomic_write(path, dump(config, comments=comments).encode("utf-8", "surrogateescape"))
