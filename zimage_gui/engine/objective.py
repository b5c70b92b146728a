"""What a training step minimises: which noise level a sample gets, its noise, the target and the loss.

Knows the maths of flow matching and nothing about models, files or optimizers.

One convention everywhere: sigma in [0, 1], 1 is pure noise, 0 the clean picture.
`min_timestep`/`max_timestep` are 1000 * sigma. (The first seed's `sigma` mode counts its steps from the noisy
end, so that its range and its densities are mirrored there; here they are not.)
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage_gui.model.flow import shift_sigma

SAMPLINGS = ("sigma", "uniform", "sigmoid", "shift", "flux_shift", "logsnr", "qwen_shift")
WEIGHTINGS = ("none", "logit_normal", "mode", "cosmap", "sigma_sqrt")
# exp(mu) is the shift; mu is linear in the number of image tokens between these two points (tokens, mu)
_SHIFT_LINES = {"flux_shift": ((256, 0.5), (4096, 1.15)), "qwen_shift": ((256, 0.5), (8192, 0.9))}
_MIN_WEIGHTED_SIGMA = 1e-3  # sigma_sqrt weighs by sigma^-2: below this one sample would drown every other
_REJECTION_ROUNDS = 64


@dataclass(frozen=True)
class Objective:
    """How noise levels are drawn and losses weighed. Field names are the options' names."""

    timestep_sampling: str = "shift"
    weighting_scheme: str = "none"
    discrete_flow_shift: float = 2.0
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: float = 0.0
    max_timestep: float = 1000.0
    preserve_distribution_shape: bool = False


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


def draw(
    objective: Objective, seed: int, epoch: int, indices: list[int], shape_CHW: tuple[int, ...]
) -> Draws:
    """Randomness for the samples at `indices` of an epoch. Pure: a sample gets the same numbers in any batch,
    on any device, after any resume. Drawn on the CPU.
    """
    rounds = _REJECTION_ROUNDS if objective.preserve_distribution_shape else 1
    normal, uniform, noise = (torch.empty(len(indices), *tail) for tail in ((rounds,), (rounds,), shape_CHW))
    for row, index in enumerate(indices):
        generator = torch.Generator().manual_seed(stream_seed(seed, epoch, index))
        normal[row].normal_(generator=generator)
        uniform[row].uniform_(generator=generator)
        noise[row].normal_(generator=generator)
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


def loss_weights(scheme: str, sigma_B: Tensor) -> Tensor:
    """Weight of each sample (B,). `logit_normal` and `mode` shape the draw of sigma, not the loss."""
    if scheme == "sigma_sqrt":
        return sigma_B.clamp(min=_MIN_WEIGHTED_SIGMA) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B**2))
    return torch.ones_like(sigma_B)


def flow_loss(prediction: Tensor, latents: Tensor, noise: Tensor, weights_B: Tensor) -> Tensor:
    """mean_b w_b mean((prediction_b - (x0_b - noise_b))^2) in fp32; `prediction` is raw model output."""
    error = (prediction.float() - (latents - noise)).square()
    return (error.flatten(1).mean(dim=1) * weights_B).mean()
