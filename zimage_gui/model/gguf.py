"""The header of a GGUF file: version, metadata, names, types and shapes, read without trust.

Knows the container only, little-endian versions 2 and 3. It must not know models, and reads no tensor: this
program names what is in such files and leaves running them to others.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zimage_gui.errors import UserError
from zimage_gui.files import TensorInfo

MAGIC = b"GGUF"
_MOST_TENSORS = 100_000
_MOST_ENTRIES = 10_000
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 65_536
_LONGEST_HEADER = 64_000_000
"""Bytes. A language model's header carries its vocabulary (10 MB); anything longer is refused."""
_KEPT_TEXT = 10_000
_KEPT_ITEMS = 16
_MOST_TEXTS = 1_000_000
"""In one list; a vocabulary has a fifth of it, and each takes a step of Python."""

# Type number: (name, values in a block, bytes of a block), as ggml numbers them; 4 and 5 are gone.
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """Shapes run from the slowest to the fastest dimension; the file has them reversed."""

    version: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def architecture(self) -> str:
        return self.metadata.get("general.architecture", "")

    @property
    def main_type(self) -> str:
        """The type that holds most of the weights, or "" without tensors."""
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += math.prod(info.shape)
        return counts.most_common(1)[0][0] if counts else ""


class _Broken(ValueError):
    """The rest of the sentence that begins with the file's name."""


def read_gguf(path: Path, option: str = "file") -> GgufHeader:
    """Raises UserError (naming `option`) when the file is cut off, malformed or of an unknown version."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _header(_Reader(file, size))
    except OSError as error:
        raise UserError.one(option, path, f"cannot be read ({error.strerror})", "Check the path") from error
    except _Broken as error:
        remedy = "Download the file again"
        raise UserError.one(option, path, f"is a GGUF file that {error}", remedy) from error


class _Reader:
    """Takes numbers and texts off the file, never past its end nor past the longest header."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._end = min(size, _LONGEST_HEADER)
        self.place = 0

    def take(self, count: int) -> bytes:
        self._move(count)
        data = self._file.read(count)
        if len(data) != count:
            raise _Broken("is cut off inside its header")
        return data

    def skip(self, count: int) -> None:
        self._move(count)
        self._file.seek(count, 1)

    def _move(self, count: int) -> None:
        self.place += count
        if self.place > self._end:
            reason = "is cut off inside its header" if self._end == self.size else "has an endless header"
            raise _Broken(reason)

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str, most: int, what: str) -> int:
        value = int(self.number(form))
        if value > most:
            raise _Broken(f"claims {value} {what}")
        return value

    def text(self, longest: int = _LONGEST_HEADER, kept: int = _LONGEST_HEADER) -> str:
        length = self.count("<Q", longest, "bytes for one text")
        shown = self.take(min(length, kept))
        self.skip(length - len(shown))
        return shown.decode("utf-8", "replace") + ("…" if length > kept else "")


def _header(reader: _Reader) -> GgufHeader:
    if reader.take(4) != MAGIC:
        raise _Broken("does not begin as one")
    version = int(reader.number("<I"))
    if version not in (2, 3):
        raise _Broken(f"has version {version}; 2 and 3 are known")
    count = reader.count("<Q", _MOST_TENSORS, "tensors")
    entries = reader.count("<Q", _MOST_ENTRIES, "metadata entries")
    metadata: dict[str, str] = {}
    for _ in range(entries):
        name = reader.text(_LONGEST_NAME)
        metadata[name] = _value(reader, int(reader.number("<I")))
    listed = [_tensor(reader) for _ in range(count)]
    return GgufHeader(version, _placed(listed, _alignment(metadata), reader), metadata)


def _value(reader: _Reader, kind: int) -> str:
    if kind in _SCALARS:
        value = reader.number(_SCALARS[kind])
        return f"{value:g}" if isinstance(value, float) else str(value)
    if kind == _TEXT:
        return reader.text(kept=_KEPT_TEXT)
    if kind != _ARRAY:
        raise _Broken(f"has a metadata value of the unknown type {kind}")
    inner = int(reader.number("<I"))
    length = reader.count("<Q", _MOST_TEXTS if inner == _TEXT else _LONGEST_HEADER, "values in one list")
    if inner != _TEXT and inner not in _SCALARS:
        raise _Broken(f"has a list of the unknown type {inner}")
    shown = [_value(reader, inner) for _ in range(min(length, _KEPT_ITEMS))]
    _pass_over(reader, inner, length - len(shown))
    more = f", … ({length:,} values)" if length > len(shown) else ""
    return f"[{', '.join(shown)}{more}]"


def _pass_over(reader: _Reader, kind: int, count: int) -> None:
    if kind in _SCALARS:
        reader.skip(count * struct.calcsize(_SCALARS[kind]))
        return
    for _ in range(count):
        reader.text(kept=0)


def _tensor(reader: _Reader) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, bytes, offset in the data section."""
    name = reader.text(_LONGEST_NAME)
    dimensions = reader.count("<I", _MOST_DIMENSIONS, "dimensions for one tensor")
    shape = tuple(int(reader.number("<Q")) for _ in range(dimensions))[::-1]
    kind = int(reader.number("<I"))
    offset = int(reader.number("<Q"))
    label, block, size = _TYPES.get(kind, (f"type {kind}", 0, 0))
    values = math.prod(shape)
    if values >= 2**63:
        raise _Broken(f"claims {values} values for one tensor")
    return name, label, shape, -(-values // block) * size if block else 0, offset


def _alignment(metadata: dict[str, str]) -> int:
    text = metadata.get("general.alignment", "32")
    alignment = int(text) if text.isdecimal() and len(text) < 8 else 0
    if alignment < 1:
        raise _Broken(f"has the alignment {text[:20]!r}")
    return alignment


def _placed(
    listed: list[tuple[str, str, tuple[int, ...], int, int]], alignment: int, reader: _Reader
) -> dict[str, TensorInfo]:
    start = -(-reader.place // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, label, shape, size, offset in listed:
        if name in tensors:
            raise _Broken(f"names {name[:80]!r} twice")
        if start + offset + size > reader.size:
            raise _Broken(f"is cut off: {name[:80]!r} passes its end")
        tensors[name] = TensorInfo(label, shape, start + offset, start + offset + size)
    return tensors
