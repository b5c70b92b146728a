"""A frozen linear layer and the low-rank adapter beside it as one step of the backward pass.

Knows one formula. Must not know modules, ranks or dropout. Both passes add the adapter's product inside the
matrix product, so that no second tensor of the output's or the input's size is written or read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROW_BYTES = 64

Open = Callable[[Sequence[Tensor], torch.dtype], Tensor]
"""The weight (out, in) in a dtype, from the tensors it is stored as."""


class _LowRankLinear(torch.autograd.Function):
    """y = x Wᵀ + s·h Bᵀ with h = x Aᵀ; W (O, I) is frozen, A (R, I) and B (O, R) are trained, s a number.

    With dh = s·dy B:  dx = dy W + dh A,  dA = dhᵀ x,  dB = s·dyᵀ h. W is opened for each pass: only what it
    is stored as is kept in between.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float, opened: Open, *stored: Tensor
    ) -> Tensor:
        weight_OI = opened(stored, x_NI.dtype)
        down, up = down_RI.to(x_NI.dtype), up_OR.to(x_NI.dtype)
        h_NR = x_NI @ down.t()
        y_NO = _product(x_NI, weight_OI.t())
        ctx.save_for_backward(x_NI, down_RI, up_OR, h_NR, *stored)
        ctx.scale, ctx.opened = scale, opened
        return y_NO.addmm_(h_NR, up.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, down_RI, up_OR, h_NR, *stored = ctx.saved_tensors
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[2]:
            grad_up = (grad_NO.t() @ h_NR).mul_(ctx.scale).to(up_OR.dtype)
        dh_NR = (grad_NO @ up_OR.to(grad_NO.dtype)).mul_(ctx.scale)
        if ctx.needs_input_grad[1]:
            grad_down = (dh_NR.t() @ x_NI).to(down_RI.dtype)
        if ctx.needs_input_grad[0]:
            weight_OI = ctx.opened(stored, grad_NO.dtype)
            grad_x = _product(grad_NO, weight_OI)
            grad_x.addmm_(dh_NR, down_RI.to(grad_NO.dtype))
        return grad_x, grad_down, grad_up, None, None, *(None for _ in stored)


def _as_stored(stored: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return stored[0]


def low_rank_linear(x_NI: Tensor, weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """x Wᵀ + scale·(x Aᵀ) Bᵀ in x's and W's common dtype; no gradient for W."""
    return opened_low_rank_linear(x_NI, down_RI, up_OR, scale, _as_stored, weight_OI)


def opened_low_rank_linear(
    x_NI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float, opened: Open, *stored: Tensor
) -> Tensor:
    """The same with a W that `opened` makes of what it is stored as, in each pass anew."""
    apply: Callable[..., Tensor] = _LowRankLinear.apply
    return apply(x_NI, down_RI, up_OR, scale, opened, *stored)


def _product(a_NK: Tensor, b_KM: Tensor) -> Tensor:
    """a b with rows that begin at multiples of 64 bytes: matrix products take up to half as long again to
    write rows that do not, such as rows of 682 floats. Compiled code places its rows itself."""
    if torch.compiler.is_compiling():
        return a_NK @ b_KM
    step, width = _ROW_BYTES // a_NK.element_size(), b_KM.shape[1]
    rows = a_NK.new_empty(len(a_NK), -(-width // step) * step)[:, :width]
    return torch.mm(a_NK, b_KM, out=rows)
