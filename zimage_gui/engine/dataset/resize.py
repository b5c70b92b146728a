"""Scaling of pixels: exact area average when a picture shrinks, Lanczos when it grows, then the crop.

Knows uint8 arrays of shape (height, width, 3). Must not know files, captions or why a size was chosen.
The area average follows OpenCV's INTER_AREA, which musubi-tuner uses, down to its rounding: latents made here
and there then agree. Pillow's BOX filter differs from it by up to 80 levels at edges.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zimage_gui.engine.dataset.buckets import Fit, Size

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SLIVER = 1e-3
"""OpenCV ignores a source pixel that is covered by less than this share."""


def resize_and_crop(pixels: Pixels, fit: Fit) -> Pixels:
    """(H, W, 3) uint8 of the original size -> (bucket height, bucket width, 3) uint8, contiguous."""
    height, width = pixels.shape[:2]
    if (width, height) != fit.original:
        raise ValueError(f"the picture is {width}x{height}, the plan was made for {fit.original}")
    if fit.scale > 1:
        grown = Image.fromarray(pixels).resize(fit.resized, Image.Resampling.LANCZOS)
        pixels = np.asarray(grown, dtype=np.uint8)
    else:
        pixels = area_average(pixels, fit.resized)
    across, down = fit.bucket
    return np.ascontiguousarray(pixels[fit.top : fit.top + down, fit.left : fit.left + across])


def area_average(pixels: Pixels, size: Size) -> Pixels:
    """Shrink (H, W, C) uint8 to `size` (width, height): every pixel is the mean of the area that it
    covers.
    """
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    across, down = 1 / (size[0] / width), 1 / (size[1] / height)
    if across == int(across) and down == int(down):
        return _whole_blocks(pixels, int(across), int(down), size)
    rows = _shrink_rows(pixels, size[1], down)
    columns = _shrink_rows(np.ascontiguousarray(rows.transpose(1, 0, 2)), size[0], across)
    return np.clip(np.rint(columns.transpose(1, 0, 2)), 0, 255).astype(np.uint8)


def _whole_blocks(pixels: Pixels, across: int, down: int, size: Size) -> Pixels:
    """Blocks of whole pixels. OpenCV rounds 2x2 blocks half up and all others half to even, in float32."""
    blocks = pixels[: size[1] * down, : size[0] * across].reshape(size[1], down, size[0], across, -1)
    totals = blocks.sum(axis=(1, 3), dtype=np.int32)
    if across == down == 2:
        rounded: Pixels = ((totals + 2) >> 2).astype(np.uint8)
    else:
        means = totals.astype(np.float32) * np.float32(1 / (across * down))
        rounded = np.rint(means).astype(np.uint8)
    return rounded


def _shrink_rows(rows: Any, count: int, scale: float) -> Floats:
    """Area average along the first axis of an array of numbers, from len(rows) to `count` rows."""
    length = len(rows)
    start = np.arange(count) * scale
    end = start + scale
    cell = np.minimum(scale, length - start)
    last = np.minimum(np.floor(end).astype(np.int64), length - 1)
    first = np.minimum(np.ceil(start).astype(np.int64), last)
    head = np.where(first - start > _SLIVER, (first - start) / cell, 0).astype(np.float32)
    share = np.minimum(np.minimum(end - last, 1), cell)
    tail = np.where(end - last > _SLIVER, share / cell, 0).astype(np.float32)
    whole = (1 / cell).astype(np.float32)
    shape = (count,) + (1,) * (rows.ndim - 1)
    total: Floats = rows[np.maximum(first - 1, 0)] * head.reshape(shape)
    for step in range(int((last - first).max(initial=0))):
        weight = np.where(first + step < last, whole, np.float32(0))
        total += rows[np.minimum(first + step, length - 1)] * weight.reshape(shape)
    total += rows[last] * tail.reshape(shape)
    return total
