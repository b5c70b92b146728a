"""Updates of one weight at a time: the same as together, freed at once, rounded without bias."""

import pytest
import torch
from torch import nn

from zimage_gui.engine.optimizers import build_optimizer, optimizer_factory
from zimage_gui.engine.updates import SingleUpdates, rounded_by_chance, why_not_alone


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 8)]
    return nn.Sequential(*layers).to(dtype)


def trained(network: nn.Module, updates: SingleUpdates, steps: int = 4) -> nn.Module:
    dtype = next(network.parameters()).dtype
    for step in range(steps):
        x = torch.randn(6, 24, generator=torch.Generator().manual_seed(step))
        updates.begin(step)
        network(x.to(dtype)).float().square().mean().backward()
        updates.finish()
    return network


OPTIMIZERS = [
    ("AdamW", ()),
    ("Adafactor", ()),
    ("Adafactor", ("relative_step=True", "scale_parameter=True")),
    ("AdamW8bit", ("min_8bit_size=16",)),
    ("SGD", ("momentum=0.9",)),
    ("Adagrad", ()),
]


@pytest.mark.parametrize(("name", "arguments"), OPTIMIZERS)
def test_weights_updated_in_the_backward_pass_equal_those_updated_together_bit_for_bit(name, arguments):
    together, alone = model(), model()
    optimizer = build_optimizer(name, arguments, 1e-2, together.parameters())
    for step in range(4):
        x = torch.randn(6, 24, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        together(x).square().mean().backward()
        optimizer.step()
    own = build_optimizer(name, arguments, 1e-2, alone.parameters())
    trained(alone, SingleUpdates(own, 0, in_backward=True))
    assert all(torch.equal(*pair) for pair in zip(together.parameters(), alone.parameters(), strict=True))
    assert own.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("in_backward", [True, False])
def test_no_more_than_one_gradient_lives_during_the_backward_pass(in_backward):
    network = model()
    parameters = list(network.parameters())
    seen: list[int] = []

    def count(_: torch.Tensor) -> None:
        seen.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:  # before the updates' own hooks, so that each gradient is seen
        parameter.register_post_accumulate_grad_hook(count)
    optimizer = build_optimizer("AdamW", (), 1e-2, parameters)
    trained(network, SingleUpdates(optimizer, 0, in_backward=in_backward))
    largest, total = max(p.nbytes for p in parameters), sum(p.nbytes for p in parameters)
    assert len(seen) == 4 * len(parameters) and max(seen) == (largest if in_backward else total)
    assert all(parameter.grad is None for parameter in parameters)


def test_clipping_shortens_each_gradient_by_itself_and_tells_their_length():
    before, after = model(), model()
    updates = SingleUpdates(torch.optim.SGD(after.parameters(), lr=1.0), 0, in_backward=True, max_norm=1e-3)
    trained(after, updates, steps=1)
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    before(x).square().mean().backward()
    gradients = [parameter.grad for parameter in before.parameters()]
    torch.testing.assert_close(updates.gradient_norm(), torch.nn.utils.get_total_norm(gradients))
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert float((old - new).detach().norm()) == pytest.approx(1e-3, rel=1e-2)


def test_rounding_by_chance_keeps_the_mean_and_what_bf16_holds():
    generator = torch.Generator().manual_seed(1)
    value = torch.full((200_000,), 1 + 0.3 / 128)  # three tenths of the way to the next bf16 number
    found = rounded_by_chance(value, generator)
    assert set(found.unique().tolist()) == {1.0, 1 + 1 / 128}
    assert float(found.double().mean()) == pytest.approx(1 + 0.3 / 128, abs=2e-5)
    assert float(rounded_by_chance(-value, generator).double().mean()) == pytest.approx(
        -1 - 0.3 / 128, abs=2e-5
    )
    exact = torch.tensor([0.0, -0.0, 1.5, -3e38, 1e-40, float("inf"), -float("inf"), float("nan")]).bfloat16()
    again = rounded_by_chance(exact.float(), generator)
    assert torch.equal(again[:-1], exact[:-1]) and bool(again[-1].isnan())


@pytest.mark.parametrize(
    ("name", "arguments", "rate"),
    [
        ("AdamW", (), 1e-4),
        ("Adafactor", (), 1e-4),
        ("AdamW8bit", ("min_8bit_size=16",), 1e-4),
        ("SGD", ("momentum=0.9",), 3e-3),
        ("Adagrad", (), 1e-4),
    ],
)
def test_small_updates_of_bf16_weights_arrive_only_when_rounded_by_chance(name, arguments, rate):
    """A step of 1e-4 is lost on a bf16 weight of 1; over many weights the mean shows what arrived."""
    kinds = {
        "exact": (torch.float32, False),
        "nearest": (torch.bfloat16, False),
        "chance": (torch.bfloat16, True),
    }
    moved = {}
    for kind, (dtype, rounding) in kinds.items():
        weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
        optimizer = build_optimizer(name, arguments, rate, [weight])
        updates = SingleUpdates(optimizer, 3, rounding=rounding)
        for step in range(30):
            updates.begin(step)
            weight.grad = torch.full_like(weight, 0.01)
            updates.finish()
        moved[kind] = 1 - float(weight.detach().double().mean())
    assert moved["nearest"] == 0 and moved["exact"] > 2e-4
    assert moved["chance"] == pytest.approx(moved["exact"], rel=0.1)


def test_the_averages_of_bf16_weights_are_fp32_and_the_chance_depends_on_the_step_alone():
    first, second = model(torch.bfloat16), model(torch.bfloat16)
    optimizer = build_optimizer("AdamW", (), 1e-3, first.parameters())
    trained(first, SingleUpdates(optimizer, 5, in_backward=True, rounding=True))
    torch.manual_seed(99)
    trained(second, SingleUpdates(build_optimizer("AdamW", (), 1e-3, second.parameters()), 5, rounding=True))
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    assert {state["exp_avg_sq"].dtype for state in optimizer.state.values()} == {torch.float32}
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}


class Joint(torch.optim.SGD):
    """Divides by the length of all gradients together."""

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.div_(norm)
        return super().step(closure)


class Counting(torch.optim.SGD):
    """Counts its steps in a group, as schedule-free optimizers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("cls", [Joint, Counting])
def test_an_optimizer_that_needs_all_gradients_is_found_out(cls):
    reason = why_not_alone(lambda parameters: cls(parameters, lr=0.1), rounding=False)
    assert reason is not None and "all gradients together" in reason


@pytest.mark.parametrize(
    "name", ["AdamW", "Adafactor", "AdamW8bit", "Lion8bit", "SGD", "RAdam", "NAdam", "Adagrad"]
)
def test_usual_optimizers_can_update_one_weight_at_a_time(name):
    assert why_not_alone(optimizer_factory(name, {}, 0.1), rounding=True) is None
