"""Any adapter as a sum of rank-one changes, largest first, and cut down to a rank or to a part of its energy.

Knows singular values. It must not know files, names or models. Everything is computed in fp64 from the
factors; a dense matrix is only made where an adapter is not of low rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank

ROUNDING = 1e-7
"""Singular values below this part of the largest are lost in fp32 anyway."""

_SMALL = 1024
_EXTRA = 16
_PASSES = 4


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A change of a weight as u @ diag(s) @ v: `s` (k) falling, `take(n)` gives the first n columns of u
    (out, n) and rows of v (n, in). `missed` is the sum of the squared singular values that are not in `s`,
    where only the largest were computed."""

    s: Tensor
    take: Callable[[int], tuple[Tensor, Tensor]]
    shape: tuple[int, int]
    missed: float = 0.0

    @property
    def energy(self) -> float:
        """The sum of all squared singular values: the squared Frobenius norm of the change."""
        return float(self.s.double().square().sum()) + self.missed

    def rank_for(self, rank: int | None, energy: float | None) -> int:
        """The rank that keeps `energy` (a part of 1) and is at most `rank`; with neither, the whole."""
        squares = self.s.double().square()
        kept = int((self.s > ROUNDING * self.s[:1].sum()).sum())
        if energy is not None:
            short = squares.cumsum(0) < energy * self.energy * (1 - 1e-12)
            kept = min(kept, int(short.sum()) + 1)
        return max(1, kept if rank is None else min(rank, kept))

    def cut(self, rank: int | None = None, energy: float | None = None) -> tuple[LowRank, float]:
        """The LoRA of the largest ranks in fp32, both factors of the same size, and what was lost: the
        Frobenius norm of the difference over that of the whole."""
        kept = self.rank_for(rank, energy)
        if not self.energy:
            rows, columns = self.shape
            return LowRank(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0), 0.0
        u, v = self.take(kept)
        root = self.s[:kept].sqrt()
        lost = (float(self.s[kept:].double().square().sum()) + self.missed) / self.energy
        low = LowRank((root[:, None] * v).float().contiguous(), (u * root).float().contiguous(), float(kept))
        return low, lost**0.5


def spectrum(entry: Entry) -> Spectrum:
    """Of an adapter's change at strength 1. Raises TypeError for a DoRA, whose change depends on the base."""
    if isinstance(entry, Dora):
        raise TypeError("the change of a DoRA depends on the weight below it")
    if isinstance(entry, LowRank):
        return of_factors(entry.up.double() * entry.scale, entry.down.double())
    if isinstance(entry, LoHa):
        return _of_loha(entry)
    if not isinstance(entry, LoKr):
        raise TypeError(f"no spectrum of {entry.kind}")
    whole = _of_kronecker(entry)
    if entry.row_count is None:
        return whole
    kept = whole.rank_for(None, None)
    u, v = whole.take(kept)
    return of_factors((u * whole.s[:kept])[entry.first_row : entry.first_row + entry.row_count], v)


def of_factors(up: Tensor, down: Tensor) -> Spectrum:
    """Of up @ down without making it: QR of both, and the SVD of the small core between them."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    u, s, v = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)

    def take(count: int) -> tuple[Tensor, Tensor]:
        return q_up @ u[:, :count], v[:count] @ q_down.mT

    return Spectrum(s, take, (up.shape[0], down.shape[1]))


def of_dense(change: Tensor, rank: int | None, energy: float | None) -> Spectrum:
    """Of a matrix, with as many singular values as `rank` or `energy` asks for. Beyond 1024 rows or columns
    by subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061), which costs a few products instead
    of a whole SVD; what it misses counts as lost."""
    shortest = min(change.shape)
    wanted = shortest if rank is None else min(rank, shortest)
    total = float(change.double().square().sum())
    if shortest <= _SMALL:
        return _whole(change)
    guess = wanted if rank is not None else 64
    while True:
        size = min(shortest, guess + _EXTRA)
        if size > shortest // 2:
            return _whole(change)
        found = _subspace(change, size, total)
        enough = energy is None or float(found.s[:guess].double().square().sum()) >= energy * total
        if enough or guess >= wanted:
            return found
        guess = min(wanted, guess * 2)


def _whole(change: Tensor) -> Spectrum:
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    return Spectrum(s, lambda count: (u[:, :count], v[:count]), _sizes(change))


def _subspace(change: Tensor, size: int, total: float) -> Spectrum:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(change.shape[1], size, generator=generator).to(change)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(change.mT @ torch.linalg.qr(change @ basis)[0])[0]
    q = torch.linalg.qr(change @ basis)[0]
    u, s, v = torch.linalg.svd((q.mT @ change).double(), full_matrices=False)

    def take(count: int) -> tuple[Tensor, Tensor]:
        return q.double() @ u[:, :count], v[:count]

    return Spectrum(s, take, _sizes(change), max(0.0, total - float(s.square().sum())))


def _sizes(change: Tensor) -> tuple[int, int]:
    return (change.shape[0], change.shape[1])


def _of_loha(entry: LoHa) -> Spectrum:
    """The elementwise product of two low-rank matrices has the rank of both multiplied: its columns are all
    products of their columns."""
    w1_a, w1_b, w2_a, w2_b = (part.double() for part in (entry.w1_a, entry.w1_b, entry.w2_a, entry.w2_b))
    if w1_b.shape[0] * w2_b.shape[0] > min(entry.shape):
        change = (w1_a @ w1_b) * (w2_a @ w2_b) * (entry.alpha / entry.rank)
        return _whole(change)
    up = (w1_a[:, :, None] * w2_a[:, None, :]).flatten(1)
    down = (w1_b[:, None, :] * w2_b[None, :, :]).flatten(0, 1)
    return of_factors(up * (entry.alpha / entry.rank), down)


def _of_kronecker(entry: LoKr) -> Spectrum:
    """The singular values of w1 ⊗ w2 are all products of theirs, and the vectors likewise."""
    (u1, s1, v1), (u2, s2, v2) = (_factor_svd(factor) for factor in (entry.w1, entry.w2))
    s, order = (s1[:, None] * s2[None, :] * abs(entry.scale)).flatten().sort(descending=True)
    sign = -1.0 if entry.scale < 0 else 1.0

    def take(count: int) -> tuple[Tensor, Tensor]:
        first, second = order[:count] // len(s2), order[:count] % len(s2)
        u = (u1[:, None, first] * u2[None, :, second]).flatten(0, 1)
        v = (v1[first][:, :, None] * v2[second][:, None, :]).flatten(1)
        return u * sign, v

    rows = entry.w1[0].shape[0] * entry.w2[0].shape[0]
    return Spectrum(s, take, (rows, v1.shape[1] * v2.shape[1]))


def _factor_svd(factor: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    if len(factor) == 2:
        part = of_factors(factor[0].double(), factor[1].double())
        u, v = part.take(len(part.s))
        return u, part.s, v
    u, s, v = torch.linalg.svd(factor[0].double(), full_matrices=False)
    return u, s, v
