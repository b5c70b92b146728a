"""The gate of the feed-forward part, with a backward pass of its own.

Knows one formula. Must not know layers. Written out, the gate keeps only its two inputs, which are matrix
products and dear to compute again; autograd would keep silu(a) too.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SwiGLU(torch.autograd.Function):
    """y = silu(a)·b with silu(a) = a·σ(a);  dL/da = g·b·silu'(a),  dL/db = g·silu(a)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = torch.ops.aten.silu_backward(grad * b, a)
        if ctx.needs_input_grad[1]:
            grad_b = F.silu(a).mul_(grad)
        return grad_a, grad_b


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a)·b, element by element; both have one shape and dtype."""
    if torch.compiler.is_compiling():  # a compiler merges it with its neighbours and chooses what is kept
        return F.silu(a) * b
    if not torch.is_grad_enabled():  # a custom function costs a sixth of a small gate
        return F.silu(a).mul_(b)
    apply: Callable[[Tensor, Tensor], Tensor] = _SwiGLU.apply
    return apply(a, b)
