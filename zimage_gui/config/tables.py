"""The option tables of the documentation, made from the options themselves. This module knows Markdown.

`python -m zimage_gui.config.tables` writes docs/options/*.md and the lists inside docs/compatibility.md anew;
a test holds that they are fresh.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from zimage_gui.config import older_programs
from zimage_gui.config.dataset import INERT_KEYS, DatasetEntry, GeneralTable
from zimage_gui.config.foreign import ELSEWHERE, INERT
from zimage_gui.config.help_text import placeholder
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import SECTIONS, Option, Options, by_section, options_of, show
from zimage_gui.files import atomic_write

MADE = "<!-- Made by `python -m zimage_gui.config.tables`; edit the options in zimage_gui/config instead. -->"
BEGIN, END = "<!-- lists: begin -->", "<!-- lists: end -->"


def pages() -> dict[str, str]:
    """File name in docs/options -> its text."""
    made = {f"{command}.md": command_page(cls) for command, cls in COMMANDS.items()}
    return {**made, "dataset-file.md": dataset_page(), "README.md": index_page()}


def index_page() -> str:
    lines = [f"- [{command}]({command}.md): {_about(cls)}" for command, cls in COMMANDS.items()]
    intro = (
        "Every option has one name in the window, on the command line (`--name value`, with `-` and `_` "
        "alike) and in a TOML (`name = value`, in any section). Options marked * are shown under Advanced in "
        "the window and by `--help_all`."
    )
    dataset = "- [dataset file](dataset-file.md): the keys of a dataset TOML"
    return "\n".join([MADE, "", "# Options", "", intro, "", *lines, dataset, ""])


def command_page(cls: type[Options]) -> str:
    lines = [MADE, "", f"# {cls.command}", "", _about(cls)]
    if cls.positionals:
        lines += ["", f"By position: {', '.join(f'`{name}`' for name in cls.positionals)}."]
    for key, group in by_section(cls).items():
        lines += ["", f"## {SECTIONS[key]}", "", *_table(group)]
    return "\n".join([*lines, ""])


def dataset_page() -> str:
    own = [known for name, known in options_of(DatasetEntry).items() if name not in options_of(GeneralTable)]
    inert = [f"| `{name}` | {_cell(reason)} |" for name, reason in INERT_KEYS.items()]
    return "\n".join(
        [
            MADE, "", "# Dataset file", "",
            "A TOML (or JSON) with an optional table `[general]` and one `[[datasets]]` per folder.", "",
            "## In `[general]` and in `[[datasets]]`", "",
            "A value in `[[datasets]]` counts before one in `[general]`.", "",
            *_table(list(options_of(GeneralTable).values())), "",
            "## Only in `[[datasets]]`", "", *_table(own), "",
            "## Accepted without effect", "", "| Key | Why |", "| --- | --- |", *inert, "",
        ]
    )  # fmt: skip


def _about(cls: type[Options]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _table(group: Sequence[Option]) -> list[str]:
    return ["| Option | Value | Default | Meaning |", "| --- | --- | --- | --- |", *map(_row, group)]


def _row(known: Option) -> str:
    mark = "*" if known.advanced else ""
    default = f"`{show(known.default)}`" if known.default not in (None, (), "") else "–"
    return f"| `{known.name}`{mark} | {_cell(_values(known))} | {_cell(default)} | {_cell(_meaning(known))} |"


def _values(known: Option) -> str:
    if known.kind == "bool":
        return "true, false"
    if known.kind == "choice":
        return ", ".join(known.choices) + (" (list)" if known.many else "")
    bounds = known.rule().partition("number")[2].replace("of at least", "from").replace("of at most", "to")
    bounds = bounds.replace(" and ", " ").strip()
    return f"{placeholder(known)} {bounds}".strip() + (f" {known.extra.unit}" if known.extra.unit else "")


def _meaning(known: Option) -> str:
    parts = [f"**{known.label}.** {known.help}"]
    if known.when:
        parts.append(known.when)
    others = [*known.extra.aliases, *(f"{name} = true" for name in known.extra.switches)]
    if others:
        parts.append("Also " + ", ".join(f"`{name}`" for name in others) + ".")
    if known.extra.values:
        pairs = (f"`{other}` = `{value}`" for other, value in known.extra.values.items())
        parts.append("Other spellings: " + ", ".join(pairs) + ".")
    return " ".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def compatibility_lists() -> str:
    """The options that do nothing, those that a launcher has to be told, and all of the older programs."""
    lines = ["### Accepted without effect", "", "| Option | Commands | Why |", "| --- | --- | --- |"]
    lines += [f"| `{entry.name}` | {', '.join(entry.commands)} | {entry.reason} |" for entry in INERT]
    lines += [
        "",
        "### Refused: a launcher has to be told",
        "",
        "| Options | Why | Instead |",
        "| --- | --- | --- |",
    ]
    reason = attrgetter("what", "remedy")
    for (what, remedy), entries in groupby(sorted(ELSEWHERE, key=reason), key=reason):
        lines.append(f"| {', '.join(f'`{entry.name}`' for entry in entries)} | {what} | {remedy} |")
    return "\n".join([*lines, "", *_every_option()])


def _every_option() -> list[str]:
    """One line for each option of the older programs and for what becomes of it; places share a line."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in older_programs.rows():
        known = places.setdefault((row.name, row.here), [])
        known += [row.place] if row.place not in known else []
    return [
        "### Every option of the older programs",
        "",
        "By the name it has there. yes: it is here and works.",
        "",
        "| Option | In | Here |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {', '.join(where)} | {here} |" for (name, here), where in sorted(places.items())),
    ]


def with_lists(page: str) -> str:
    """docs/compatibility.md with its lists made anew."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"docs/compatibility.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{compatibility_lists()}\n\n{END}{after}"


def main(docs: Path) -> None:
    for name, text in pages().items():
        atomic_write(docs / "options" / name, text.encode("utf-8"))
    page = docs / "compatibility.md"
    atomic_write(page, with_lists(page.read_text(encoding="utf-8")).encode("utf-8"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
