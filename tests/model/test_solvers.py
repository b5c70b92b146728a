"""Every solver reaches the picture of a flow that is known in closed form, at the order its paper states."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zimage_gui.model import flow
from zimage_gui.model.sigmas import SCHEDULES, schedule
from zimage_gui.model.solvers import SOLVERS

MEAN, WIDTH = 0.7, 0.4
SECOND_ORDER = ("heun", "dpmpp_2m", "res_multistep")


def gaussian_velocity(x: Tensor, sigma: float) -> Tensor:
    """v of a picture x0 ~ N(MEAN, WIDTH²): E[noise - x0 | x_σ = x], from the two Gaussians' covariance."""
    variance = ((1 - sigma) * WIDTH) ** 2 + sigma**2
    pull = (sigma - (1 - sigma) * WIDTH**2) / variance
    return pull * (x - (1 - sigma) * MEAN) - MEAN


def exact(z: Tensor, sigma: float) -> Tensor:
    """The flow moves each quantile along: where noise z has come to at σ."""
    return (1 - sigma) * MEAN + math.sqrt(((1 - sigma) * WIDTH) ** 2 + sigma**2) * z


def end(solver: str, sigmas: Tensor, start: Tensor, velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
    *_, last = SOLVERS[solver](start, [float(sigma) for sigma in sigmas], velocity, None)
    return last


def error(solver: str, sigmas: Tensor) -> float:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    # Euler's step rounds to fp32: the errors measured here are far above that.
    ended = end(solver, sigmas, exact(z, float(sigmas[0])), gaussian_velocity)
    return float((ended - exact(z, float(sigmas[-1]))).abs().max())


def even_in_log(steps: int) -> Tensor:
    """Levels from 0.95 to 0.1 whose step in ln σ halves when their number doubles."""
    return torch.logspace(math.log10(0.95), -1, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_all_solvers_and_schedules_reach_the_same_picture(solver: str, name: str) -> None:
    coarse, fine = (error(solver, schedule(name, steps, 3.0)) for steps in (100, 800))
    assert fine < 0.01 and fine < max(coarse / 3, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_twice_the_steps_divide_the_error_by_the_order(solver: str) -> None:
    ratio = error(solver, even_in_log(64)) / error(solver, even_in_log(128))
    assert ratio == pytest.approx(4 if solver in SECOND_ORDER else 2, rel=0.15)


@pytest.mark.parametrize("solver", SECOND_ORDER)
def test_second_order_beats_euler_at_few_steps(solver: str) -> None:
    assert error(solver, even_in_log(12)) < error("euler", even_in_log(12)) / 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_model_is_followed_exactly_by_every_solver(solver: str) -> None:
    """Where every v points at one picture, no solver may add anything of its own."""
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ended = end(solver, schedule("simple", 7, 3.0), noise, lambda x, sigma: flow.velocity(x0, noise))
    assert torch.allclose(ended, x0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_stated_number_of_evaluations_is_kept(solver: str) -> None:
    asked = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return gaussian_velocity(x, sigma)

    end(solver, schedule("reference", 6, 3.0), torch.zeros(1), counted)
    assert len(asked) == (6 if solver != "heun" else 11)


def test_euler_has_the_bits_of_the_plain_loop() -> None:
    torch.manual_seed(1)
    x = start = torch.randn(1, 16, 4, 4)
    levels = [float(sigma) for sigma in flow.shifted_sigmas(9, 3.0)]
    for index in range(9):
        output = -gaussian_velocity(x, levels[index])
        x = x.float() - (levels[index + 1] - levels[index]) * output.float()
    assert torch.equal(end("euler", flow.shifted_sigmas(9, 3.0), start, gaussian_velocity), x)


def test_dpmpp_2m_is_the_papers_formula() -> None:
    """Two steps of Lu et al. 2022 written out: λ = ln((1 - σ)/σ) is replaced by -ln σ, as ComfyUI does."""
    x, levels = torch.tensor([0.3]), [0.9, 0.6, 0.4, 0.0]
    first, second, _ = SOLVERS["dpmpp_2m"](x, levels, gaussian_velocity, None)
    d0 = x - 0.9 * gaussian_velocity(x, 0.9)
    assert torch.allclose(first, (0.6 / 0.9) * x + (1 - 0.6 / 0.9) * d0)
    d1 = first - 0.6 * gaussian_velocity(first, 0.6)
    h, last = math.log(0.6 / 0.4), math.log(0.9 / 0.6)
    r = last / h
    aim = (1 + 1 / (2 * r)) * d1 - 1 / (2 * r) * d0
    assert torch.allclose(second, math.exp(-h) * first - math.expm1(-h) * aim)


def test_what_is_done_after_a_step_is_seen_by_the_next() -> None:
    """Inpainting puts the kept part back: a step that began from it follows it."""
    for solver in SOLVERS.values():
        *_, last = solver(torch.ones(1), [1.0, 0.5, 0.0], lambda x, sigma: x * 0, lambda x, sigma: x + 1)
        assert float(last) == pytest.approx(3, abs=1e-6)
