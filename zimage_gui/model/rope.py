"""Rotary positions of Z-Image: three axes (sequence, row, column); pairs of features are turned.

Knows the angles and how a head is turned by them. Must not know blocks, padding or weights.
"""

from functools import lru_cache

import torch
from torch import Tensor


def caption_positions(tokens: int) -> Tensor:
    """(tokens, 3) int64: caption tokens, pad rows included, stand at (1..tokens, 0, 0)."""
    positions = torch.zeros(tokens, 3, dtype=torch.int64)
    positions[:, 0] = torch.arange(1, tokens + 1)
    return positions


def image_positions(rows: int, columns: int, caption_tokens: int, padded_tokens: int) -> Tensor:
    """(padded_tokens, 3) int64: the picture stands just behind the padded caption on the first axis.

    Pad rows stay at (0, 0, 0), as in the official model.
    """
    positions = torch.zeros(padded_tokens, 3, dtype=torch.int64)
    picture = positions[: rows * columns]
    picture[:, 0] = caption_tokens + 1
    picture[:, 1] = torch.arange(rows).repeat_interleave(columns)
    picture[:, 2] = torch.arange(columns).repeat(rows)
    return positions


def rotations(positions: Tensor, axes_dims: tuple[int, ...], theta: float) -> Tensor:
    """Cosine and sine of the angles p_a·theta^(-2k/d_a), axis after axis: (tokens, head_dim/2, 2) fp32.

    Frequencies and angles are computed in float64 and rounded once to float32, so that no table length
    limits the picture's size.
    """
    angles = []
    for axis, size in enumerate(axes_dims):
        frequency = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(torch.outer(positions[:, axis].double(), frequency).float())
    angle = torch.cat(angles, dim=-1)
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle))


@lru_cache(maxsize=32)
def rope_tables(
    rows: int,
    columns: int,
    padded_image: int,
    caption_tokens: int,
    axes_dims: tuple[int, ...],
    theta: float,
    device: torch.device,
) -> Tensor:
    """Rotations of the whole sequence [picture, caption]: (padded_image + caption_tokens, 1, head_dim/2, 2).

    Cached by shape: a run sees a handful of buckets. Built outside inference mode, because a tensor made
    inside it could later not be saved for a backward pass.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        positions = torch.cat(
            [image_positions(rows, columns, caption_tokens, padded_image), caption_positions(caption_tokens)]
        )
        return rotations(positions, axes_dims, theta).unsqueeze(1).to(device)


def rotate(heads_BLHD: Tensor, rope_L1C2: Tensor) -> Tensor:
    """Turns the interleaved pairs (x[2i], x[2i+1]) of every head; computed in fp32, returned in x's dtype."""
    pairs = heads_BLHD.float().reshape(*heads_BLHD.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # inductor makes no code for complex numbers
        (x, y), (cos, sin) = pairs.unbind(-1), rope_L1C2.unbind(-1)
        turned = torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope_L1C2))
    return turned.flatten(-2).type_as(heads_BLHD)
