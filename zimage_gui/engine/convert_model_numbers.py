"""The bytes of every tensor to write, made from the source chunk by chunk when their turn comes.

Knows casting, fusing, turning, quantising and the changes of LoRAs. Must not know files to write or options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zimage_gui.engine.convert_model_plan import OutTensor
from zimage_gui.engine.convert_model_source import ModelSource
from zimage_gui.errors import UserError
from zimage_gui.model.fp8 import block_scales, quantised, tensor_scale
from zimage_gui.model.fp8_names import MARK
from zimage_gui.model.lora_entries import Dora, Entry, LoKr, LowRank
from zimage_gui.model.streaming import (
    Rows,
    Scratch,
    TensorReader,
    all_finite,
    cast_floats,
    gathered,
    pieces,
    turned,
)
from zimage_gui.model.tensor_files import DTYPES, RawEntry, tensor_bytes

_CHANGED_AT_ONCE = 1 << 20
"""Bytes as stored; in fp32, with a change and its factors, several times that."""
Changes = Mapping[str, list[tuple[Entry, float]]]
"""{our name of a weight: the adapters that change it, each with its strength}."""


@dataclass
class Numbers:
    """Makes the tensors of a plan. `changes` are added in fp32, before any rounding or quantising."""

    source: ModelSource
    reader: TensorReader
    changes: Changes

    def __post_init__(self) -> None:
        self._scratch = Scratch()
        self._scales: dict[str, Tensor] = {}

    def entries(self, tensors: Sequence[OutTensor]) -> list[RawEntry]:
        """The tensors in order, each with its scale behind it: that is known once the tensor is made."""
        found = []
        for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
            chunks = partial(self._bytes, tensor, following)
            found.append(RawEntry(tensor.name, tensor.dtype, tensor.shape, chunks))
            if tensor.scale is not None:
                name, dtype, shape = tensor.scale
                found.append(RawEntry(name, dtype, shape, partial(self._scale_bytes, name)))
        return found

    def _bytes(self, tensor: OutTensor, following: OutTensor | None) -> Iterator[memoryview]:
        """The system is told to read the next tensor while this one is worked on, then to forget this:
        its place in the page cache is better used for the result, which is read back."""
        if following is not None:
            self.reader.expect(self._stored(following))
        for chunk in self._chunks(tensor):
            yield tensor_bytes(chunk)
        self.reader.forget(self._stored(tensor) - (self._stored(following) if following else set()))

    def _stored(self, tensor: OutTensor) -> set[str]:
        """Names in the file of what the tensor is made of."""
        if tensor.copied:
            return {tensor.copied} - {MARK}
        return {self.source.sources[part].name for part in tensor.parts}

    def _scale_bytes(self, name: str) -> Iterator[memoryview]:
        yield tensor_bytes(self._scales.pop(name))

    def _chunks(self, tensor: OutTensor) -> Rows:
        if tensor.copied == MARK:
            return pieces(torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype]))
        if tensor.copied:
            return self.reader.stored(tensor.copied)
        if tensor.fp8:
            return self._quantised(tensor)
        dtype = DTYPES[tensor.dtype]
        cast = partial(cast_floats, dtype=dtype, name=tensor.name)
        if not tensor.transposed:
            return map(cast, self._rows(tensor))
        sources = [self.source.sources[part] for part in tensor.parts]
        changed = any(part in self.changes for part in tensor.parts)
        if not changed and all(source.transposed for source in sources):
            return map(cast, self.reader.turned_rows(sources))
        return self._turned(tensor, cast, dtype)

    def _turned(self, tensor: OutTensor, cast: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Rows:
        """The narrower of the two number formats is what is held while a matrix is turned."""
        columns, rows = tensor.shape
        sources = [self.source.sources[part] for part in tensor.parts]
        widest = max(self.reader.dtype_of(source).itemsize for source in sources)
        mixed = len({self.reader.dtype_of(source) for source in sources}) > 1
        if mixed or dtype.itemsize <= widest or any(part in self.changes for part in tensor.parts):
            return turned(map(cast, self._rows(tensor)), rows, columns, self._scratch)
        return map(cast, turned(self._rows(tensor), rows, columns, self._scratch))

    def _quantised(self, tensor: OutTensor) -> Rows:
        assert tensor.scale is not None  # the plan gives every quantised weight a scale
        name, dtype, shape = tensor.scale
        if tensor.fp8 == "comfy":
            scale = tensor_scale(self._finite_rows(tensor))
            for chunk in self._rows(tensor):
                yield quantised(chunk.float(), scale)
            self._scales[name] = scale.to(DTYPES[dtype])
            return
        scales = []
        for values in self._finite_rows(tensor):
            scales.append(block_scales(values, DTYPES[dtype]))
            yield quantised(values, scales[-1])
        self._scales[name] = torch.cat(scales).reshape(shape)

    def _finite_rows(self, tensor: OutTensor) -> Rows:
        """fp32 rows to quantise: one number that is none would spoil all that share its scale."""
        for chunk in self._rows(tensor):
            values = chunk.float()
            if not all_finite(values):
                rule = f"cannot be made of {tensor.name}, which holds infinity or NaN"
                remedy = "Choose bf16 or f32, or download the model again"
                raise UserError.one("dtype", f"fp8_{tensor.fp8}", rule, remedy)
            yield values

    def _rows(self, tensor: OutTensor) -> Rows:
        for part in tensor.parts:
            if part in self.changes:
                yield from self._changed(part)
            else:
                yield from self.reader.rows(self.source.sources[part])

    def _changed(self, part: str) -> Rows:
        """Rows of a weight with all adapters added, in fp32. Each is made for the weight as it was."""
        adapters = self.changes[part]
        source = self.source.sources[part]
        steps = [_row_step(entry) for entry, _ in adapters]
        chunks: Iterable[Tensor]
        if None in steps:
            shape = source.shape_of(self.source.info(source.name).shape)
            chunks = [gathered(self.reader.rows(source), shape)]
        else:
            chunks = self.reader.rows(source, max(step or 1 for step in steps), _CHANGED_AT_ONCE)
        adders = [_adder(entry, multiplier, part) for entry, multiplier in adapters]
        start = 0
        for chunk in chunks:
            changed = chunk.to(torch.float32, copy=True)
            for add in adders:
                add(changed, chunk, start)
            _refuse_infinite(changed, chunk, part)
            yield from pieces(changed)
            start += len(chunk)


Adder = Callable[[Tensor, Tensor, int], object]
"""Adds an adapter's change to fp32 rows: (the rows, the rows as stored, number of the first)."""


