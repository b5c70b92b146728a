"""LoKr: a change that is a Kronecker product of a small matrix and a large one, the large one whole or of low
rank.

Knows that one kind; must not know files or optimizers. The product is never made: a row of the input is a
small matrix, which is multiplied from both sides.

    ΔW = s · w1 ⊗ w2,  w2 = w2_a w2_b          (Yeh et al. 2023, arXiv 2309.14859)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zimage_gui.model.adapter import Adapter, LoraSpec, drawn, rank_misfit
from zimage_gui.model.lora import product_norm
from zimage_gui.model.lora_entries import Entry, LoKr
from zimage_gui.model.lora_sizes import split


class LokrLinear(Adapter):
    """w1 (o1, i1); w2 (o2, i2), or w2_a (o2, rank) and w2_b (rank, i2). A whole w2 has no rank: then the
    scale is 1. `full` makes it whole, and so does a rank that would save nothing."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(base, spec, generator)
        device = base.weight.device
        rows, columns = split(base.out_features, spec.factor), split(base.in_features, spec.factor)
        if spec.outer is not None:
            rows = (spec.outer[0], base.out_features // spec.outer[0])
            columns = (spec.outer[1], base.in_features // spec.outer[1])
        self.whole = spec.full or (spec.outer is None and 2 * spec.dim >= max(rows[1], columns[1]))
        self.w1 = drawn((rows[0], columns[0]), generator, device)
        if self.whole:
            self.scale = 1.0
            self.w2 = nn.Parameter(torch.zeros(rows[1], columns[1], device=device))
        else:
            self.w2_a = drawn((rows[1], spec.dim), generator, device)
            self.w2_b = nn.Parameter(torch.zeros(spec.dim, columns[1], device=device))

    def _adapted(self, x_NI: Tensor, samples: int) -> Tensor:
        """With a whole w2 dropout acts on what its rows give, which stand in the place of ranks."""
        y_NO: Tensor = self.base(x_NI)
        dtype = x_NI.dtype
        inner = self.w2 if self.whole else self.w2_b
        parts_MJ = x_NI.reshape(-1, inner.shape[1])
        h_MR = self._dropped(functional.linear(parts_MJ, inner.to(dtype)), samples)
        h_NRK = h_MR.view(len(x_NI), self.w1.shape[1], -1).transpose(1, 2)
        h_NKR = functional.linear(h_NRK, self.w1.to(dtype)).transpose(1, 2)
        if not self.whole:
            h_NKR = functional.linear(h_NKR, self.w2_a.to(dtype))
        changed_NO = h_NKR.reshape(y_NO.shape).to(y_NO.dtype)
        return torch.add(y_NO, changed_NO, alpha=self.scale * self.multiplier)

    @torch.no_grad()
    def norm(self) -> Tensor:
        sizes = [torch.linalg.vector_norm(self.w1)]
        sizes.append(self.w2.detach().norm() if self.whole else product_norm(self.w2_a, self.w2_b))
        return torch.stack(sizes).prod() * self.scale

    def entry(self) -> Entry:
        large = (self.w2,) if self.whole else (self.w2_a, self.w2_b)
        return LoKr((self.w1.detach(),), tuple(part.detach() for part in large), self.spec.written_alpha)

    def misfit(self, entry: Entry) -> str:
        if not isinstance(entry, LoKr):
            return f"is a {entry.kind} there"
        if entry.row_count is not None:
            return "is a part of a fused LoKr that cannot be cut"
        found, own = outer_shape(entry), tuple(self.w1.shape)
        if found != own:
            return f"has a w1 of {found[0]} x {found[1]} there and {own[0]} x {own[1]} is trained"
        if self.whole:
            return ""
        return "has a whole w2 there" if len(entry.w2) == 1 else rank_misfit(entry.rank, self.spec.dim)

    @torch.no_grad()
    def start_from(self, entry: Entry) -> None:
        assert isinstance(entry, LoKr)
        first, second = ([part.to(self.w1) for part in factor] for factor in (entry.w1, entry.w2))
        small = first[0] if len(first) == 1 else first[0] @ first[1]
        self.w1.copy_(small * (entry.scale / self.scale))
        if self.whole:
            self.w2.copy_(second[0] if len(second) == 1 else second[0] @ second[1])
        else:
            rank = len(second[1])
            self.w2_a[:, :rank] = second[0]
            self.w2_b[:rank] = second[1]


def outer_shape(entry: LoKr) -> tuple[int, int]:
    return entry.w1[0].shape[0], entry.w1[-1].shape[1]
