"""Unmasked attention behind one function, whichever library computes it.

Knows the optional libraries and their layouts. Must not know what attends to what: no batch of this
project needs a mask, because samples of one batch have equal padded lengths.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zimage_gui.errors import UserError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_LARGEST_TABLE = 2**25
"""Weights of one layer that may be kept for the backward pass: 64 MiB."""

BACKENDS = ("torch", "flash", "flash3", "xformers", "sage")
_PACKAGES = {
    "flash": "flash_attn",
    "flash3": "flash_attn_interface",
    "xformers": "xformers.ops",
    "sage": "sageattention",
}
_INSTALL = {"flash": "flash-attn", "flash3": "flash-attn-3", "xformers": "xformers", "sage": "sageattention"}


def _torch_kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    q_BHLD, k_BHLD, v_BHLD = (heads.transpose(1, 2) for heads in (q_BLHD, k_BLHD, v_BLHD))
    if _slow_backward(q_BHLD):
        return _by_products(q_BHLD, k_BHLD, v_BHLD).transpose(1, 2)
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD).transpose(1, 2)


def _slow_backward(q_BHLD: Tensor) -> bool:
    """Whether plain matrix products are the faster way: the CPU's half-precision backward kernel takes twice
    their time at 1000 tokens and five times at 100. They keep a table of all weights, so it must be small."""
    half = q_BHLD.dtype in (torch.bfloat16, torch.float16)
    if not (half and q_BHLD.device.type == "cpu" and q_BHLD.requires_grad):
        return False
    batch, heads, tokens, _ = q_BHLD.shape
    return batch * heads * tokens * tokens <= _LARGEST_TABLE


def _by_products(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # it would do the softmax in fp32
        scores_BHLL = (q_BHLD * q_BHLD.shape[-1] ** -0.5) @ k_BHLD.transpose(-1, -2)
        out_BHLD: Tensor = scores_BHLL.softmax(dim=-1) @ v_BHLD
        return out_BHLD


def _flash_kernel(library: Any, name: str = "flash") -> Kernel:
    def kernel(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        _refuse_fp32(name, q_BLHD)
        found = library.flash_attn_func(q_BLHD, k_BLHD, v_BLHD)
        out: Tensor = found[0] if isinstance(found, tuple) else found  # older ones add the log-sum-exp
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
                "Train with attn_mode torch, flash or xformers",
            )
        out: Tensor = library.sageattn(q_BLHD, k_BLHD, v_BLHD, tensor_layout="NHD")
        return out

    return kernel


def _refuse_fp32(name: str, q_BLHD: Tensor) -> None:
    if q_BLHD.dtype is torch.float32:
        remedy = "Set mixed_precision bf16, or attn_mode torch"
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
        raise UserError.one("attn_mode", name, f"must be one of {', '.join(BACKENDS)}", "Use torch")
    try:
        library = importlib.import_module(_PACKAGES[name])
    except (ImportError, OSError) as error:
        raise UserError.one(
            "attn_mode",
            name,
            f"needs the package {_INSTALL[name]}, which cannot be imported here ({error})",
            f"Install it (pip install {_INSTALL[name]}) or use attn_mode torch",
        ) from error
    makers: dict[str, Callable[[Any], Kernel]] = {
        "flash": _flash_kernel,
        "flash3": partial(_flash_kernel, name="flash3"),
        "xformers": _xformers_kernel,
        "sage": _sage_kernel,
    }
    _kernel = makers[name](library)


def attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """softmax(q·kᵀ / sqrt(head_dim))·v over all tokens, without a mask: (B, L, heads, head_dim)."""
    return _kernel(q_BLHD, k_BLHD, v_BLHD)
