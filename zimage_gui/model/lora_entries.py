"""What one adapter does to one weight: the formulas of LoRA, LoHa, LoKr and DoRA, each as a fp32 change of W.

Knows the maths and the shapes. It must not know key names, files or models.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


class Entry(Protocol):
    """The adapter of one Linear with weight (out, in)."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def rank(self) -> int: ...

    def delta(self, weight: Tensor) -> Tensor:
        """fp32 (out, in) to add to `weight`, on its device. Only DoRA looks at the values of `weight`."""
        ...

    def rows(self, start: int, stop: int) -> "Entry":
        """The same adapter restricted to output rows start..stop: one of q, k, v out of a fused qkv."""
        ...


def on_device(entry: Entry, device: torch.device) -> Entry:
    """The same adapter with its tensors on a device, for one that is used again and again."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            return tuple(moved(part) for part in value)
        return on_device(value, device) if hasattr(value, "delta") else value

    adapter: Any = entry
    return replace(adapter, **{item.name: moved(getattr(entry, item.name)) for item in fields(adapter)})  # type: ignore[no-any-return]


def _fp32(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(device=like.device, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: change = alpha/rank · up @ down, down (rank, in), up (out, rank)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def kind(self) -> str:
        return "LoRA"

    @property
    def shape(self) -> tuple[int, int]:
        return (self.up.shape[0], self.down.shape[1])

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self, weight: Tensor) -> Tensor:
        return (_fp32(self.up, weight) @ _fp32(self.down, weight)) * self.scale

    def rows(self, start: int, stop: int) -> "LowRank":
        """Shares `down`."""
        return LowRank(self.down, self.up[start:stop].contiguous(), self.alpha)

    def ranks(self, chosen: slice | Tensor) -> "LowRank":
        """Only these ranks, at the same scale."""
        down = self.down[chosen].contiguous()
        return LowRank(down, self.up[:, chosen].contiguous(), self.scale * len(down))

    def with_alpha(self, alpha: float) -> "LowRank":
        """The same change written with another alpha; the factor moves into `up`, which becomes fp32 where
        its own dtype could not hold the result exactly."""
        if alpha == self.alpha:
            return self
        exact = self.up.float() * (self.alpha / alpha)
        stored = exact.to(self.up.dtype)
        return LowRank(self.down, stored if torch.equal(stored.float(), exact) else exact, alpha)


@dataclass(frozen=True, eq=False)
class LoHa:
    """LoHa: change = alpha/rank · (w1_a @ w1_b) ∘ (w2_a @ w2_b), `_a` (out, rank), `_b` (rank, in)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float

    @property
    def kind(self) -> str:
        return "LoHa"

    @property
    def shape(self) -> tuple[int, int]:
        return (self.w1_a.shape[0], self.w1_b.shape[1])

    @property
    def rank(self) -> int:
        return int(self.w1_b.shape[0])

    def delta(self, weight: Tensor) -> Tensor:
        first = _fp32(self.w1_a, weight) @ _fp32(self.w1_b, weight)
        second = _fp32(self.w2_a, weight) @ _fp32(self.w2_b, weight)
        return first * second * (self.alpha / self.rank)

    def rows(self, start: int, stop: int) -> "LoHa":
        return replace(self, w1_a=self.w1_a[start:stop].contiguous(), w2_a=self.w2_a[start:stop].contiguous())


@dataclass(frozen=True, eq=False)
class LoKr:
    """LoKr: change = scale · w1 ⊗ w2, each factor one matrix or a product of two; scale is alpha/rank, and 1
    when both factors are whole (then producers write any alpha, which means nothing)."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    alpha: float
    first_row: int = 0
    row_count: int | None = None

    @property
    def kind(self) -> str:
        return "LoKr"

    @property
    def shape(self) -> tuple[int, int]:
        whole = self.w1[0].shape[0] * self.w2[0].shape[0]
        return (
            whole if self.row_count is None else self.row_count,
            self.w1[-1].shape[1] * self.w2[-1].shape[1],
        )

    @property
    def rank(self) -> int:
        factors = self.w2 if len(self.w2) == 2 else self.w1
        return int(factors[-1].shape[0]) if len(factors) == 2 else 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    def delta(self, weight: Tensor) -> Tensor:
        first, second = (_product([_fp32(part, weight) for part in factor]) for factor in (self.w1, self.w2))
        whole = torch.kron(first, second) * self.scale
        return whole if self.row_count is None else whole[self.first_row : self.first_row + self.row_count]

    def rows(self, start: int, stop: int) -> "LoKr":
        """A Kronecker product of fewer rows of w1 where the cut falls between blocks, else the whole with a
        window."""
        block = self.w2[0].shape[0]
        if self.row_count is not None or start % block or stop % block:
            return replace(self, first_row=self.first_row + start, row_count=stop - start)
        first = self.w1[0][start // block : stop // block].contiguous()
        return replace(self, w1=(first, *self.w1[1:]))


def _product(factors: list[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


@dataclass(frozen=True, eq=False)
class Dora:
    """DoRA: W' = magnitude · V / ‖V‖ with V = W + change of `inner`; the norm runs over each output row when
    `magnitude` is (out, 1), over each input column when it is (1, in). `spelling` is the key it came from."""

    inner: Entry
    magnitude: Tensor
    spelling: str

    @property
    def kind(self) -> str:
        return "DoRA"

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    def rank(self) -> int:
        return self.inner.rank

    def delta(self, weight: Tensor) -> Tensor:
        base = weight.to(torch.float32)
        direction = base + self.inner.delta(weight)
        over = 1 if self.magnitude.shape[1] == 1 else 0
        norm = torch.linalg.vector_norm(direction, dim=over, keepdim=True).clamp_min(
            torch.finfo(torch.float32).tiny
        )
        changed: Tensor = _fp32(self.magnitude, weight) * direction / norm - base
        return changed

    def rows(self, start: int, stop: int) -> "Dora":
        return Dora(self.inner.rows(start, stop), self.magnitude[start:stop].contiguous(), self.spelling)
