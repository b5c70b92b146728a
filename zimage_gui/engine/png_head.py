"""The text chunks at the beginning of a PNG file, without decoding a pixel.

Knows PNG chunks. It must not know what the texts mean, and trusts no length it reads. No torch, no Pillow:
a gallery of ten thousand pictures is searched with it.
"""

import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"\x89PNG\r\n\x1a\n"
_LONGEST_CHUNK = 2_000_000
_LONGEST_TEXT = 4_000_000
_MOST_CHUNKS = 200


def head_texts(path: Path) -> dict[str, str]:
    """The tEXt, zTXt and iTXt chunks before the pixels by their keys; empty for anything that is no PNG."""
    texts: dict[str, str] = {}
    with suppress(OSError, struct.error), path.open("rb") as file:
        if file.read(8) != _MAGIC:
            return texts
        for _ in range(_MOST_CHUNKS):
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind in (b"IDAT", b"IEND"):
                break
            _take(file, length, kind, texts)
    return texts


def _take(file: BinaryIO, length: int, kind: bytes, texts: dict[str, str]) -> None:
    """Reads or steps over one chunk and its checksum."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > _LONGEST_CHUNK:
        file.seek(length + 4, 1)
        return
    content = file.read(length + 4)
    if len(content) < length + 4:
        return
    key, _, rest = content[:-4].partition(b"\0")
    with suppress(ValueError, zlib.error, IndexError):
        texts.setdefault(key.decode("latin-1"), _text(kind, rest))


def _text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:]).decode("latin-1")
    packed, rest = rest[0], rest[2:]
    content = rest.split(b"\0", 2)[2]
    return (_inflated(content) if packed else content).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _LONGEST_TEXT)
