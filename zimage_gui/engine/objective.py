"""What a training step minimises: which noise level a sample gets, and its noise. `losses.py` has the loss.

Knows the maths of flow matching and nothing about models, files or optimizers.

One convention everywhere: sigma in [0, 1], 1 is pure noise, 0 the clean picture.
`min_timestep`/`max_timestep` are 1000 * sigma. (The first seed's `sigma` mode counts its steps from the noisy
end, so that its range and its densities are mirrored there; here they are not.)
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from zimage_gui.engine.losses import LossSpec
from zimage_gui.model.flow import shift_sigma

SAMPLINGS = ("sigma", "uniform", "sigmoid", "shift", "flux_shift", "logsnr", "qwen_shift")
WEIGHTINGS = ("none", "logit_normal", "mode", "cosmap", "sigma_sqrt")
# exp(mu) is the shift; mu is linear in the number of image tokens between these two points (tokens, mu)
_SHIFT_LINES = {"flux_shift": ((256, 0.5), (4096, 1.15)), "qwen_shift": ((256, 0.5), (8192, 0.9))}
_REJECTION_ROUNDS = 64
_EDGE = 1e-7  # the inverse of the normal distribution is infinite at 0 and 1


@dataclass(frozen=True)
class Objective(LossSpec):
    """How noise levels are drawn and losses weighed. Field names are the options' names."""

    timestep_sampling: str = "shift"
    discrete_flow_shift: float = 2.0
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: float = 0.0
    max_timestep: float = 1000.0
    preserve_distribution_shape: bool = False
    num_timestep_buckets: int | None = None
    noise_offset: float = 0.0


@dataclass(frozen=True)
class Draws:
    """The randomness of a batch: standard normal and uniform numbers (B, rounds), and noise (B, C, H, W), all
    fp32."""

    normal: Tensor
    uniform: Tensor
    noise: Tensor


def stream_seed(seed: int, epoch: int, index: int) -> int:
    """63-bit generator seed of one sample; unrelated for neighbouring triples."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=2)
def strata(seed: int, epoch: int, samples: int, buckets: int) -> Tensor:
    """The part of the draw, 0 to buckets - 1, of each of an epoch's samples. Each part comes as often as any
    other, or once more; which sample gets which is random."""
    slots = -(-samples // buckets) * buckets
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, -1))  # no sample has this number
    return torch.randperm(slots, generator=generator)[:samples] % buckets


def draw(
    objective: Objective,
    seed: int,
    epoch: int,
    indices: list[int],
    shape_CHW: tuple[int, ...],
    samples: int | None = None,
) -> Draws:
    """Randomness for the samples at `indices` of an epoch of so many `samples` (needed for strata only).
    Pure: a sample gets the same numbers in any batch, on any device, after any resume. Drawn on the CPU.
    """
    rounds = _REJECTION_ROUNDS if objective.preserve_distribution_shape else 1
    normal, uniform, noise = (torch.empty(len(indices), *tail) for tail in ((rounds,), (rounds,), shape_CHW))
    for row, index in enumerate(indices):
        generator = torch.Generator().manual_seed(stream_seed(seed, epoch, index))
        normal[row].normal_(generator=generator)
        uniform[row].uniform_(generator=generator)
        noise[row].normal_(generator=generator)
        if objective.noise_offset:  # drawn last, so that nothing else changes
            noise[row] += objective.noise_offset * torch.randn(shape_CHW[0], 1, 1, generator=generator)
    if (buckets := objective.num_timestep_buckets or 0) > 1:
        assert samples is not None
        part = strata(seed, epoch, samples, buckets)[indices]
        uniform[:, 0] = (part + uniform[:, 0]) / buckets
        # n = sqrt(2) erfinv(2u - 1) is standard normal. Draws after a rejected first one stay free.
        normal[:, 0] = torch.special.ndtri(uniform[:, 0].clamp(_EDGE, 1 - _EDGE))
    return Draws(normal, uniform, noise)


def sample_sigmas(objective: Objective, draws: Draws, image_tokens: int) -> Tensor:
    """Noise levels (B,) fp32 in [min_timestep, max_timestep] / 1000."""
    low, high = objective.min_timestep / 1000, objective.max_timestep / 1000
    sigma = _density(objective, draws.normal, draws.uniform, image_tokens)
    if not objective.preserve_distribution_shape:
        return sigma[:, 0] * (high - low) + low
    inside = (sigma >= low) & (sigma <= high)
    first = inside.int().argmax(
        dim=1, keepdim=True
    )  # 0 where no draw fell inside: then the first one is clamped
    return sigma.gather(1, first)[:, 0].clamp(low, high)


def _density(objective: Objective, normal: Tensor, uniform: Tensor, image_tokens: int) -> Tensor:
    mode = objective.timestep_sampling
    if mode == "uniform":
        return uniform
    if mode == "sigma":
        return _sd3_density(objective, normal, uniform)
    if mode == "logsnr":  # sigma = sigmoid(-x / 2) has log SNR 2 log((1 - sigma) / sigma) = x
        return torch.sigmoid(-(objective.logit_mean + objective.logit_std * normal) / 2)
    sigma = torch.sigmoid(objective.sigmoid_scale * normal)
    if mode == "sigmoid":
        return sigma
    if mode == "shift":
        return shift_sigma(sigma, objective.discrete_flow_shift)
    if mode in _SHIFT_LINES:
        return shift_sigma(sigma, resolution_shift(mode, image_tokens))
    raise ValueError(f"unknown timestep_sampling {mode!r}")


def _sd3_density(objective: Objective, normal: Tensor, uniform: Tensor) -> Tensor:
    """Densities of Esser et al. 2024 (arXiv 2403.03206), section 3.1, where t = 1 is noise as here."""
    if objective.weighting_scheme == "logit_normal":
        return torch.sigmoid(objective.logit_mean + objective.logit_std * normal)
    if objective.weighting_scheme == "mode":
        mode = 1 - uniform - objective.mode_scale * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)
        return mode.clamp(0, 1)  # a mode_scale outside [-1, 1.75] would leave the interval
    return uniform


def resolution_shift(mode: str, image_tokens: int) -> float:
    """The shift for a picture of `image_tokens` = (height / 16)(width / 16)."""
    (x0, y0), (x1, y1) = _SHIFT_LINES[mode]
    return math.exp(y0 + (y1 - y0) * (image_tokens - x0) / (x1 - x0))
