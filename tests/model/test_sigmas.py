"""Schedules equal formulas written down independently, with the numbers of ComfyUI's flow models."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.model import flow
from zimage_gui.model.sigmas import SCHEDULES, beta_quantiles, schedule

shifts = st.sampled_from([1.0, 3.0, 6.0])


def levels_of(shift: float) -> np.ndarray:
    """ComfyUI's table of a flow model: σ of the times 1/1000 … 1."""
    time = np.arange(1, 1001) / 1000
    return shift * time / (1 + (shift - 1) * time)


@given(st.sampled_from(SCHEDULES), st.integers(1, 60), shifts)
def test_every_schedule_falls_to_zero(name: str, steps: int, shift: float) -> None:
    sigmas = schedule(name, steps, shift)
    assert sigmas.dtype is torch.float32 and sigmas[-1] == 0 and 0 < sigmas[0] <= 1
    assert bool((sigmas.diff() < 0).all())
    assert len(sigmas) == steps + 1 or (name == "beta" and len(sigmas) <= steps + 1)


@given(st.integers(1, 100), shifts)
def test_the_reference_schedule_is_untouched(steps: int, shift: float) -> None:
    assert torch.equal(schedule("reference", steps, shift), flow.shifted_sigmas(steps, shift))


def test_simple_equals_the_reference_where_the_steps_divide_a_thousand() -> None:
    for steps in (4, 8, 20, 25):
        assert torch.allclose(schedule("simple", steps, 3.0), flow.shifted_sigmas(steps, 3.0), atol=1e-6)


@given(st.integers(1, 60), shifts)
def test_simple_takes_every_nth_level_from_the_top(steps: int, shift: float) -> None:
    table = levels_of(shift)
    wanted = [table[-(1 + int(index * (1000 / steps)))] for index in range(steps)] + [0]
    assert np.allclose(schedule("simple", steps, shift).numpy(), wanted, atol=1e-6)


@given(st.integers(2, 60), shifts, st.booleans())
def test_normal_and_sgm_uniform_are_even_in_time(steps: int, shift: float, sgm: bool) -> None:
    """ComfyUI walks from the time of its largest level to that of its smallest (its time of σ is 1000·σ)."""
    table = levels_of(shift)
    times = (
        np.linspace(table[-1], table[0], steps + 1)[:-1] if sgm else np.linspace(table[-1], table[0], steps)
    )
    wanted = [*(shift * times / (1 + (shift - 1) * times)), 0]
    name = "sgm_uniform" if sgm else "normal"
    assert np.allclose(schedule(name, steps, shift).numpy(), wanted, atol=1e-6)


@given(st.integers(1, 60), shifts)
def test_beta_takes_the_levels_at_its_quantiles(steps: int, shift: float) -> None:
    shares = torch.tensor([1 - index / steps for index in range(steps)], dtype=torch.float64)
    places = (beta_quantiles(shares, 0.6) * 999).round().long().tolist()
    wanted = [levels_of(shift)[place] for place in dict.fromkeys(places)] + [0]
    assert np.allclose(schedule("beta", steps, shift).numpy(), wanted, atol=1e-6)


def test_quantiles_are_those_of_random_draws() -> None:
    drawn = np.random.default_rng(0).beta(0.6, 0.6, 400_000)
    shares = np.linspace(0.02, 0.98, 49)
    found = beta_quantiles(torch.from_numpy(shares), 0.6).numpy()
    assert np.abs(found - np.quantile(drawn, shares)).max() < 4e-3


def test_quantiles_invert_the_arcsine_law_and_the_even_one() -> None:
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(beta_quantiles(shares, 0.5), (shares * torch.pi / 2).sin() ** 2, atol=1e-6)
    assert torch.allclose(beta_quantiles(shares, 1.0), shares, atol=1e-6)


@given(st.integers(2, 60))
def test_linear_quadratic_is_linear_then_a_smooth_parabola(steps: int) -> None:
    way = 1 - schedule("linear_quadratic", steps, 3.0).double()
    half = steps // 2
    assert way[half] == pytest.approx(0.025, abs=1e-6) and way[-1] == 1
    straight = [float(b - a) for a, b in pairwise(way[: half + 1])]
    assert straight == pytest.approx([0.025 / half] * half, abs=1e-6)
    second = way[half:].diff().diff()
    if len(second) > 1:
        assert torch.allclose(second, second[0].expand(len(second)), atol=2e-6)


def test_unknown_names_and_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'karras'"):
        schedule("karras", 4, 3.0)
    with pytest.raises(ValueError, match="at least one step"):
        schedule("simple", 0, 3.0)
