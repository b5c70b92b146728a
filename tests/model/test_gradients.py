"""Every hand-written backward pass against differences in double precision, and what none of them does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zimage_gui.model.lora import LoraLinear, LoraSpec
from zimage_gui.model.low_rank import low_rank_linear
from zimage_gui.model.norms import scaled_rms_norm
from zimage_gui.model.rope import rotate
from zimage_gui.model.swiglu import swiglu


def drawn(*shape: int, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


def adapter(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return low_rank_linear(x, drawn(7, 5, grad=False), down, up, 0.7)


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return scaled_rms_norm(x, scale, 1e-3)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "norm": (norm, (drawn(2, 3, 6), drawn(6))),
    "norm with a scale per sample": (norm, (drawn(2, 3, 6), drawn(2, 1, 6))),
    "gate": (swiglu, (drawn(3, 5), drawn(3, 5))),
    "adapter": (adapter, (drawn(4, 5), drawn(2, 5), drawn(7, 2))),
    "adapter on rows with gaps": (
        lambda x, *rest: adapter(x[:, :5], *rest),
        (drawn(4, 9), drawn(2, 5), drawn(7, 2)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_hand_written_gradient_equals_differences(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_derivative_is_refused_not_wrong(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    (gradient,) = torch.autograd.grad(function(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_can_be_used_twice_and_the_incoming_gradient_is_left_alone(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    out = function(*inputs)
    upstream = torch.ones_like(out)
    first = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
    second = torch.autograd.grad(out, inputs, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(upstream, torch.ones_like(out))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_an_adapter_gives_only_the_gradients_that_are_asked_for(wanted: tuple[int, ...]) -> None:
    values = (drawn(4, 5), drawn(2, 5), drawn(7, 2))
    inputs = [value.detach().requires_grad_(i in wanted) for i, value in enumerate(values)]
    adapter(*inputs).sum().backward()
    complete = torch.autograd.grad(adapter(*values).sum(), values)
    for i, (one, all_of_them) in enumerate(zip(inputs, complete, strict=True)):
        assert (one.grad is None) == (i not in wanted)
        assert one.grad is None or torch.equal(one.grad, all_of_them)


def test_rotation_keeps_lengths_and_its_gradient_turns_back() -> None:
    heads = torch.randn(1, 3, 2, 8, requires_grad=True)
    rope = torch.view_as_real(torch.polar(torch.ones(3, 1, 4), torch.randn(3, 1, 4)))
    turned = rotate(heads, rope)
    torch.testing.assert_close(turned.norm(), heads.norm())
    turned.backward(turned.detach())
    torch.testing.assert_close(heads.grad, heads.detach())


@pytest.mark.parametrize("case", ["bias", "dropout", "trained base", "autocast", "evaluation"])
def test_a_layer_that_is_no_plain_case_takes_separate_steps_to_the_same_result(case: str) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, bias=case == "bias").requires_grad_(case == "trained base")
    layer = LoraLinear(base, LoraSpec(dim=2, dropout=1e-9 if case == "dropout" else 0.0))
    torch.nn.init.normal_(layer.lora_up)
    layer.train(case != "evaluation")
    x = torch.randn(2, 3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        y = layer(x)
        assert y.grad_fn is not None
    weight = base.weight + layer.scale * layer.lora_up @ layer.lora_down
    exact = torch.nn.functional.linear(x, weight, base.bias)
    tolerance = 3e-2 if case == "autocast" else 1e-5
    torch.testing.assert_close(y.float(), exact, atol=tolerance, rtol=tolerance)
    y.float().sum().backward()
    assert layer.lora_up.grad is not None and layer.lora_down.grad is not None and x.grad is not None
    assert (base.weight.grad is not None) == (case == "trained base")
