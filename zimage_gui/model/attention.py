"""Unmasked attention behind one function, whichever library computes it.

Knows the optional libraries and their layouts. Must not know what attends to what: no batch of this
project needs a mask, because samples of one batch have equal padded lengths.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zimage_gui.errors import UserError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

BACKENDS = ("torch", "flash", "xformers", "sage")
_PACKAGES = {"flash": "flash_attn", "xformers": "xformers.ops", "sage": "sageattention"}
_INSTALL = {"flash": "flash-attn", "xformers": "xformers", "sage": "sageattention"}


def _torch_kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    if _slow_backward(q_BLHD):
        # autocast would cast right back
        with torch.autocast("cpu", enabled=False):
            return _torch_kernel(q_BLHD.float(), k_BLHD.float(), v_BLHD.float()).to(v_BLHD.dtype)
    out = F.scaled_dot_product_attention(
        q_BLHD.transpose(1, 2), k_BLHD.transpose(1, 2), v_BLHD.transpose(1, 2)
    )
    return out.transpose(1, 2)


def _slow_backward(q_BLHD: Tensor) -> bool:
    """Whether fp32 is the faster way: the CPU's half-precision backward spends a quarter of a millisecond on
    every head, four times the whole fp32 work at 100 tokens and a lot less than it from about 400 on."""
    half = q_BLHD.dtype in (torch.bfloat16, torch.float16)
    return half and q_BLHD.device.type == "cpu" and q_BLHD.requires_grad and q_BLHD.shape[1] < 400


def _flash_kernel(library: Any) -> Kernel:
    def kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        _refuse_fp32("flash", q_BLHD)
        out: Tensor = library.flash_attn_func(q_BLHD, k_BLHD, v_BLHD)
        return out

    return kernel


def _xformers_kernel(library: Any) -> Kernel:
    def kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        out: Tensor = library.memory_efficient_attention(q_BLHD, k_BLHD, v_BLHD)
        return out

    return kernel


def _sage_kernel(library: Any) -> Kernel:
    def kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        _refuse_fp32("sage", q_BLHD)
        if q_BLHD.requires_grad or k_BLHD.requires_grad or v_BLHD.requires_grad:
            raise UserError.one(
                "attn_mode",
                "sage",
                "SageAttention quantises without a backward pass, so it can only generate",
                "train with attn_mode torch, flash or xformers",
            )
        out: Tensor = library.sageattn(q_BLHD, k_BLHD, v_BLHD, tensor_layout="NHD")
        return out

    return kernel


def _refuse_fp32(name: str, q_BLHD: Tensor) -> None:
    if q_BLHD.dtype is torch.float32:
        remedy = "set mixed_precision bf16, or attn_mode torch"
        raise UserError.one(
            "attn_mode", name, "computes in bf16 or fp16 only, and the model is in fp32", remedy
        )


_kernel: Kernel = _torch_kernel


def use_backend(name: str) -> None:
    """Chooses the attention of this process: one of `BACKENDS` ("sdpa" is another name of "torch").

    Raises UserError when the name is unknown or its library is not installed.
    """
    global _kernel
    if name in ("torch", "sdpa"):
        _kernel = _torch_kernel
        return
    if name not in _PACKAGES:
        raise UserError.one("attn_mode", name, f"must be one of {', '.join(BACKENDS)}", "use torch")
    try:
        library = importlib.import_module(_PACKAGES[name])
    except (ImportError, OSError) as error:
        raise UserError.one(
            "attn_mode",
            name,
            f"needs the package {_INSTALL[name]}, which cannot be imported here ({error})",
            f"install it (pip install {_INSTALL[name]}) or use attn_mode torch",
        ) from error
    makers = {"flash": _flash_kernel, "xformers": _xformers_kernel, "sage": _sage_kernel}
    _kernel = makers[name](library)


def attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """softmax(q·kᵀ / sqrt(head_dim))·v over all tokens, without a mask: (B, L, heads, head_dim)."""
    return _kernel(q_BLHD, k_BLHD, v_BLHD)
