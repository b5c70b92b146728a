"""Our tensors out of a checkpoint in row chunks, so that no model is ever in memory.

Knows reading, turning, casting and undoing fp8. Must not know layouts, options or files to write. A chunk is
never written to again: it may still wait for the disk when the next one is made. Only what must be turned
(burn keeps matrices transposed) is held as a whole, one matrix at a time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from zimage_gui.errors import UserError
from zimage_gui.files import TensorInfo
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.fp8 import dequantised
from zimage_gui.model.fp8_names import scale_grid
from zimage_gui.model.keymaps import Source
from zimage_gui.model.tensor_files import DTYPES, read_tensor

CHUNK = 2 << 20
"""Bytes read at once: large enough for the disk, small enough for the processor's cache."""
_LEARNT = 31 << 20
_WORDS = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
# Numbers are turned as integers of the same width.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Rows = Iterator[Tensor]


def keep_memory() -> None:
    """Makes the memory of a chunk serve the next. glibc gives memory back to the system as soon as twice the
    largest block it has seen freed (up to 32 MB) lies unused, and fresh pages cost more than most casts: a
    fifth of the processor time of a conversion's making. Elsewhere this changes nothing.
    """
    torch.empty(_LEARNT, dtype=torch.uint8)


class Scratch:
    """Memory for one turned matrix, used again for the next: fresh pages cost more than the turning."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        size = rows * columns * dtype.itemsize
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(dtype).view(rows, columns)


def turned(chunks: Iterable[Tensor], rows: int, columns: int, scratch: Scratch) -> Rows:
    """The transpose (columns, rows) of a matrix (rows, columns) that comes in row chunks."""
    whole: Tensor | None = None
    done = 0
    for chunk in chunks:
        if whole is None:
            whole = scratch.matrix(columns, rows, chunk.dtype)
        _turn_into(whole[:, done : done + len(chunk)], chunk.contiguous())
        done += len(chunk)
    if whole is not None:
        # Copies: the next matrix takes this one's memory.
        yield from (piece.clone() for piece in pieces(whole))


def _turn_into(target: Tensor, matrix: Tensor) -> None:
    integers = _INTEGERS[matrix.dtype.itemsize]
    place, source = target.view(integers), matrix.view(integers)
    even = not any(number % 2 for number in (matrix.shape[1], matrix.stride(0), matrix.storage_offset()))
    if integers == torch.int16 and even:
        # Two neighbours are turned as one number of twice the width and then told apart.
        pairs = _transposed(source.view(torch.int32))
        place[0::2].copy_(pairs)
        place[1::2].copy_(pairs.bitwise_right_shift_(16))
    else:
        place.copy_(_transposed(source))


def _transposed(matrix: Tensor) -> Tensor:
    """Transpose of a contiguous matrix of integers.

    To shuffle M groups of N channels is to transpose an (M, N) matrix, and for 32 bits, with the channels
    last in memory, torch does that by vector instructions that its other transposes lack: several times
    faster. The numbers are moved, never computed with, so that they may pass for floats.
    """
    rows, columns = matrix.shape
    if matrix.dtype != torch.int32 or not matrix.numel():
        return matrix.t().contiguous()
    size = matrix.numel()
    channels_last = matrix.view(torch.float32).as_strided((1, size, 1, 1), (size, 1, size, size))
    shuffled = torch.nn.functional.channel_shuffle(channels_last, rows)
    return shuffled.view(torch.int32).view(columns, rows)


def pieces(tensor: Tensor) -> Rows:
    """A tensor in memory, in row chunks."""
    if tensor.dim() == 0:
        yield tensor
        return
    for start, stop in spans(0, len(tensor), tensor.numel() // max(len(tensor), 1) * tensor.itemsize):
        yield tensor[start:stop]


def spans(
    first: int, last: int, row_bytes: int, multiple: int = 1, chunk: int = CHUNK
) -> Iterator[tuple[int, int]]:
    """Row ranges of about `chunk` bytes, each a multiple of so many rows but the last."""
    step = max(1, chunk // max(row_bytes, 1) // multiple) * multiple
    for start in range(first, last, step):
        yield start, min(start + step, last)


class TensorReader:
    """Open files of a checkpoint. scales: {weight: its fp8 scale}."""

    def __init__(self, checkpoint: Checkpoint, scales: dict[str, str]) -> None:
        self._checkpoint = checkpoint
        self._scales = scales
        self._open = contextlib.ExitStack()
        self._files: dict[Path, BinaryIO] = {}
        self._scratch = Scratch()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def stored(self, name: str) -> Rows:
        """A tensor of the file exactly as it is stored."""
        info = self._info(name)
        yield from self._ranges(name, 0, info.shape[0] if info.shape else 1, as_stored=True)

    def rows(self, source: Source, multiple: int = 1, chunk: int = CHUNK) -> Rows:
        """Our tensor in row chunks of a multiple of so many rows; fp8 with a scale comes as fp32.

        chunk: bytes read at once, where nothing is turned."""
        shape = self._info(source.name).shape
        if not source.transposed:
            first, last = source.rows or (0, shape[0] if shape else 1)
            for read in self._ranges(source.name, first, last, multiple, chunk):
                yield read if source.columns is None else read[:, slice(*source.columns)]
            return
        columns = source.columns or (0, shape[1])
        first, last = source.rows or (0, shape[0])
        chunks = (read[:, slice(*columns)] for read in self._ranges(source.name, first, last))
        whole = turned(chunks, last - first, columns[1] - columns[0], self._scratch)
        yield from whole if multiple == 1 else _regrouped(whole, multiple)

    def turned_rows(self, sources: list[Source]) -> Rows:
        """Transpose of our tensors one below the other, each of which lies transposed on disk: their columns
        stand side by side, and nothing is turned.
        """
        shapes = [self._info(source.name).shape for source in sources]
        row_bytes = sum(self._row_bytes(name) for name in {source.name for source in sources})
        for start, stop in spans(0, shapes[0][0], row_bytes):
            read = {name: self._read(name, start, stop) for name in {source.name for source in sources}}
            parts = [
                read[s.name][:, slice(*(s.columns or (0, n[1])))]
                for s, n in zip(sources, shapes, strict=True)
            ]
            yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def dtype_of(self, source: Source) -> torch.dtype:
        """Of the chunks that `rows` gives."""
        return torch.float32 if source.name in self._scales else DTYPES[self._info(source.name).dtype]

    def _info(self, name: str) -> TensorInfo:
        return self._checkpoint.places[name].info

    def _row_bytes(self, name: str) -> int:
        info = self._info(name)
        return (info.end - info.start) // max(info.shape[0], 1) if info.shape else info.end - info.start

    def _ranges(
        self,
        name: str,
        first: int,
        last: int,
        multiple: int = 1,
        chunk: int = CHUNK,
        as_stored: bool = False,
    ) -> Rows:
        for start, stop in spans(first, last, self._row_bytes(name), multiple, chunk):
            yield self._read(name, start, stop, as_stored)

    def _read(self, name: str, start: int, stop: int, as_stored: bool = False) -> Tensor:
        chunk = self._raw(name, start, stop)
        if as_stored or name not in self._scales:
            return chunk
        scale_name = self._scales[name]
        scale = self._info(scale_name).shape
        grid = scale_grid(self._info(name).shape, scale)
        rows = (0, scale[0]) if scale and grid == (1, 1) else (start, stop)
        return dequantised(chunk, self._raw(scale_name, *rows))

    def _raw(self, name: str, start: int, stop: int) -> Tensor:
        info = self._info(name)
        return read_tensor(self._file(name), info, (start, stop) if info.shape else None)

    def _file(self, name: str) -> BinaryIO:
        path = self._checkpoint.places[name].file
        if path not in self._files:
            self._files[path] = self._open.enter_context(path.open("rb"))
            _advise(self._files[path], "POSIX_FADV_SEQUENTIAL")
        return self._files[path]

    def expect(self, names: Iterable[str]) -> None:
        """These tensors are read next: the system may begin now."""
        self._advise(names, "POSIX_FADV_WILLNEED")

    def forget(self, names: Iterable[str]) -> None:
        """These tensors are not read again: the system need not keep them in memory."""
        self._advise(names, "POSIX_FADV_DONTNEED")

    def _advise(self, names: Iterable[str], advice: str) -> None:
        for name in names:
            info = self._info(name)
            _advise(self._file(name), advice, info.start, info.end - info.start)


def _advise(file: BinaryIO, advice: str, start: int = 0, size: int = 0) -> None:
    """Tells the system what will be done with a part of the file, or with all of it."""
    if hasattr(os, "posix_fadvise"):  # Windows and macOS have no such call
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), start, size, getattr(os, advice))


def _regrouped(chunks: Rows, multiple: int) -> Rows:
    """The same rows in chunks of a multiple of so many."""
    kept: list[Tensor] = []
    for chunk in chunks:
        kept.append(chunk)
        whole = sum(map(len, kept)) // multiple * multiple
        if whole:
            joined = torch.cat(kept)
            yield joined[:whole]
            kept = [joined[whole:]] if len(joined) > whole else []
    if kept:
        yield torch.cat(kept)


def gathered(chunks: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """All rows in one tensor of its own, in `shape`."""
    found = [chunk.clone() for chunk in chunks]
    whole = found[0] if len(found) == 1 else torch.cat(found)
    return whole.reshape(shape) if math.prod(shape) == whole.numel() else whole


def cast_floats(chunk: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A chunk in another number format. Raises UserError naming the tensor when that cannot hold a number."""
    if chunk.dtype == dtype:
        return chunk
    # fp16 by way of fp32: several times faster than from bf16 at once
    cast = (chunk.to(torch.float32) if dtype == torch.float16 else chunk).to(dtype)
    largest = torch.finfo(dtype).max
    if largest < torch.finfo(chunk.dtype).max and not all_finite(cast):
        lost = int((~torch.isfinite(cast) & torch.isfinite(chunk)).sum())
        if lost:
            wider = "Choose bf16 or f32" if dtype == torch.float16 else "Choose a wider one"
            rule = f"cannot hold {lost} numbers of {name}: they lie beyond {largest:.6g}"
            raise UserError.one("dtype", _WORDS[dtype], rule, wider)
    return cast


def all_finite(tensor: Tensor) -> bool:
    """What `isfinite().all()` says, at thirty times its speed for fp16."""
    return tensor.numel() == 0 or all(math.isfinite(float(end)) for end in torch.aminmax(tensor))
