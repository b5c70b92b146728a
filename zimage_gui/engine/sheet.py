"""The sheet of a grid: many pictures on one, with words at the columns, the rows and the blocks.

Knows Pillow, fonts and lines of text. It must not know models, options or runs. No torch.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MOST_PIXELS = 80_000_000
"""Of a sheet; its pictures are made smaller until they fit."""
LONGEST_EDGE = 20_000
_GAP = 6
_INK, _PAPER, _EMPTY = (24, 28, 36), (255, 255, 255), (232, 235, 240)
_TITLE_LINES, _HEAD_LINES = 3, 4
_FONTS_TRIED = 200
# File names in the order of preference; the first that has all characters of a sheet draws it.
_NAMES = (
    "DejaVuSans.ttf", "segoeui.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc", "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf", "msyh.ttc",
    "YuGothM.ttc", "meiryo.ttc", "malgun.ttf", "simsun.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf",
    "Arial Unicode.ttf", "unifont.ttf",
)  # fmt: skip

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Layout:
    """Pixel sizes of a sheet: one cell, the column of row words, the line of column words, title, block."""

    cell: tuple[int, int]
    left: int
    top: int
    title: int
    block: int


def sheet_of(
    pictures: Mapping[tuple[int, int, int], Path],
    words: tuple[Sequence[str], Sequence[str], Sequence[str]],
    title: str,
) -> Image.Image:
    """The sheet. `pictures` by (column, row, block); a missing one is an empty cell. `words` of columns, rows
    and blocks, none where there is but one."""
    counts = (len(words[0]) or 1, len(words[1]) or 1, len(words[2]) or 1)
    cell = _cell_size(list(pictures.values()), counts)
    everything = title + "".join("".join(part) for part in words)
    font = font_for(everything, max(12, min(40, cell[0] // 16)))
    layout, lines = _layout(cell, words, title, counts, font)
    width = layout.left + counts[0] * (cell[0] + _GAP) + _GAP
    block = layout.block + layout.top + counts[1] * (cell[1] + _GAP)
    sheet = Image.new("RGB", (width, layout.title + counts[2] * block + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _GAP), lines, font)
    for z in range(counts[2]):
        top = layout.title + z * block
        if words[2]:
            _write(draw, (_GAP, top), wrapped(words[2][z], width - 2 * _GAP, font, 1), font)
        _draw_block(sheet, draw, layout, (top + layout.block, z), words, pictures, counts, font)
    return sheet


def _draw_block(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: Layout,
    start: tuple[int, int],
    words: tuple[Sequence[str], Sequence[str], Sequence[str]],
    pictures: Mapping[tuple[int, int, int], Path],
    counts: tuple[int, int, int],
    font: Font,
) -> None:
    """One block from the height start[0] on: the words of its columns and rows, and its pictures."""
    (wide, high), (top, z) = layout.cell, start
    for x in range(counts[0]):
        left = layout.left + _GAP + x * (wide + _GAP)
        if words[0]:
            _write(draw, (left, top), wrapped(words[0][x], wide, font, _HEAD_LINES), font)
        for y in range(counts[1]):
            corner = (left, top + layout.top + y * (high + _GAP))
            path = pictures.get((x, y, z))
            if path is None:
                draw.rectangle((*corner, corner[0] + wide - 1, corner[1] + high - 1), fill=_EMPTY)
            else:
                _paste(sheet, path, corner, layout.cell)
    for y, text in enumerate(words[1]):
        lines = wrapped(text, layout.left - _GAP, font, max(1, high // line_height(font)))
        middle = top + layout.top + y * (high + _GAP) + (high - len(lines) * line_height(font)) // 2
        _write(draw, (_GAP, middle), lines, font)


def _paste(sheet: Image.Image, path: Path, corner: tuple[int, int], cell: tuple[int, int]) -> None:
    """A picture in the middle of its cell, never larger than it is."""
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail(cell, Image.Resampling.LANCZOS)
    sheet.paste(shown, (corner[0] + (cell[0] - shown.width) // 2, corner[1] + (cell[1] - shown.height) // 2))


def _cell_size(paths: Sequence[Path], counts: tuple[int, int, int]) -> tuple[int, int]:
    """The largest width and height of the pictures, both scaled so that the sheet keeps within its limits."""
    sizes = []
    for path in paths:
        with Image.open(path) as picture:
            sizes.append(picture.size)
    wide = max((size[0] for size in sizes), default=256)
    high = max((size[1] for size in sizes), default=256)
    across, down = wide * counts[0], high * counts[1] * counts[2]
    scale = min(1.0, (MOST_PIXELS / (across * down)) ** 0.5, LONGEST_EDGE / across, LONGEST_EDGE / down)
    return max(16, int(wide * scale)), max(16, int(high * scale))


def _layout(
    cell: tuple[int, int],
    words: tuple[Sequence[str], Sequence[str], Sequence[str]],
    title: str,
    counts: tuple[int, int, int],
    font: Font,
) -> tuple[Layout, list[str]]:
    """Room for the words, and the title's lines."""
    height = line_height(font)
    widest = max((_width(text, font) for text in words[1]), default=0)
    left = min(widest, max(cell[0] // 2, 6 * height)) + 2 * _GAP if words[1] else 0
    most = max((len(wrapped(text, cell[0], font, _HEAD_LINES)) for text in words[0]), default=0)
    across = left + counts[0] * (cell[0] + _GAP)
    lines = wrapped(title, across - 2 * _GAP, font, _TITLE_LINES) if title else []
    return (
        Layout(
            cell, left, most * height + _GAP, len(lines) * height + 2 * _GAP, (height + _GAP) * bool(words[2])
        ),
        lines,
    )


# ---- text -------------------------------------------------------------------------------------------------


def wrapped(text: str, width: int, font: Font, most: int) -> list[str]:
    """At most so many lines no wider than `width` px, cut between words or, in scripts without spaces,
    anywhere; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < most:
        count = _fitting(rest, width, font)
        if count < len(rest):
            space = rest.rfind(" ", 1, count + 1)
            count = space if space > count // 2 else count
        lines.append(rest[:count].strip())
        rest = rest[count:].strip()
    if rest and lines:
        last = lines[-1]
        while last and _width(last + "…", font) > width:
            last = last[:-1]
        lines[-1] = last + "…"
    return lines


def _fitting(text: str, width: int, font: Font) -> int:
    """How many of the first characters fit; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if _width(text[:middle], font) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _width(text: str, font: Font) -> int:
    return int(font.getlength(text))


def line_height(font: Font) -> int:
    box = font.getbbox("Ágj漢")
    return int((box[3] - box[1]) * 1.35) + 1


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], font: Font) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * line_height(font)), line, fill=_INK, font=font)


