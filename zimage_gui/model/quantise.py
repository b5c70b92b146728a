"""Frozen linear layers whose weight is kept in 8 or 4 bits and opened anew for every product.

Knows three number formats and the layer. Must not know which layers of a model take one, files or adapters'
kinds. fp8: e4m3 with a scale per 64 numbers of a row (musubi-tuner's form), or with any scale a file brings;
int8: a scale per row; nf4: four bits per number, a scale per 64 (Dettmers et al. 2023, arXiv 2305.14314).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zimage_gui.model.fp8 import block_scales, dequantised, quantised
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.low_rank import Open

Quant = Literal["none", "fp8", "int8", "nf4"]

_CHUNK = 1 << 20
"""Numbers quantised at once, so that no second fp32 copy of a weight exists; a multiple of _BLOCK."""
_BLOCK = 64
_INT8_LARGEST = 127
_SMALLEST_SCALE = 1e-8
# The 16 levels of QLoRA's NormalFloat4, ascending.
_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def bytes_per_number(quant: Quant, dtype: torch.dtype) -> float:
    """Memory of one number of a quantised weight with its share of the scales; `dtype` is the model's."""
    sizes = {
        "none": dtype.itemsize,
        "fp8": 1 + dtype.itemsize / _BLOCK,
        "int8": 1.0,
        "nf4": 0.5 + 4 / _BLOCK,
    }
    return float(sizes[quant])


def packed(weight: Tensor, quant: Quant, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes, scale) of a weight (out, in) of any float type; `dtype` is that of the model, in which fp8's
    scales are kept."""
    if quant == "nf4":
        pieces = [_nf4_packed(chunk) for chunk in torch.split(weight.reshape(-1), _CHUNK)]
    else:
        rows = torch.split(weight, max(1, _CHUNK // weight.shape[1]))
        pieces = [
            _fp8_packed(chunk.float(), dtype) if quant == "fp8" else _int8_packed(chunk.float())
            for chunk in rows
        ]
    codes, scales = zip(*pieces, strict=True)
    return torch.cat(codes), torch.cat(scales)


def opened(quant: Quant, codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that (codes, scale) stand for."""
    if quant != "nf4":
        return dequantised(codes, scale, dtype)
    flat: Tensor = _open_nf4(codes, scale, dtype)
    return flat[: shape[0] * shape[1]].view(shape)


def _fp8_packed(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = block_scales(rows, dtype)
    return quantised(rows, scale), scale


def _int8_packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = (rows.abs().amax(dim=1, keepdim=True) / _INT8_LARGEST).clamp_min_(_SMALLEST_SCALE)
    return (rows / scale).round_().to(torch.int8), scale


def _nf4_packed(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers to a byte, the first in its upper half, as bitsandbytes lays them out; the last block is
    filled up with zeros."""
    blocks = functional.pad(flat.float(), (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scale = blocks.abs().amax(dim=1)
    levels = torch.tensor(_LEVELS, device=flat.device)
    middles = (levels[1:] + levels[:-1]) / 2
    unit = blocks / scale.clamp_min(_SMALLEST_SCALE)[:, None]
    codes = torch.bucketize(unit, middles, out_int32=True).to(torch.uint8).view(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1], scale


def _nf4_opened(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Without any kernel: both numbers of a byte from a table of 256 pairs."""
    levels = torch.tensor(_LEVELS, device=codes.device, dtype=dtype)
    pairs = torch.cartesian_prod(levels, levels)
    return functional.embedding(codes.int(), pairs).view(-1, _BLOCK).mul_(scale[:, None]).view(-1)


_Kernel = Callable[[Tensor, Tensor, torch.dtype], Tensor]
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _nf4_kernel(device: str) -> _Kernel | None:
    """bitsandbytes' way to open nf4, several times faster, where it is installed and runs on that device."""
    try:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        levels = torch.tensor(_LEVELS, device=device)

        def kernel(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
            state = QuantState(scale, torch.Size([len(scale) * _BLOCK]), levels, _BLOCK, "nf4", dtype)  # type: ignore[no-untyped-call]
            result: Tensor = dequantize_4bit(codes[:, None], state)
            return result.view(-1)

        trial = torch.zeros(_BLOCK, device=device)
        ours = _nf4_opened(*_nf4_packed(trial), torch.float32)
        return kernel if torch.equal(kernel(*_nf4_packed(trial), torch.float32), ours) else None
    except Exception:  # a foreign library's native code: whatever fails there, the slow way is always open
        return None


@torch.library.custom_op("zimage_gui::open_nf4", mutates_args=())
def _open_nf4(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """One operation for torch.compile, which would otherwise trace the search for a kernel."""
    kernel = _nf4_kernel(codes.device.type) if dtype in _KERNEL_TYPES else None
    return _nf4_opened(codes, scale, dtype) if kernel is None else kernel(codes, scale, dtype)


@_open_nf4.register_fake
def _open_nf4_shape(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(len(scale) * _BLOCK, dtype=dtype, device=codes.device)


class _FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ, dx = dy W; autograd keeps what W is stored as, never W.

    torch.compile counts the parameters of `forward` where no gradient is asked for: with `*stored` it would
    take x for ctx.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, open_: Open, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.open = open_
        return functional.linear(x, open_((codes, scale), x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        stored: Sequence[Tensor] = ctx.saved_tensors
        grad_x = grad @ ctx.open(stored, grad.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None


class QuantLinear(nn.Linear):
    """A frozen Linear without bias. Changes that were put on it (`added`: adapters with their strengths) act
    on the opened weight, so that they can be taken off again."""

    def __init__(self, quant: Quant, codes: Tensor, scale: Tensor, shape: tuple[int, int]) -> None:
        nn.Module.__init__(self)  # not Linear's own: it would make the weight that must not exist
        self.quant = quant
        self.out_features, self.in_features = shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", None)
        self.added: tuple[tuple[Entry, float], ...] = ()

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """What the weight is kept as: what a step reads it from, and all that autograd may keep."""
        return self._buffers["codes"], self._buffers["scale"]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in fp32, made anew for every reading: writing into it changes nothing."""
        return self.open(self.stored, torch.float32)

    def open(self, stored: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The weight in a dtype, changes included, from what it is stored as."""
        codes, scale = stored
        shape = (self.out_features, self.in_features)
        if not self.added:
            return opened(self.quant, codes, scale, shape, dtype)
        weight = opened(self.quant, codes, scale, shape, torch.float32)
        changes = [entry.delta(weight).mul_(multiplier) for entry, multiplier in self.added]
        for change in changes:
            weight += change
        return weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = _FrozenLinear.apply
        return apply(x, self.open, *self.stored)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.quant}"


def stored_bytes(model: nn.Module) -> int:
    """Memory of all parameters and buffers of a model."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """How much more memory the quantised layers of a model would take in `dtype`."""
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    whole = sum(layer.out_features * layer.in_features for layer in layers) * dtype.itemsize
    return whole - sum(stored_bytes(layer) for layer in layers)
