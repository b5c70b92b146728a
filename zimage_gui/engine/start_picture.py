"""The picture that another begins from, and the mask that says what of it is made anew.

Knows picture files and how they become pixels of the wanted size. Must not know models or the sampling loop.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zimage_gui.engine.dataset.buckets import fit
from zimage_gui.engine.dataset.images import PictureProblem, read_info, read_pixels
from zimage_gui.engine.dataset.resize import resize_and_crop
from zimage_gui.errors import Problem, UserError

_WHITE = 128
"""Grey level from which a mask's pixel counts as white."""
_WORTH_TELLING = 0.005
"""Share of the picture that a crop may cut away in silence."""


def start_problems(image: Path, mask: Path | None) -> list[Problem]:
    """What keeps the two files from being used, from their headers."""
    problems, sizes = [], []
    for option, path in (("image_path", image), ("mask_path", mask)):
        if path is None:
            continue
        try:
            sizes.append(read_info(path).size)
        except PictureProblem as error:
            problems.append(Problem(option, str(path), str(error), "Choose another picture"))
    if not problems and len(set(sizes)) > 1:
        (width, height), (across, down) = sizes
        rule = f"is {across}x{down}, and the picture {width}x{height}"
        problems.append(Problem("mask_path", str(mask), rule, "Give a mask of the picture's size"))
    return problems


def _pixels(path: Path, option: str, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) uint8 of `size` (width, height), and what was done to the picture for it."""
    try:
        info, pixels = read_pixels(path)
    except PictureProblem as error:
        raise UserError.one(option, str(path), str(error), "Choose another picture") from error
    plan = fit(info.size, size)
    notes = list(info.notes)
    if plan.resized != plan.original:
        notes.append(f"scaled from {info.size[0]}x{info.size[1]} to {plan.resized[0]}x{plan.resized[1]}")
    if plan.lost_share > _WORTH_TELLING:
        notes.append(f"cropped to {size[0]}x{size[1]}, which cuts {plan.lost_share:.0%} of it away")
    return resize_and_crop(pixels, plan), notes


def picture_tensor(path: Path, height: int, width: int) -> tuple[Tensor, list[str]]:
    """(1, 3, H, W) fp32 in [-1, 1], and what was done to the picture, in words."""
    pixels, notes = _pixels(path, "image_path", (width, height))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1, notes


def mask_tensor(path: Path, height: int, width: int) -> Tensor:
    """(1, 1, H/8, W/8), 1 where the picture is made anew: the top left pixel of each latent's 8 x 8 decides,
    as in diffusers' pipeline (nearest)."""
    pixels, _ = _pixels(path, "mask_path", (width, height))
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return torch.from_numpy((grey >= _WHITE)[::8, ::8].astype(np.float32))[None, None]