# ---- fonts ------------------------------------------------------------------------------------------------


def font_for(text: str, size: int) -> Font:
    """A font of this machine with every character of the text; else the one that has most of them."""
    wanted = frozenset(char for char in text if not char.isspace())
    best: tuple[int, Font] | None = None
    for path in _font_files():
        font = _opened(path, size)
        missing = len(wanted) if font is None else sum(not _has(font, char) for char in wanted)
        if font is not None and (best is None or missing < best[0]):
            best = (missing, font)
        if best is not None and best[0] == 0:
            break
    own = ImageFont.load_default(size)
    if best is None or sum(not _has(own, char) for char in wanted) < best[0]:
        return own
    return best[1]


def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):
        return None


def _has(font: Font, char: str) -> bool:
    """Whether the font draws the character as anything but the sign for a missing one."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return char.isascii()
    none = font.getmask("\U0010fffe")
    mask = font.getmask(char)
    return mask.size != none.size or bytes(mask) != bytes(none)


@cache
def _font_files() -> tuple[Path, ...]:
    """Font files of this machine, those that are known to be readable first."""
    found: dict[str, Path] = {}
    for folder in _font_folders():
        for place, _, names in os.walk(folder):
            for name in sorted(names):
                if name.lower().endswith((".ttf", ".ttc", ".otf")):
                    found.setdefault(name, Path(place) / name)
    known = [found.pop(name) for name in _NAMES if name in found]
    return (*known, *list(found.values())[:_FONTS_TRIED])


def _font_folders() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield home / "AppData/Local/Microsoft/Windows/Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts")
        yield home / ".fonts"
