"""LoHa: a change that is the elementwise product of two matrices of low rank.

Knows that one kind; must not know files or optimizers.

    ΔW = s · (w1_a w1_b) ∘ (w2_a w2_b)          (Hyeon-Woo et al. 2021, arXiv 2108.06098)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zimage_gui.model.adapter import Adapter, LoraSpec, rank_misfit
from zimage_gui.model.lora_entries import Entry, LoHa

_FIRST_WIDTH = 0.1
"""Standard deviation of w1_a at the start; the `_b` factors have 1 and w2_a is 0 (as LyCORIS begins)."""


class _HadamardLinear(torch.autograd.Function):
    """y = x ΔWᵀ. Only x and the factors are kept: both products are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x_NI, w1_a, w1_b, w2_a, w2_b)
        ctx.scale = scale
        return x_NI @ _change(w1_a, w1_b, w2_a, w2_b, scale).to(x_NI.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_NO @ _change(w1_a, w1_b, w2_a, w2_b, ctx.scale).to(grad_NO.dtype)
        grad_OI = (grad_NO.t() @ x_NI).to(w1_a.dtype).mul_(ctx.scale)
        one_OI = grad_OI * (w2_a @ w2_b)
        two_OI = grad_OI.mul_(w1_a @ w1_b)
        return grad_x, one_OI @ w1_b.t(), w1_a.t() @ one_OI, two_OI @ w2_b.t(), w2_a.t() @ two_OI, None


def _change(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float) -> Tensor:
    return (w1_a @ w1_b).mul_(w2_a @ w2_b).mul_(scale)


class LohaLinear(Adapter):
    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(base, spec, generator)
        rows, columns, rank, device = base.out_features, base.in_features, spec.dim, base.weight.device

        def normal(shape: tuple[int, int], width: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).mul_(width).to(device))

        self.w1_a = normal((rows, rank), _FIRST_WIDTH)
        self.w1_b = normal((rank, columns), 1.0)
        self.w2_a = nn.Parameter(torch.zeros(rows, rank, device=device))
        self.w2_b = normal((rank, columns), 1.0)

    def _adapted(self, x_NI: Tensor, samples: int) -> Tensor:
        """There is no inner activation here: values of the input are left out instead, and a rank of the
        first product for all samples of the step at once."""
        y_NO: Tensor = self.base(x_NI)
        w1_a: Tensor = self.w1_a
        if self.training and self.spec.dropout > 0:
            x_NI = functional.dropout(x_NI, self.spec.dropout)
        if self.training and self.spec.rank_dropout > 0:
            keep = 1.0 - self.spec.rank_dropout
            w1_a = w1_a * ((torch.rand(w1_a.shape[1], device=w1_a.device) < keep) / keep)
        apply: Callable[..., Tensor] = _HadamardLinear.apply
        factor = self.scale * self.multiplier
        return y_NO + apply(x_NI, w1_a, self.w1_b, self.w2_a, self.w2_b, factor).to(y_NO.dtype)

    def entry(self) -> Entry:
        w1_a, w1_b, w2_a, w2_b = (factor.detach() for factor in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))
        return LoHa(w1_a, w1_b, w2_a, w2_b, self.spec.written_alpha)

    def misfit(self, entry: Entry) -> str:
        if not isinstance(entry, LoHa):
            return f"is a {entry.kind} there"
        return rank_misfit(max(entry.w1_b.shape[0], entry.w2_b.shape[0]), self.spec.dim)

    @torch.no_grad()
    def start_from(self, entry: Entry) -> None:
        assert isinstance(entry, LoHa)
        ratio = entry.alpha / entry.rank / self.scale
        self.w1_a.zero_()
        self.w2_a.zero_()
        for own_a, own_b, a, b in (
            (self.w1_a, self.w1_b, entry.w1_a.to(self.w1_a) * ratio, entry.w1_b),
            (self.w2_a, self.w2_b, entry.w2_a.to(self.w2_a), entry.w2_b),
        ):
            own_a[:, : a.shape[1]] = a
            own_b[: b.shape[0]] = b.to(own_b)
