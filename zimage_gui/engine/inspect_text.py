"""Text for a terminal: aligned columns, lines wrapped to its width, strangers' words made harmless.

Knows characters and columns. It must not know files or models.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

from zimage_gui.errors import visible


def plain(text: str, most: int = 200) -> str:
    """One line of a stranger's text: blanks folded, control and direction characters spelled out, cut."""
    cut = text[: most * 4]
    line = visible(" ".join(cut.split()))
    return line if len(line) <= most and len(cut) == len(text) else line[:most].rstrip() + "…"


def columns(text: str) -> int:
    """Places a text takes on a terminal: East Asian wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def padded(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` places, the middle left out: both ends of a tensor's name tell something."""
    if columns(text) <= width:
        return text
    head, tail = "", ""
    for index in range(len(text)):
        first, last = text[: len(head) + 1], text[len(text) - len(tail) - 1 :]
        if index % 2 == 0 and columns(first) + columns(tail) < width:
            head = first
        elif columns(head) + columns(last) < width:
            tail = last
        else:
            break
    return f"{head}…{tail}"


def wrapped(text: str, width: int | None, indent: int = 0, first: str = "") -> list[str]:
    """Lines of at most `width` places (None: one line), the later ones indented; `first` begins the first."""
    if width is None:
        return [first + text]
    lines, line = [], first
    room = max(width, indent + 20)
    for word in text.split(" "):
        for piece in _pieces(word, room - indent):
            glue = "" if not line or line.endswith(" ") else " "
            if line.strip() and columns(line) + len(glue) + columns(piece) > room and line != first:
                lines.append(line.rstrip())
                line, glue = " " * indent, ""
            line += glue + piece
    return [*lines, line.rstrip()]


def _pieces(word: str, width: int) -> Iterable[str]:
    while columns(word) > width:
        count = width if word.isascii() else max(1, width // 2)
        yield word[:count]
        word = word[count:]
    yield word


def table(rows: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """`  label   text`, the texts under each other and wrapped."""
    widest = max((columns(label) for label, _ in rows), default=0)
    lines: list[str] = []
    for label, text in rows:
        start = f"  {padded(label, widest)}  "
        lines += wrapped(text, width, len(start), start)
    return lines


def safe_json(value: object) -> str:
    """JSON a terminal may show: letters of any language stay, whatever does not print is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) > 126 else f"\\u{ord(char):04x}"


def size(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count:,} bytes"
