"""Adapters made to fit a form that has no name for their kind: LoHa and LoKr as LoRA, with what that costs.

Knows which form says which kind. It must not know files or names of tensors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from zimage_gui.model.lora_dialects import QKV
from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_forms import FUSED_FORMS, LOW_RANK_FORMS, Form
from zimage_gui.model.lora_lowrank import Spectrum, of_dense, of_factors, spectrum
from zimage_gui.model.lora_qkv import whole_lokr


@dataclass(frozen=True)
class Change:
    """A module that is written as a LoRA of `rank` instead of its own `kind`. error: the norm of what was
    lost over the norm of the whole."""

    path: str
    kind: str
    rank: int
    error: float


@dataclass(frozen=True)
class Fitted:
    entries: dict[str, Entry]
    changes: tuple[Change, ...]


def fitted(entries: Mapping[str, Entry], form: Form, lokr_rank: int | None = None) -> Fitted:
    """The same changes of the weights in kinds that `form` can say. LoHa and LoKr become LoRAs of all ranks
    that count in fp32, or of at most `lokr_rank` for a LoKr."""
    result = dict(entries)
    changes: list[Change] = []
    if form in FUSED_FORMS:
        for block, parts in _mixed_blocks(entries, form):
            found = _stacked(parts)
            low, error = found.cut(lokr_rank if any(isinstance(p, LoKr) for p in parts.values()) else None)
            rows = low.up.shape[0] // 3
            for index, name in enumerate(QKV):
                if f"{block}.{name}" in entries:
                    result[f"{block}.{name}"] = low.rows(index * rows, (index + 1) * rows)
            kinds = " and ".join(sorted({part.kind for part in parts.values()}))
            changes.append(Change(f"{block}.attention.qkv", kinds, low.rank, error))
    for path, entry in result.items():
        if _needs_low_rank(entry, form):
            low, error = spectrum(entry).cut(lokr_rank if isinstance(entry, LoKr) else None)
            result[path] = low
            changes.append(Change(path, entry.kind, low.rank, error))
    return Fitted(result, tuple(changes))


def _needs_low_rank(entry: Entry, form: Form) -> bool:
    if isinstance(entry, LoKr) and entry.row_count is not None:
        return form != "comfy"  # there its three thirds become the whole again
    return form in LOW_RANK_FORMS and isinstance(entry, LoHa | LoKr)


def _mixed_blocks(entries: Mapping[str, Entry], form: Form) -> Iterator[tuple[str, dict[str, Entry]]]:
    """Blocks whose q, k and v cannot be fused as they are."""
    blocks = dict.fromkeys(path.rpartition(".attention.")[0] for path in entries if path.endswith(QKV))
    for block in blocks:
        parts = {name: entries[path] for name in QKV if (path := f"{block}.{name}") in entries}
        if any(isinstance(part, Dora) for part in parts.values()):
            continue
        kinds = {type(part) for part in parts.values()}
        fits = kinds == {LowRank} or (
            form == "comfy" and (kinds == {LoHa} or whole_lokr([parts.get(name) for name in QKV]) is not None)
        )
        if not fits:
            yield block, parts


def _stacked(parts: Mapping[str, Entry]) -> Spectrum:
    """Of the change of the fused weight."""
    rows, columns = next(iter(parts.values())).shape
    ups, downs = [], []
    for name in QKV:
        part = parts.get(name)
        if part is None:
            ups.append(torch.zeros(rows, 0, dtype=torch.float64))
            continue
        found = spectrum(part)
        u, v = found.take(found.rank_for(None, None))
        ups.append(u * found.s[: u.shape[1]])
        downs.append(v)
    down = torch.cat(downs)
    up: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    if down.shape[0] < min(3 * rows, columns):
        return of_factors(up, down)
    return of_dense(up @ down, None, None)
