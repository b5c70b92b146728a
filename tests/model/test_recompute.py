"""What a training step keeps for its backward pass: counted, and without effect on any gradient."""

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zimage_gui.model import attention
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.recompute import cheap, keeping_products
from zimage_gui.model.rope import rope_tables
from zimage_gui.model.transformer import (
    RunBlock,
    TransformerConfig,
    ZImageTransformer,
    call_block,
    call_block_keeping_products,
)

# the released model's proportions: head size 128, hidden width 8/3 of the width
CONFIG = TransformerConfig(dim=768, n_layers=1, n_refiner_layers=0, n_heads=6, cap_feat_dim=16)
ROWS, COLUMNS, TEXT = 16, 14, 32
TOKENS = ROWS * COLUMNS + TEXT


@pytest.fixture(autouse=True)
def torchs_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. A CPU trains small half-precision models with a table of attention weights instead."""
    monkeypatch.setattr(attention, "_LARGEST_TABLE", 0)


def block_and_inputs(
    dtype: torch.dtype, config: TransformerConfig = CONFIG
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    model = ZImageTransformer(config)
    network = attach_lora(model, LoraSpec(dim=4))
    for _, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, TOKENS, config.dim, dtype=dtype, requires_grad=True)
    rope = rope_tables(ROWS, COLUMNS, ROWS * COLUMNS, TEXT, config.axes_dims, config.rope_theta, x.device)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:  # adapters stay in fp32
        parameter.data = parameter.data.to(dtype)
    return model.layers[0].train(), x, rope, torch.randn(1, config.time_dim, dtype=dtype)


def units(run: RunBlock, dtype: torch.dtype) -> float:
    """Bytes that are alive after a block's forward pass, per token, over those of one activation row.

    Counted is all that the pass made and that its graph holds, whatever holds it: activations, statistics of
    norms and softmax, the adapters' inner products, modulation. The block's output counts in the place of its
    input, as in a row of blocks. Not counted: weights, and the rotation table that all blocks share.
    """
    block, x, rope, time = block_and_inputs(dtype)
    with LiveBytes() as made:
        out = run(block, x, rope, time)
    assert out.grad_fn is not None
    return made.now() / (TOKENS * CONFIG.dim * x.element_size())


def checkpointed(block: nn.Module, x: Tensor, rope: Tensor, time: Tensor | None) -> Tensor:
    out: Tensor = checkpoint(block, x, rope, time, use_reentrant=False, preserve_rng_state=False)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_block_keeps_its_matrix_products_and_hardly_more(dtype: torch.dtype) -> None:
    # x, q, k, v, attention, its projection, the sum after it, w1 and w3 (8/3 each), w2: 13.33 units
    assert 13.3 < units(call_block_keeping_products, dtype) <= 14
    assert units(call_block, dtype) > 18


def test_a_checkpointed_block_keeps_its_input_alone() -> None:
    assert 1 <= units(checkpointed, torch.bfloat16) < 1.1


def peak_units(blocks: int, run: RunBlock) -> float:
    """The most that is alive at any moment of the forward and backward pass through a row of blocks."""
    block, x, rope, time = block_and_inputs(torch.float32)
    with LiveBytes() as made:
        for _ in range(blocks):
            x = run(block, x, rope, time)
        x.sum().backward()
    return made.peak / (TOKENS * CONFIG.dim * x.element_size())


def test_with_checkpointing_one_block_is_alive_at_a_time_and_another_one_adds_its_input() -> None:
    one, three = peak_units(1, checkpointed), peak_units(3, checkpointed)
    assert one < 30 and 1.9 < three - one < 2.5
    assert 26 < peak_units(3, call_block_keeping_products) - peak_units(1, call_block_keeping_products) < 28


def gradients(run: RunBlock, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    config = TransformerConfig(
        dim=32, n_layers=1, n_refiner_layers=0, n_heads=2, cap_feat_dim=16, axes_dims=(4, 6, 6)
    )
    block, x, rope, time = block_and_inputs(dtype, config)
    run(block, x, rope, time).float().square().mean().backward()
    found = [x.grad, *(p.grad for p in block.parameters() if p.requires_grad)]
    assert len(found) == 15 and all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run", [call_block_keeping_products, checkpointed])
def test_what_is_computed_again_gives_the_same_gradients_to_the_bit(
    run: RunBlock, dtype: torch.dtype
) -> None:
    for ours, plain in zip(gradients(run, dtype), gradients(call_block, dtype), strict=True):
        assert torch.equal(ours, plain)


def test_a_cheap_result_is_made_again_once_for_all_its_users_and_anew_for_a_second_backward_pass() -> None:
    calls = 0

    def double(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * 2

    x = torch.ones(3, requires_grad=True)
    with keeping_products():
        y = cheap(double, x)
        loss = (y * y).sum() + y.exp().sum() * 0
        del y
    assert calls == 1
    loss.backward(retain_graph=True)
    assert calls == 2 and torch.equal(x.grad, torch.full((3,), 8.0))
    loss.backward()
    assert torch.equal(x.grad, torch.full((3,), 16.0))


def test_memory_of_a_dead_result_that_is_used_again_is_not_taken_for_it() -> None:
    x = torch.ones(1000, requires_grad=True)
    with keeping_products():
        for _ in range(20):
            cheap(torch.neg, x)  # dies at once: the next tensor stands where it stood
            y = x * 3
            z = y * y
            del y
            (gradient,) = torch.autograd.grad(z.sum(), x)
            assert torch.equal(gradient, torch.full((1000,), 18.0))


def test_without_gradients_nothing_is_noted() -> None:
    with torch.no_grad(), keeping_products():
        assert not cheap(torch.neg, torch.ones(2, requires_grad=True)).requires_grad