def _adder(entry: Entry, multiplier: float, name: str) -> Adder:
    """A plain LoRA goes as one product straight into the rows: a third of the time of a change by itself."""
    if not isinstance(entry, LowRank):

        def add(rows: Tensor, stored: Tensor, start: int) -> object:
            inner = entry if entry.shape[0] == len(rows) else entry.rows(start, start + len(rows))
            return rows.add_(inner.delta(stored) * multiplier)

        return add
    up, down, factor = entry.up.float(), entry.down.float(), entry.scale * multiplier
    if abs(factor) > torch.finfo(torch.float32).max:
        raise _infinite(name)
    return lambda rows, stored, start: rows.addmm_(up[start : start + len(rows)], down, alpha=factor)


def _row_step(entry: Entry) -> int | None:
    """How many rows of an adapter are cheap to make together; None: only all of them."""
    if isinstance(entry, Dora):
        return None if entry.magnitude.shape[0] == 1 else _row_step(entry.inner)
    if isinstance(entry, LoKr):
        return None if entry.row_count is not None else entry.w2[0].shape[0]
    return 1


def _refuse_infinite(changed: Tensor, base: Tensor, name: str) -> None:
    if not all_finite(changed) and all_finite(base.float()):
        raise _infinite(name)


def _infinite(name: str) -> UserError:
    rule = f"make infinite or undefined numbers of {name}"
    return UserError.one("lora_weight", "", rule, "Lower lora_multiplier; if it is low, a LoRA is damaged")
