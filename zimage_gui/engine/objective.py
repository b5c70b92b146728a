"""What a training step minimises: which noise level a sample gets, and its noise. `losses.py` has the loss.

Knows the maths of flow matching and nothing about models, files or optimizers.

One convention everywhere: sigma in [0, 1], 1 is pure noise, 0 the clean picture.
`min_timestep`/`max_timestep` are 1000 * sigma. (The first seed's `sigma` mode counts its steps from the noisy
end, so that its range and its densities are mirrored there; here they are not.)
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from zimage_gui.engine.losses import LossSpec
from zimage_gui.model.flow import shift_sigma

SAMPLINGS = (
    "sigma", "uniform", "sigmoid", "shift", "flux_shift", "logsnr", "qwen_shift",
    "flux2_shift", "krea2_shift", "ideogram4_shift", "qinglong_flux", "qinglong_qwen",
)  # fmt: skip
WEIGHTINGS = ("none", "logit_normal", "mode", "cosmap", "sigma_sqrt")
# exp(mu) is the shift; mu is linear in the number of image tokens between these two points (tokens, mu)
_SHIFT_LINES = {
    "flux_shift": ((256, 0.5), (4096, 1.15)),
    "flux2_shift": ((64, 0.5), (1024, 1.15)),  # the same line over latent cells, four to a token here
    "krea2_shift": ((256, 0.5), (6400, 1.15)),
    "qwen_shift": ((256, 0.5), (8192, 0.9)),
}
MIXTURES = {"qinglong_flux": ("flux_shift", 0.79, 0.90), "qinglong_qwen": ("qwen_shift", 0.95, 0.95)}
"""Sampling -> that of a first share of the samples; up to a second share logsnr; beyond it logsnr of
`_CLEAN`."""
_CLEAN = (5.36, 1.0)  # mean and standard deviation of a log SNR: nearly clean pictures
_IDEOGRAM_STD, _IDEOGRAM_LIMITS = 1.5, (-7.5, 9.0)  # of the logit
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
        stratified = (part + uniform[:, 0]) / buckets
        # A mixture chooses by the uniform number, which must then not tell the normal one.
        mixture = objective.timestep_sampling in MIXTURES
        uniform[:, 0] = torch.special.ndtr(normal[:, 0]) if mixture else stratified
        # n = sqrt(2) erfinv(2u - 1) is standard normal. Draws after a rejected first one stay free.
        normal[:, 0] = torch.special.ndtri(stratified.clamp(_EDGE, 1 - _EDGE))
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
    if mode == "logsnr":
        return _of_log_snr(normal, objective.logit_mean, objective.logit_std)
    if mode == "ideogram4_shift":
        return _ideogram4(normal, image_tokens)
    if mode in MIXTURES:
        base, first, second = MIXTURES[mode]
        most = _density(replace(objective, timestep_sampling=base), normal, uniform, image_tokens)
        some = _of_log_snr(normal, objective.logit_mean, objective.logit_std)
        rest = _of_log_snr(normal, *_CLEAN)
        return torch.where(uniform < first, most, torch.where(uniform < second, some, rest))
    sigma = torch.sigmoid(objective.sigmoid_scale * normal)
    if mode == "sigmoid":
        return sigma
    if mode == "shift":
        return shift_sigma(sigma, objective.discrete_flow_shift)
    if mode in _SHIFT_LINES:
        return shift_sigma(sigma, resolution_shift(mode, image_tokens))
    raise ValueError(f"unknown timestep_sampling {mode!r}")


def _of_log_snr(normal: Tensor, mean: float, std: float) -> Tensor:
    """sigma = sigmoid(-x / 2) has the log SNR 2 log((1 - sigma) / sigma) = x."""
    return torch.sigmoid(-(mean + std * normal) / 2)


def _ideogram4(normal: Tensor, image_tokens: int) -> Tensor:
    """logit(sigma) ~ N(log(pixels / 512^2) / 2, 1.5^2), cut off far out; as in the first seed, a latent cell
    counts as 16 x 16 pixels, so that a token has 1024."""
    mean = 0.5 * math.log(1024 * image_tokens / 512**2)
    return torch.sigmoid((mean + _IDEOGRAM_STD * normal).clamp(*_IDEOGRAM_LIMITS))


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
