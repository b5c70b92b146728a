"""Noise schedules by the names ComfyUI gives them, for pictures that are to come out alike in both.

Knows how N steps are laid out between pure noise and the picture. Must not know networks, samplers or
options.

Every function returns (N + 1,) fp32 values that fall from at most 1 to 0. They start from a table of 1000
shifted levels s(k/1000), k = 1 … 1000, where s is `flow.shift_sigma`; times are the levels' own scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zimage_gui.model.flow import shift_sigma, shifted_sigmas

LEVELS = 1000
SCHEDULES = ("reference", "simple", "normal", "sgm_uniform", "beta", "linear_quadratic")
BETA = 0.6  # both parameters of the Beta distribution of "beta"
LINEAR_SHARE = 0.025  # of the way that "linear_quadratic" covers in the first half of its steps


def schedule(name: str, steps: int, shift: float) -> Tensor:
    """The schedule `name` of `steps` steps. "beta" may have fewer: levels that repeat are visited once.

    Raises ValueError for an unknown name or less than one step.
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    makers: dict[str, Callable[[int, float], Tensor]] = {
        "reference": shifted_sigmas,
        "simple": simple,
        "normal": normal,
        "sgm_uniform": sgm_uniform,
        "beta": beta,
        "linear_quadratic": lambda steps, shift: linear_quadratic(steps),
    }
    if name not in makers:
        raise ValueError(f"unknown schedule {name!r}; there are {', '.join(SCHEDULES)}")
    return makers[name](steps, shift)


def _table(shift: float) -> Tensor:
    """The 1000 levels, rising, fp64."""
    return shift_sigma(torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS, shift)


def _ended(levels: Tensor) -> Tensor:
    return torch.cat([levels, torch.zeros(1, dtype=levels.dtype)]).float()


def simple(steps: int, shift: float) -> Tensor:
    """Every (1000/N)-th level of the table, counted from pure noise."""
    places = (torch.arange(steps, dtype=torch.float64) * (LEVELS / steps)).long()
    return _ended(_table(shift)[LEVELS - 1 - places.clamp(max=LEVELS - 1)])


def normal(steps: int, shift: float) -> Tensor:
    """N even times from the noisiest level to the cleanest, both included, then 0.

    The cleanest level is shifted once by the table and once more as a time, as ComfyUI does for flow models.
    """
    table = _table(shift)
    return _ended(shift_sigma(_even(float(table[-1]), float(table[0]), steps), shift))


def sgm_uniform(steps: int, shift: float) -> Tensor:
    """Like `normal` with N + 1 times of which the last is left out."""
    table = _table(shift)
    return _ended(shift_sigma(_even(float(table[-1]), float(table[0]), steps + 1)[:-1], shift))


def _even(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


def beta(steps: int, shift: float) -> Tensor:
    """Levels at the quantiles of a Beta(0.6, 0.6) distribution: dense at both ends (arXiv 2407.12173)."""
    shares = 1 - torch.arange(steps, dtype=torch.float64) / steps
    places = (beta_quantiles(shares, BETA) * (LEVELS - 1)).round().long()
    return _ended(_table(shift)[torch.unique_consecutive(places)])


def beta_quantiles(shares: Tensor, parameter: float, cells: int = 200_000) -> Tensor:
    """x with ∫₀ˣ t^(p-1) (1-t)^(p-1) dt = share of the whole, for the symmetric Beta(p, p); fp64 in [0, 1].

    By t = (1 - cos φ)/2 the density becomes (sin φ)^(2p-1), which for p ≥ 1/2 has no pole; its integral is
    tabulated by the midpoint rule and inverted linearly.
    """
    edges = torch.linspace(0, torch.pi, cells + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    area = torch.cat([torch.zeros(1, dtype=torch.float64), middles.sin().pow(2 * parameter - 1).cumsum(0)])
    area = area / area[-1]
    above = torch.searchsorted(area, shares.clamp(0, 1).contiguous()).clamp(1, cells)
    low, high = area[above - 1], area[above]
    angle = edges[above - 1] + (edges[1] - edges[0]) * (shares - low) / (high - low)
    return ((1 - angle.cos()) / 2).clamp(0, 1)


def linear_quadratic(steps: int) -> Tensor:
    """1 - p(i): p rises linearly to 0.025 over half of the steps, then as the parabola that goes on smoothly
    and reaches 1 (the schedule of Genmo's Mochi). The shift has no part in it."""
    if steps == 1:
        return torch.tensor([1.0, 0.0])
    linear = steps // 2
    curved = steps - linear
    rest = linear - LINEAR_SHARE * steps
    a = rest / (linear * curved**2)
    b = LINEAR_SHARE / linear - 2 * rest / curved**2
    step = torch.arange(steps, dtype=torch.float64)
    way = torch.where(step < linear, step * LINEAR_SHARE / linear, a * step**2 + b * step + a * linear**2)
    return _ended(1 - way)
