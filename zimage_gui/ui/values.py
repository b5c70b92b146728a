"""What a form field shows for a value, and what a shown text means: the border between schema and widgets.

Knows options of the schema and plain values. Knows nothing of gradio. Numbers travel as the text a person
typed (`1e-4` stays `1e-4`, `abc` reaches the schema), so that the schema alone decides what is right and
words every error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zimage_gui.config.schema import Option, Options, options_of, show

Raw = str | bool | None


def to_widget(option: Option, value: Any) -> Raw:
    """The content of the field for a value of the option (a validated one, or one from a file)."""
    if option.kind == "bool":
        return bool(value) if isinstance(value, bool) else str(value).lower() == "true"
    if value is None or value == ():
        return "" if option.kind != "choice" else None
    if option.many and isinstance(value, list | tuple):
        return "\n".join(show(item) for item in value)
    if option.count and isinstance(value, list | tuple):
        items = [show(item) for item in value]
        return (
            items[0]
            if len(set(items)) == 1 and len(items) == 2 and option.name == "resolution"
            else " x ".join(items)
        )
    return show_exact(value)


def show_exact(value: object) -> str:
    """Like `show`, but a float keeps all its digits: a form must not round what a file said."""
    if isinstance(value, float):
        shorts = (
            (f"{value:.0e}".replace("e-0", "e-"), f"{value:g}") if 0 < abs(value) < 1e-2 else (f"{value:g}",)
        )
        return next((short for short in shorts if float(short) == value), repr(value))
    return show(value)


def from_widget(option: Option, raw: Raw) -> Any:
    """The unchecked value a field stands for; None where the field is empty."""
    if option.kind == "bool":
        return bool(raw)
    text = "" if raw is None else str(raw)
    if option.kind != "text" or option.many:
        text = text.strip()
    if not text:
        return None
    if option.many:
        # Paths and texts may hold spaces and commas, numbers may not.
        separator = r"[\s,;]+" if option.kind in ("int", "float") else r"[\r\n]+"
        return [part.strip() for part in re.split(separator, text) if part.strip()]
    if option.count:
        return [part for part in re.split(r"[\s,;x×]+", text) if part]
    if option.kind == "path" and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]  # Windows copies paths with quotation marks
    return text


def defaults(config_class: type[Options]) -> dict[str, Raw]:
    """What an untouched form shows."""
    return {name: to_widget(option, option.default) for name, option in options_of(config_class).items()}


def collect(config_class: type[Options], raw: Mapping[str, Raw]) -> dict[str, Any]:
    """Unchecked values of all fields that differ from an untouched form; the schema fills in the rest.

    An emptied field is left out where the option may be empty; elsewhere it is passed on empty, so that the
    schema says that it is needed instead of quietly taking the default.
    """
    untouched = defaults(config_class)
    values: dict[str, Any] = {}
    for name, option in options_of(config_class).items():
        if name not in raw or same(option, raw[name], untouched[name]):
            continue
        value = from_widget(option, raw[name])
        if value is None:
            value = () if option.many else None if option.optional else ""
        values[name] = value
    return values


def same(option: Option, one: Raw, other: Raw) -> bool:
    """Whether two field contents mean the same value."""
    return one == other or from_widget(option, one) == from_widget(option, other)


def from_values(config_class: type[Options], values: Mapping[str, Any]) -> dict[str, Raw]:
    """Field contents for unchecked values by name (of a preset, a run, a draft); unknown names are
    left out."""
    known = options_of(config_class)
    return {name: to_widget(known[name], value) for name, value in values.items() if name in known}
