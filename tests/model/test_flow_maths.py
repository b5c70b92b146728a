"""The flow's formulas agree with each other: schedule, path, velocity and step."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.model import flow

shifts = st.floats(0.2, 12)
steps = st.integers(1, 100)


@given(steps, shifts)
def test_a_schedule_falls_from_one_to_zero(count: int, shift: float) -> None:
    sigmas = flow.shifted_sigmas(count, shift)
    assert sigmas.dtype is torch.float32 and len(sigmas) == count + 1
    assert float(sigmas[0]) == pytest.approx(1, abs=1e-6) and sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


@given(st.floats(0, 1), shifts)
def test_shifting_by_the_inverse_undoes_a_shift(sigma: float, shift: float) -> None:
    there = flow.shift_sigma(torch.tensor(sigma, dtype=torch.float64), shift)
    assert float(flow.shift_sigma(there, 1 / shift)) == pytest.approx(sigma, abs=1e-9)


def test_eight_steps_with_shift_three_are_the_published_ones() -> None:
    published = [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3, 0]
    assert flow.shifted_sigmas(8, 3).tolist() == pytest.approx(published, abs=1e-6)


@given(steps, shifts)
def test_a_perfect_model_brings_the_loop_to_the_picture(count: int, shift: float) -> None:
    x0, noise = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)
    sigmas, x = flow.shifted_sigmas(count, shift), noise
    for sigma, after in pairwise(sigmas):
        x = flow.euler_step(x, -flow.velocity(x0, noise), sigma, after)
        assert torch.allclose(x, flow.noisy(x0, noise, after[None]), atol=1e-5)
    assert torch.allclose(x, x0, atol=1e-5)


def test_each_sample_has_its_own_noise_level() -> None:
    x0, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert flow.noisy(x0, noise, torch.tensor([0.25, 1.0])).flatten().tolist() == [0.25, 1.0]
    assert flow.time_of_sigma(torch.tensor([0.25, 1.0])).tolist() == [0.75, 0.0]


def test_guidance_zero_is_off_and_one_doubles_the_difference() -> None:
    positive, negative = torch.tensor([3.0]), torch.tensor([1.0])
    assert [float(flow.guided(positive, negative, g)) for g in (0.0, 1.0, 4.0)] == [3, 5, 11]


def test_a_schedule_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        flow.shifted_sigmas(0, 3.0)
