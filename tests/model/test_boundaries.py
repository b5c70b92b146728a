"""Checkpointed inputs that wait on the CPU: the same gradients, and every byte counted."""

import weakref

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zimage_gui.model.boundaries import BoundaryOffload

DEPTH = 5


def run(away: BoundaryOffload | None) -> tuple[Tensor, list[bool]]:
    """The gradient of the input, and whether each block's input was alive before the backward pass."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(DEPTH)]
    start = torch.randn(4, 8, requires_grad=True)
    x, inputs = start * 1, []
    for block in blocks:
        inputs.append(weakref.ref(x.untyped_storage()))
        if away is None:
            x = checkpoint(block, x, use_reentrant=False)
        else:
            with away.sending(x):
                x = checkpoint(block, x, use_reentrant=False)
    alive = [storage() is not None for storage in inputs]
    x.square().sum().backward()
    assert start.grad is not None
    return start.grad, alive


def test_the_gradient_is_the_same_and_no_input_stays_on_the_device() -> None:
    away = BoundaryOffload()
    here, kept = run(None)
    there, left = run(away)
    assert torch.equal(here, there) and all(kept) and not any(left)
    assert away.bytes_moved == 2 * DEPTH * 4 * 8 * 4


def test_a_graph_that_is_dropped_without_a_backward_pass_does_no_harm() -> None:
    away = BoundaryOffload()
    x = torch.randn(4, 8, requires_grad=True)
    with away.sending(x):
        checkpoint(nn.Linear(8, 8), x, use_reentrant=False)
    assert torch.equal(run(away)[0], run(None)[0])
