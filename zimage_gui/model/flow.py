"""The flow-matching maths of Z-Image as pure functions.

Knows the straight path between picture and noise, its schedule and its steps. Must not know networks,
devices or options.

Conventions: σ = 1 is pure noise, σ = 0 the clean picture; the network's time is t = 1 - σ; its raw output
points from noise to picture (x0 - noise), the velocity is its negative. Latents are fp32, in model space.
"""

import torch
from torch import Tensor


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """σ' = s·σ / (1 + (s - 1)·σ), the shift of SD3 (Esser et al. 2024, eq. 23); s = 1 is the identity."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """Schedule of N Euler steps, (N + 1,) fp32: linspace(1, 1/N, N) shifted, then 0. Rounded to fp32 before
    the shift, as diffusers' scheduler does: see `sampling_time`."""
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    even = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()
    return torch.cat([shift_sigma(even, shift), torch.zeros(1)])


def time_of_sigma(sigma: Tensor) -> Tensor:
    """t = 1 - σ in fp32, what the transformer takes."""
    return 1.0 - sigma.float()


def sampling_time(sigma: Tensor) -> Tensor:
    """t = 1 - σ by way of the timestep 1000·σ, in fp32: rounded as diffusers' pipeline rounds it.

    One unit in the last place of t turns the network's sinusoid by 6e-5, which a whole loop amplifies: with
    the reference's rounding it ends 20 times closer to the reference.
    """
    return (1000.0 - sigma.float() * 1000.0) / 1000.0


def noisy(x0_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x_σ = (1 - σ)·x0 + σ·noise, one σ per sample."""
    sigma = sigma_B.view(-1, 1, 1, 1)
    return (1 - sigma) * x0_BCHW + sigma * noise_BCHW


def velocity(x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """v = dx_σ/dσ = noise - x0; the network's raw output should equal -v."""
    return noise_BCHW - x0_BCHW


def euler_step(
    x_BCHW: Tensor, model_output_BCHW: Tensor, sigma: Tensor | float, sigma_next: Tensor | float
) -> Tensor:
    """x ← x + (σ_next - σ)·v with v = -model_output, in fp32."""
    return x_BCHW.float() - (sigma_next - sigma) * model_output_BCHW.float()


def guided(positive: Tensor, negative: Tensor, guidance_scale: float) -> Tensor:
    """pos + g·(pos - neg). g = 0 is off; elsewhere it is often neg + c·(pos - neg) with c = g + 1."""
    return positive + guidance_scale * (positive - negative)


def limited(guided_BCHW: Tensor, positive_BCHW: Tensor, most: float) -> Tensor:
    """The guided output, shortened to `most` times the positive one's length where it is longer; 0 is off.

    ‖·‖ is taken over each sample (cfg_normalization of the official pipeline).
    """
    if most <= 0:
        return guided_BCHW
    length, limit = (x.flatten(1).norm(dim=1) for x in (guided_BCHW, positive_BCHW))
    factor = (most * limit / length.clamp(min=1e-12)).clamp(max=1)
    shortened: Tensor = guided_BCHW * factor.view(-1, 1, 1, 1)
    return shortened
