"""Which pictures a dataset entry names: a folder listing or a JSONL file.

Knows file names and JSONL lines. Must not open pictures or know buckets and caches.
"""

import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.dataset.images import extensions
from zimage_gui.files import is_file

MAX_LINE_BYTES = 1_000_000
"""A line beyond it is no entry; its rest is passed over, not taken for lines of their own."""


@dataclass(frozen=True)
class Listed:
    """A picture that the user named. `caption` comes from JSONL, `caption_path` from a folder's text file.

    problem: a sentence part about this entry (`path` is then the file to blame, `line` its line).
    """

    path: Path
    caption: str | None = None
    caption_path: Path | None = None
    line: int | None = None
    problem: str | None = None


def list_folder(folder: Path, caption_extension: str) -> list[Listed]:
    """Pictures directly inside `folder`, sorted by name; endings in any case. Missing captions have no path.

    `name.png` is captioned by `name` + extension, as in musubi-tuner, else by `name.png` + extension.
    """
    endings = extensions()
    names = file_names(folder)
    by_folded = {folded_name(name): name for name in names}
    pictures = []
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in endings or name.startswith("._"):
            continue
        candidates = (stem + caption_extension, name + caption_extension)
        caption = next(
            (by_folded[folded_name(text)] for text in candidates if folded_name(text) in by_folded), None
        )
        pictures.append(Listed(folder / name, caption_path=folder / caption if caption else None))
    return pictures


def file_names(folder: Path) -> list[str]:
    """Names of the files directly inside, sorted. Raises OSError for a folder that cannot be listed."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_file(entry))


def holds_picture(folder: Path) -> bool:
    """Whether there is any picture directly inside `folder`, by its name; a folder that cannot be listed has
    its own trouble."""
    endings = extensions()
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in endings for entry in entries)
    except OSError:
        return True


def folded_name(name: str) -> str:
    """macOS stores é as two characters, Windows ignores case: such names mean the same file to the user."""
    return unicodedata.normalize("NFC", name).casefold()


def list_jsonl(file: Path) -> list[Listed]:
    """One entry per line: {"image_path": ..., "caption": ...}. Wrong lines come back with a problem."""
    return [_entry(file, number, line) for number, line in _lines(file)]


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank with their numbers, from 1; of one that is too long its beginning."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text
            while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)


def _entry(file: Path, number: int, line: bytes) -> Listed:
    if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
        return Listed(file, line=number, problem="is longer than 1 MB, which is no entry")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Listed(file, line=number, problem="is not UTF-8: save the file again as UTF-8")
    except (ValueError, RecursionError):
        return Listed(file, line=number, problem="is not one JSON object on one line")
    if not isinstance(value, dict):
        return Listed(
            file, line=number, problem='must be an object such as {"image_path": "a.png", "caption": "…"}'
        )
    image = value.get("image_path", value.get("image_path_0"))
    caption = value.get("caption")
    if not isinstance(image, str) or not image or "\0" in image or not _whole(image):
        return Listed(file, line=number, problem="has no image_path")
    if not isinstance(caption, str):
        return Listed(_resolve(file, image), line=number, problem="has no caption in the JSONL file")
    if not _whole(caption):
        problem = "has a caption with half a character (a lone surrogate)"
        return Listed(_resolve(file, image), line=number, problem=problem)
    return Listed(_resolve(file, image), caption=caption.strip(), line=number)


def _whole(text: str) -> bool:
    """JSON can spell one half of a surrogate pair, which no tokenizer and no file takes."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _resolve(file: Path, image: str) -> Path:
    """Relative to the JSONL file's folder when the picture is there, else to the working directory."""
    beside = file.parent / image
    return beside if beside.exists() else Path(image)
