"""Ways to follow the flow from noise to picture: dx/dσ = v(x, σ), each as a generator of its steps.

Knows the solvers' formulas. Must not know networks, prompts, guidance or options: `velocity` has it all.

Every solver takes latents at sigmas[0] (any shape, fp32), the falling levels, v, and perhaps what is done to
the latents after each step at their new level (inpainting puts the kept part back); it yields the latents
after each step, so that a caller can show, count and cancel. D = x - σ·v is the picture as v sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from zimage_gui.model.flow import euler_step

Velocity = Callable[[Tensor, float], Tensor]
After = Callable[[Tensor, float], Tensor] | None
Solver = Callable[[Tensor, Sequence[float], Velocity, After], Iterator[Tensor]]


def _after(after: After, x: Tensor, sigma: float) -> Tensor:
    return x if after is None else after(x, sigma)


def euler(x: Tensor, sigmas: Sequence[float], velocity: Velocity, after: After = None) -> Iterator[Tensor]:
    """x ← x + (σ' - σ)·v: the reference."""
    for sigma, following in pairwise(sigmas):
        x = _after(after, euler_step(x, -velocity(x, sigma), sigma, following), following)
        yield x


def heun(x: Tensor, sigmas: Sequence[float], velocity: Velocity, after: After = None) -> Iterator[Tensor]:
    """x ← x + (σ' - σ)·(v + v')/2 with v' at the Euler step's end (Karras et al. 2022, algorithm 1).

    Two evaluations a step; the last step, which ends at 0, is Euler's.
    """
    for sigma, following in pairwise(sigmas):
        first = velocity(x, sigma)
        ahead = euler_step(x, -first, sigma, following)
        if following > 0:
            mean = (first + velocity(ahead, following)) / 2
            ahead = euler_step(x, -mean, sigma, following)
        x = _after(after, ahead, following)
        yield x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], velocity: Velocity, after: After = None) -> Iterator[Tensor]:
    """x ← r·x + (1 - r)·D*, r = σ'/σ, D* = D + (h/2h₋)(D - D₋) with h = ln(σ/σ') (Lu et al. 2022, 2M).

    The steps are measured in ln σ, as ComfyUI does for flow models too; one evaluation a step.
    """
    before: Tensor | None = None
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        picture = x - sigma * velocity(x, sigma)
        aim = picture
        if before is not None and following > 0:
            ahead, behind = math.log(sigma / following), math.log(sigmas[index - 1] / sigma)
            aim = picture + (picture - before) * (ahead / (2 * behind))
        ratio = following / sigma
        x = _after(after, ratio * x + (1 - ratio) * aim, following)
        before = picture
        yield x


def res_multistep(
    x: Tensor, sigmas: Sequence[float], velocity: Velocity, after: After = None
) -> Iterator[Tensor]:
    """x ← e^(-h)·x + h·(b₁·D + b₂·D₋), the exponential two-step method of second order in ln σ.

    φ₁(z) = (eᶻ - 1)/z, φ₂(z) = (φ₁(z) - 1)/z, c = -h₋/h, b₂ = φ₂(-h)/c, b₁ = φ₁(-h) - b₂ (Hochbruck and
    Ostermann 2005; refined exponential solver, arXiv 2308.02157). First and last step are Euler's.
    """
    before: Tensor | None = None
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        speed = velocity(x, sigma)
        picture = x - sigma * speed
        if before is None or following == 0:
            x = euler_step(x, -speed, sigma, following)
        else:
            h, behind = math.log(sigma / following), math.log(sigmas[index - 1] / sigma)
            phi_1 = -math.expm1(-h) / h
            phi_2 = (1 - phi_1) / h
            b_2 = -phi_2 * h / behind
            x = math.exp(-h) * x + h * ((phi_1 - b_2) * picture + b_2 * before)
        x = _after(after, x, following)
        before = picture
        yield x


SOLVERS: dict[str, Solver] = {
    "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "res_multistep": res_multistep
}  # fmt: skip
