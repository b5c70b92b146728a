"""Reading of caption files, and the captions that one of them stands for. Knows text; must not know pictures,
tokens or training."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

MAX_CAPTION_BYTES = 1_000_000
"""A caption is cut at 512 tokens later; a file beyond this size is no caption."""


@dataclass(frozen=True)
class Caption:
    """What a caption file says, or why it cannot be used (`problem`, a sentence without the file's name)."""

    text: str = ""
    problem: str | None = None


def read_caption(path: Path) -> Caption:
    """The whole file, UTF-8 with or without a byte order mark, stripped of white space at both ends."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return Caption(problem=f"cannot be read ({error.strerror or error})")
    if len(data) > MAX_CAPTION_BYTES:
        return Caption(problem="is larger than 1 MB, which is no caption")
    return decode_caption(data)


def decode_caption(data: bytes) -> Caption:
    """Bytes of a caption file -> text. UTF-16 is told by its byte order mark; anything else must be UTF-8."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        return Caption(problem=_foreign_encoding(data, error.start))
    if "\0" in text:
        return Caption(problem="holds zero bytes, so it is no text file")
    # Line ends as in a file opened as text, which is how musubi-tuner reads captions.
    return Caption(text.replace("\r\n", "\n").replace("\r", "\n").strip())


def caption_variants(
    text: str, *, prefix: str = "", lines: bool = False, orders: int = 0, keep: int = 0
) -> tuple[str, ...]:
    """The captions that a caption file's text stands for, without doubles, the plainest first.

    prefix: put before each that does not begin with it; lines: each line is a caption; orders: so many
    shuffled orders of the parts between commas follow, of which the first `keep` stay. A pure function: the
    same text has the same orders in every run.
    """
    texts = [line.strip() for line in text.split("\n") if line.strip()] if lines else [text]
    texts = texts or [""]
    shuffled = [_order(one, keep, number) for number in range(orders) for one in texts]
    prefix = prefix.strip()
    found = (one if one.startswith(prefix) else f"{prefix} {one}".rstrip() for one in (*texts, *shuffled))
    return tuple(dict.fromkeys(found))


def _order(text: str, keep: int, number: int) -> str:
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]

    def rank(place: int) -> bytes:
        return hashlib.blake2b(f"{number}/{place}/{text}".encode("utf-8", "surrogatepass")).digest()

    moved = sorted(range(min(keep, len(tags)), len(tags)), key=rank)
    return ", ".join([*tags[:keep], *(tags[place] for place in moved)])


def _foreign_encoding(data: bytes, position: int) -> str:
    guesses = [name for name in ("cp932", "gbk", "cp949", "cp1252") if _decodes(data, name)]
    likely = f"; it may be {' or '.join(guesses[:2])}" if guesses else ""
    return f"is not UTF-8 (byte {position}){likely}: save it again as UTF-8"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
