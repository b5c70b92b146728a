"""Losses of flow matching and their weights, as pure functions.

Knows tensors and formulas; must not know where predictions come from. sigma is the noise level: 1 is pure
noise, 0 the clean picture. All fp32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MIN_WEIGHTED_SIGMA = 1e-3  # sigma_sqrt weighs by sigma^-2: below this one sample would drown every other


@dataclass(frozen=True)
class LossSpec:
    """How errors become a loss. Field names are the options' names."""

    loss_type: str = "l2"
    huber_c: float = 0.1
    huber_schedule: str = "constant"
    weighting_scheme: str = "none"
    min_snr_gamma: float | None = None
    unmasked_weight: float = 0.1


def loss_weights(scheme: str, sigma_B: Tensor) -> Tensor:
    """Weight of each sample (B,). `logit_normal` and `mode` shape the draw of sigma, not the loss."""
    if scheme == "sigma_sqrt":
        return sigma_B.clamp(min=_MIN_WEIGHTED_SIGMA) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B**2))
    return torch.ones_like(sigma_B)


def min_snr_weights(sigma_B: Tensor, gamma: float) -> Tensor:
    """w = sigma^2 min(SNR, gamma) with SNR = ((1 - sigma) / sigma)^2: min((1 - sigma)^2, gamma sigma^2).

    Hang et al. 2023 (arXiv 2303.09556) weigh the error of the picture by min(SNR, gamma). On the straight
    path x0 = x_sigma - sigma v: an error of the velocity is one of the picture times 1 / sigma.
    """
    return torch.minimum((1 - sigma_B) ** 2, gamma * sigma_B**2)


def sample_weights(spec: LossSpec, sigma_B: Tensor) -> Tensor:
    """Everything that weighs a whole sample by its noise level (B,)."""
    weights = loss_weights(spec.weighting_scheme, sigma_B)
    return weights if spec.min_snr_gamma is None else weights * min_snr_weights(sigma_B, spec.min_snr_gamma)


def huber_thresholds(schedule: str, huber_c: float, sigma_B: Tensor) -> Tensor:
    """c(sigma), (B,): huber_c throughout; c^sigma; or (1 - c)(1 - sigma)^2 + c.

    The last is (1 - c) / (1 + s)^2 + c with s = sigma / (1 - sigma), noise over signal. Both schedules run
    from 1 at sigma 0 to huber_c at sigma 1 (Khrapov et al. 2024, arXiv 2403.16728).
    """
    if schedule == "exponential":
        return torch.exp(math.log(huber_c) * sigma_B)
    if schedule == "snr":
        return (1 - huber_c) * (1 - sigma_B) ** 2 + huber_c
    return torch.full_like(sigma_B, huber_c)


def pointwise(spec: LossSpec, error: Tensor, sigma_B: Tensor) -> Tensor:
    """Loss of each element of `error` (B, C, H, W).

    l2 e^2; l1 |e|; huber 2c (sqrt(e^2 + c^2) - c), which is e^2 where e << c; smooth_l1
    2 (sqrt(e^2 + c^2) - c), which is 2 |e| where e >> c. Computed as e^2 / (sqrt(e^2 + c^2) + c), which
    cancels nothing.
    """
    if spec.loss_type == "l2":
        return error.square()
    if spec.loss_type == "l1":
        return error.abs()
    c = huber_thresholds(spec.huber_schedule, spec.huber_c, sigma_B).view(-1, 1, 1, 1)
    squared = error.square()
    smooth = 2 * squared / ((squared + c.square()).sqrt() + c)
    if spec.loss_type == "smooth_l1":
        return smooth
    if spec.loss_type == "huber":
        return c * smooth
    raise ValueError(f"unknown loss_type {spec.loss_type!r}")


def masked_mean(losses: Tensor, masks: Tensor | None, unmasked_weight: float) -> Tensor:
    """Mean over each sample (B,) of losses (B, C, H, W), weighted by m = u + (1 - u) mask with masks
    (B, 1, H, W): sum(m loss) / sum(m), so that a small mask counts no less than a large one."""
    if masks is None:
        return losses.flatten(1).mean(dim=1)
    weights = (unmasked_weight + (1 - unmasked_weight) * masks).expand_as(losses)
    return (losses * weights).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1)


def flow_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    sigma_B: Tensor,
    spec: LossSpec,
    masks: Tensor | None = None,
) -> Tensor:
    """mean_b w_b mean(loss(prediction_b - (x0_b - noise_b))) in fp32; `prediction` is raw model output."""
    losses = pointwise(spec, prediction.float() - (latents - noise), sigma_B)
    means = masked_mean(losses, masks, spec.unmasked_weight)
    return (means * sample_weights(spec, sigma_B)).mean()
