"""Single tensors out of model files and into safetensors files, without ever holding a whole model twice.

Knows bytes, dtypes and offsets. Must not know which tensor means what. Reading goes through our own memory
instead of a memory map: no file stays locked, and a file replaced while a model is in use cannot change it.
"""

from __future__ import annotations

import errno
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from zimage_gui.behind import writing_behind
from zimage_gui.errors import UserError
from zimage_gui.files import BITS_OF_DTYPE, TensorInfo, atomic_write, read_header
from zimage_gui.model.keymaps import Source

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")


def read_source(file: BinaryIO, info: TensorInfo, source: Source) -> Tensor:
    """Our tensor out of the file's, in memory of its own: cut and turned as `source` says, dtype as stored.

    Rows are read alone; for columns the whole tensor passes through memory. Raises as `read_tensor` does.
    """
    return _cut(read_tensor(file, info, source.rows), source)


def _cut(stored: Tensor, source: Source) -> Tensor:
    """What a source leaves to do once its rows are read: take its columns, transpose."""
    if source.columns is not None:
        # Cut first and turned then: torch turns a whole matrix five times faster than a part of one.
        stored = stored[:, slice(*source.columns)].contiguous()
    return stored.t().contiguous() if source.transposed else stored


class SourceReader:
    """`read_source` for tensors in the order they have on disk: a matrix whose columns are several of ours is
    read once and held until the next."""

    def __init__(self) -> None:
        self._held: tuple[str, Tensor] | None = None

    def read(self, file: BinaryIO, info: TensorInfo, source: Source) -> Tensor:
        if source.columns is None:
            self._held = None
            return read_source(file, info, source)
        if self._held is None or self._held[0] != source.name:
            self._held = (source.name, read_tensor(file, info))
        return _cut(self._held[1], source)


def read_tensor(file: BinaryIO, info: TensorInfo, rows: tuple[int, int] | None = None) -> Tensor:
    """A tensor (or rows [first, last) of it) as it is stored, in memory of its own.

    Raises UserError when the file has become shorter than its header says.
    """
    shape = info.shape if rows is None else (rows[1] - rows[0], *info.shape[1:])
    row_bytes = (info.end - info.start) // max(info.shape[0], 1) if info.shape else 0
    start = info.start + (rows[0] * row_bytes if rows else 0)
    size = (rows[1] - rows[0]) * row_bytes if rows else info.end - info.start
    buffer = torch.empty(size, dtype=torch.uint8)
    file.seek(start)
    if size and cast(Any, file).readinto(buffer.numpy()) != size:
        raise UserError.one(
            "file", file.name, "became shorter while it was read", "Check the disk and start again"
        )
    return buffer.view(DTYPES[info.dtype]).view(shape)


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: dtype, shape, and the pieces that follow each other in its first dimension."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Sequence[Tensor | Callable[[], Tensor]]


def entry_of(tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
    """Entry of one tensor, cast to `dtype` only while it is written."""
    return Entry(dtype or tensor.dtype, tuple(tensor.shape), (tensor,))


@dataclass(frozen=True)
class RawEntry:
    """A tensor to be written, its bytes made when their turn comes; dtype as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]


def write_tensors(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file atomically, tensor by tensor; equal input gives equal bytes."""

    def chunks(entry: Entry) -> Iterable[memoryview]:
        for piece in entry.pieces:
            tensor = piece if isinstance(piece, Tensor) else piece()
            yield tensor_bytes(tensor.detach().to("cpu", entry.dtype))

    names = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    raw = [
        RawEntry(name, _NAMES[entry.dtype], entry.shape, partial(chunks, entry))
        for name in names
        for entry in (entries[name],)
    ]
    return write_raw(path, raw, metadata)


def write_raw(
    path: Path,
    entries: Sequence[RawEntry],
    metadata: Mapping[str, str] | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Path:
    """Writes a safetensors file atomically, its tensors in the order given, and reads it back.

    on_bytes: called with the length of every chunk; what it raises keeps the file from appearing. Raises
    OSError for a file that reads back differently, and ValueError for a name twice or an entry whose chunks
    are not as long as its shape and dtype say.
    """
    head, infos = _head(entries, metadata)

    def write(file: BinaryIO) -> None:
        file.write(head)
        with writing_behind(file) as put:
            for entry, info in zip(entries, infos.values(), strict=True):
                written = 0
                for chunk in entry.chunks():
                    written += len(chunk)
                    put(chunk)
                    on_bytes(len(chunk))
                if written != info.end - info.start:
                    raise ValueError(f"{entry.name} has {written} bytes instead of {info.end - info.start}")
        if read_header(Path(file.name)).tensors != infos:
            raise OSError(errno.EIO, "the header reads back differently; check the disk")

    return atomic_write(path, write)


def _head(
    entries: Sequence[RawEntry], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The header, and where every tensor will lie in the file."""
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    places: dict[str, TensorInfo] = {}
    offset = 0
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"{entry.name} is given twice")
        end = offset + math.prod(entry.shape) * BITS_OF_DTYPE[entry.dtype] // 8
        places[entry.name] = TensorInfo(entry.dtype, tuple(entry.shape), offset, end)
        table[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    data = 8 + len(header)
    infos = {
        name: replace(info, start=data + info.start, end=data + info.end) for name, info in places.items()
    }
    return struct.pack("<Q", len(header)) + header, infos


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a CPU tensor in row-major order, without a copy when it lies so already."""
    flat = tensor.contiguous().view(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw) if flat.numel() else memoryview(b"")
