"""Numbers of scaled fp8 (e4m3): quantising rows of a weight, and giving them their values back.

Knows the arithmetic only, and that no scale is infinite. A stored number q with scale s means q · s,
computed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.errors import UserError
from zimage_gui.model.fp8_names import block_scale_shape

LARGEST = torch.finfo(torch.float8_e4m3fn).max
# Of a block that is all zero; musubi-tuner's floor.
_SMALLEST_SCALE = 1e-8


def dequantised(rows: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of rows of a weight, rounded once to `dtype`; `scale` holds one number, or one per block of each
    of these rows."""
    factor = scale.to(torch.float32)
    values = rows.to(dtype)
    if factor.numel() == 1:
        return values.mul_(factor.reshape(1))  # of no dimension it would be rounded to `dtype` first
    blocks = values.view(len(rows), factor.numel() // len(rows), -1)
    return blocks.mul_(factor.view(len(rows), -1, 1)).view(rows.shape)


def checked_scale(scale: Tensor, weight: str, option: str, path: Path) -> Tensor:
    """The scale of a stored weight; raises UserError when one of its numbers is infinite or NaN."""
    if not bool(torch.isfinite(scale).all()):
        rule = f"has an infinite or undefined fp8 scale for {weight}"
        raise UserError.one(option, path, rule, "Download the model again, or use its bf16 file")
    return scale


def block_scales(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales of fp32 rows as musubi-tuner lays them out, in the dtype in which they are stored."""
    shape = block_scale_shape(tuple(rows.shape))
    largest = rows.view(len(rows), shape[1], -1).abs().amax(dim=2)
    return (largest / LARGEST).clamp_min_(_SMALLEST_SCALE).to(dtype).view(shape)


def tensor_scale(chunks: Iterable[Tensor]) -> Tensor:
    """The one fp32 scale of a weight that comes in row chunks, as ComfyUI stores it."""
    largest = max((float(chunk.abs().amax()) for chunk in chunks), default=0.0)
    return torch.tensor(max(largest / LARGEST, _SMALLEST_SCALE), dtype=torch.float32)


def quantised(rows: Tensor, scale: Tensor) -> Tensor:
    """fp32 rows as e4m3 with the scale as it is stored, so that its own rounding costs nothing."""
    factor = scale.to(torch.float32)
    if factor.numel() == 1:
        scaled = rows / factor.reshape(())
    else:
        scaled = (rows.view(len(rows), factor.numel() // len(rows), -1) / factor.view(len(rows), -1, 1)).view(
            rows.shape
        )
    return scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
