"""Adapters of the fused qkv weight and of its thirds to_q, to_k, to_v: taken apart and put together, exactly.

Knows the maths of stacked weights. It must not know key names or files.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zimage_gui.model.lora_entries import Entry, LoHa, LoKr, LowRank


def split_qkv(entry: Entry) -> list[Entry | None]:
    """The adapters of the three thirds of the rows; None for a third that a LoRA or LoHa leaves unchanged
    while it changes another one.

    A block-diagonal LoRA, which is three LoRAs fused, comes apart into those three at their own rank; in any
    other the three share `down`.
    """
    third = entry.shape[0] // 3
    cuts = [(index * third, (index + 1) * third) for index in range(3)]
    parts: list[Entry] = [entry.rows(*cut) for cut in cuts]
    if isinstance(entry, LowRank):
        ups = [part.up for part in parts if isinstance(part, LowRank)]
        idle = [not bool(up.any()) for up in ups]
        parts = list(_blocks(entry, ups)) if not all(idle) else parts
    elif isinstance(entry, LoHa):
        idle = [not bool(entry.w1_a[a:b].any() and entry.w2_a[a:b].any()) for a, b in cuts]
        parts = list(_loha_blocks(entry, cuts))
    else:
        return list(parts)
    if all(idle):
        return list(parts)
    return [None if nothing else part for part, nothing in zip(parts, idle, strict=True)]


def _blocks(entry: LowRank, ups: Sequence[Tensor]) -> list[LowRank]:
    """The three parts, each with only the ranks that act in its rows."""
    used = torch.stack([up.abs().amax(dim=0) > 0 for up in ups])
    shared = [replace(entry, up=up.contiguous()) for up in ups]
    if int(used.sum(dim=0).max()) > 1:
        return shared
    third = entry.rank // 3
    equal = torch.zeros_like(used)
    for index in range(3):
        equal[index, index * third : (index + 1) * third] = True
    # Equal blocks keep their rank even where a trained column happens to be zero.
    blocks = equal if entry.rank % 3 == 0 and not bool((used & ~equal).any()) else used
    return [part.ranks(mask) if mask.any() else part for part, mask in zip(shared, blocks, strict=True)]


def _loha_blocks(entry: LoHa, cuts: Sequence[tuple[int, int]]) -> list[LoHa]:
    """The three parts, each at a third of the rank where the whole is three LoHas of one rank fused."""
    third = entry.rank // 3
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1) | torch.ones(3, 3, dtype=torch.bool).tril(-1)
    shared = [entry.rows(*cut) for cut in cuts]
    if entry.rank % 3 or entry.w2_b.shape[0] != entry.rank:
        return shared
    for one in (entry.w1_a, entry.w2_a):
        blocks = one.reshape(3, len(one) // 3, 3, third).abs().amax(dim=(1, 3))
        if bool(blocks[mask].any()) or not bool(blocks.any()):
            return shared
    ranks = [slice(index * third, (index + 1) * third) for index in range(3)]
    return [
        LoHa(
            part.w1_a[:, chosen].contiguous(),
            part.w1_b[chosen].contiguous(),
            part.w2_a[:, chosen].contiguous(),
            part.w2_b[chosen].contiguous(),
            entry.alpha / 3,
        )
        for part, chosen in zip(shared, ranks, strict=True)
    ]


def fuse_qkv(parts: Sequence[Entry | None]) -> Entry:
    """One adapter of the stacked weight out of up to three of its thirds, all of one kind.

    Thirds of one fused adapter are put together as they were; any other three become a block-diagonal one of
    the summed rank. Raises TypeError for kinds that cannot be fused without computing a new adapter.
    """
    present = [part for part in parts if part is not None]
    if all(isinstance(part, LowRank) for part in present):
        return _fuse_low([part if isinstance(part, LowRank) else None for part in parts])
    if all(isinstance(part, LoHa) for part in present):
        return _fuse_loha([part if isinstance(part, LoHa) else None for part in parts])
    whole = whole_lokr(parts)
    if whole is None:
        raise TypeError("these adapters cannot be fused")
    return whole


def whole_lokr(parts: Sequence[Entry | None]) -> LoKr | None:
    """The fused LoKr whose thirds `parts` are; None when they are anything else."""
    low = [part for part in parts if isinstance(part, LoKr)]
    if len(low) < 3:
        return None
    first = low[0]
    same = all(
        part.alpha == first.alpha
        and len(part.w1) == len(first.w1)
        and _equal(part.w1[1:] + part.w2, first.w1[1:] + first.w2)
        for part in low[1:]
    )
    if not same:
        return None
    if first.row_count is None:
        shapes = {tuple(part.w1[0].shape) for part in low}
        stacked = torch.cat([part.w1[0] for part in low]) if len(shapes) == 1 else None
        return None if stacked is None else replace(first, w1=(stacked, *first.w1[1:]))
    rows = [(part.first_row, part.row_count) for part in low]
    third = first.row_count
    fits = rows == [(index * third, third) for index in range(3)] and all(
        _equal(part.w1[:1], first.w1[:1]) for part in low
    )
    return replace(first, first_row=0, row_count=None) if fits else None


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def _fuse_low(parts: Sequence[LowRank | None]) -> LowRank:
    low = [part for part in parts if part is not None]
    first = low[0]
    rows = first.up.shape[0]
    if len(low) > 1 and all(part.scale == first.scale and _equal([part.down], [first.down]) for part in low):
        ups = [first.up.new_zeros(first.up.shape) if part is None else part.up for part in parts]
        return LowRank(first.down, torch.cat(ups), first.alpha)
    scale = next((part.scale for part in low if part.scale), 1.0)
    even = [None if part is None else part.with_alpha(scale * part.rank) for part in parts]
    downs = [part.down for part in even if part is not None]
    ups = [first.up.new_zeros(rows, 0) if part is None else part.up for part in even]
    down, up = torch.cat(downs), _block_diagonal(*ups)
    return LowRank(down, up, scale * down.shape[0])


def _fuse_loha(parts: Sequence[LoHa | None]) -> LoHa:
    """Block-diagonal `_a`, stacked `_b`; alpha grows with the rank. Another strength goes into `w1_a`."""
    low = [part for part in parts if part is not None]
    scale = next((part.alpha / part.rank for part in low if part.alpha), 1.0)
    rows = low[0].w1_a.shape[0]
    even = [_loha_of_nothing(low[0], rows) if part is None else _loha_at(part, scale) for part in parts]
    return LoHa(
        _block_diagonal(*[part.w1_a for part in even]),
        torch.cat([part.w1_b for part in even]),
        _block_diagonal(*[part.w2_a for part in even]),
        torch.cat([part.w2_b for part in even]),
        sum(part.rank for part in low) * scale,
    )


def _loha_of_nothing(like: LoHa, rows: int) -> LoHa:
    """Rank 0, for rows that are not changed."""
    a, b = like.w1_a.new_zeros(rows, 0), like.w1_b.new_zeros(0, like.shape[1])
    return LoHa(a, b, a, b, 0.0)


def _loha_at(part: LoHa, scale: float) -> LoHa:
    factor = part.alpha / part.rank / scale
    return part if factor == 1 else replace(part, w1_a=part.w1_a.float() * factor, alpha=scale * part.rank)


def _block_diagonal(*parts: Tensor) -> Tensor:
    """torch.block_diag keeps no types for the checker."""
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return whole
