"""The help of a command as text, from its options. This module knows how options are shown in a terminal."""

from __future__ import annotations

import textwrap

from zimage_gui.config.argv import LAUNCHER
from zimage_gui.config.schema import SECTIONS, Option, Options, by_section, options_of, show

_INDENT, _COLUMN = 2, 30


def command_help(cls: type[Options], program: str, width: int = 100, everything: bool = False) -> str:
    """Usage, one block per section, and the words of the command line itself."""
    place = "".join(f" [{name.upper()}]" for name in cls.positionals)
    about = " ".join((cls.__doc__ or "").split())
    lines = [f"usage: {program} {cls.command} [CONFIG.toml]{place} [--option value …]", "", about]
    for key, group in by_section(cls).items():
        shown = [known for known in group if everything or not known.advanced]
        if shown:
            lines += ["", SECTIONS[key]]
            for known in shown:
                lines += _entry(_heading(known), _text(known), width)
    lines += ["", "Command line"]
    for name, text in LAUNCHER.items():
        if name != "run_folder" or everything:
            takes = " FILE" if name == "config_file" else " DIR" if name == "run_folder" else ""
            lines += _entry(f"--{name}{takes}", text, width)
    hidden = sum(known.advanced for known in options_of(cls).values())
    if hidden and not everything:
        lines += ["", f"{hidden} more: {program} {cls.command} --help_all"]
    return "\n".join(lines) + "\n"


def _heading(known: Option) -> str:
    return f"--{known.name}" + (f" {placeholder(known)}" if known.kind != "bool" else "")


def placeholder(known: Option) -> str:
    """What stands for the value: N, X, TEXT, PATH or the choices."""
    words = {"int": "N", "float": "X", "text": "TEXT", "path": "PATH", "bool": ""}
    word = "{" + ",".join(known.choices) + "}" if known.kind == "choice" else words[known.kind]
    if known.count:
        return " ".join([word] * known.count)
    return f"{word} …" if known.many else word


def _text(known: Option) -> str:
    parts = [known.help, known.when]
    if known.kind == "bool":
        parts.append("(default: on; --" + known.name + " false)" if known.default else "")
    elif known.default not in (None, (), ""):
        parts.append(f"(default: {show(known.default)})")
    others = [f"--{name}" for name in (*known.extra.aliases, *known.extra.switches)]
    if others:
        parts.append(f"Also {', '.join(others)}.")
    return " ".join(filter(None, parts))


def _entry(heading: str, text: str, width: int) -> list[str]:
    indent = " " * (_INDENT + _COLUMN)
    first = " " * _INDENT + heading
    if len(first) + 2 > len(indent):
        # Many choices do not fit one line: they are broken behind a comma.
        deeper = " " * (_INDENT + 4)
        heads = (
            [first]
            if len(first) <= width
            else textwrap.wrap(first.replace(",", ", "), width, subsequent_indent=deeper)
        )
        return [*heads, *textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)]
    return textwrap.wrap(text, width, initial_indent=f"{first:{len(indent)}}", subsequent_indent=indent)
