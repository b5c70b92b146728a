"""`convert` from .bpk to .bpk: every tensor as it is, whatever it means, or floats in another number format.

Knows burnpack files and dtypes. Must not know models: any burnpack file may pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from zimage_gui.burnpack import (
    BpkEntry,
    BpkHeader,
    bpk_size,
    copied_entries,
    read_bpk_header,
    write_bpk,
)
from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.engine.convert_model_output import whole
from zimage_gui.engine.convert_model_plan import FLOAT_NAMES
from zimage_gui.engine.convert_model_source import WORDS
from zimage_gui.engine.convert_model_write import Told
from zimage_gui.errors import UserError
from zimage_gui.events import Run
from zimage_gui.files import sweep_temp_files
from zimage_gui.model.keymaps import prefix_of
from zimage_gui.model.recognise import USABLE
from zimage_gui.model.streaming import cast_floats
from zimage_gui.model.tensor_files import DTYPES, tensor_bytes

_FLOATS = {"F64": "F64", "F32": "F32", "Flex32": "F32", "F16": "F16", "BF16": "BF16"}


@dataclass(frozen=True)
class BpkPlan:
    """entries: what is written, in the file's order; bytes: in all."""

    header: BpkHeader
    output: Path
    entries: tuple[BpkEntry, ...]
    bytes: int
    notes: tuple[str, ...] = field(default=())
    folder: bool = False


def plan_bpk(config: ConvertConfig, path: Path, output: Path, part: str | None) -> BpkPlan:
    """What will be written. Raises UserError for a broken file, or options that a .bpk cannot follow."""
    header = read_bpk_header(path, "input")
    if part is not None:
        _refuse_other_part(header, path, part)
    if config.dtype.startswith("fp8"):
        rule = "does not go into a .bpk file"
        raise UserError.one("dtype", config.dtype, rule, "Choose f32, f16 or bf16")
    if config.prefix:
        rule = "cannot be chosen for a .bpk file, whose names are fixed"
        raise UserError.one("prefix", config.prefix, rule, "Leave it out")
    target = FLOAT_NAMES.get(config.dtype)
    copied = copied_entries(path, header)
    entries = tuple(copied if target is None else (_cast_entry(entry, target) for entry in copied))
    notes = []
    packed = sum(tensor.quantised for tensor in header.tensors.values())
    if packed and target is not None:
        notes.append(f"{packed} quantised tensors are copied as they are")
    if header.alignment == "legacy":
        notes.append("The file was written by burn 0.19; the new one is aligned as later versions need it")
    return BpkPlan(header, output, entries, bpk_size(entries, header.metadata, header.scalars), tuple(notes))


def _refuse_other_part(header: BpkHeader, path: Path, part: str) -> None:
    present = [one for one in USABLE if prefix_of(header.tensors, one) is not None]
    if present and part not in present:
        found = " and ".join(WORDS[one] for one in present)
        rule = f"must be a {WORDS[part]}, but this is a {found}"
        raise UserError.one("input", path, rule, f"Leave out model_type, or give a {WORDS[part]}")


def _cast_entry(entry: BpkEntry, target: str) -> BpkEntry:
    if not isinstance(entry.dtype, str) or entry.dtype not in _FLOATS:
        return entry
    if _FLOATS[entry.dtype] == target:
        return replace(entry, dtype=target)
    chunks = partial(_cast_chunks, entry, DTYPES[_FLOATS[entry.dtype]], DTYPES[target])
    return replace(entry, dtype=target, chunks=chunks, size=None)


def _cast_chunks(entry: BpkEntry, stored: torch.dtype, target: torch.dtype) -> Iterator[memoryview]:
    for chunk in _chunks(entry):
        values = torch.frombuffer(bytearray(chunk), dtype=stored)
        yield tensor_bytes(cast_floats(values, target, entry.name))


def _chunks(entry: BpkEntry) -> Iterable[bytes | memoryview]:
    return entry.chunks() if callable(entry.chunks) else entry.chunks


def write_bpk_plan(plan: BpkPlan, run: Run) -> list[Path]:
    """Writes and reads back as `write_plan` does."""
    sweep_temp_files(plan.output.parent)
    told = Told(run, plan.output.name, plan.bytes)
    with whole(plan.output, folder=False) as temp:
        write_bpk(temp, plan.entries, plan.header.metadata, plan.header.scalars, told.add)
    return [plan.output]
