"""Blocks that wait in CPU memory: which is where, in what order they come, what that moves, and no bit changed."""

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.offload import BlockSwap, swapped_positions
from zimage_gui.model.quantise import QuantLinear, packed
from zimage_gui.model.transformer import (
    TransformerConfig,
    ZImageTransformer,
    call_block_keeping_products,
)

LAYERS = 6
CPU = torch.device("cpu")


def model(quant: bool = False) -> ZImageTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, n_layers=LAYERS, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, axes_dims=(4, 6, 6))  # fmt: skip
    made = ZImageTransformer(config)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
    if quant:
        for block in made.layers:
            weight = block.attention.to_q.weight.detach()
            block.attention.to_q = QuantLinear("int8", *packed(weight, "int8", weight.dtype), (32, 32))
    return made


def run_block(checkpointing: bool):
    def run(block, x: Tensor, rope: Tensor, time: Tensor | None) -> Tensor:
        if not checkpointing:
            return call_block_keeping_products(block, x, rope, time)
        return checkpoint(block, x, rope, time, use_reentrant=False)

    return run


def gradients(made: ZImageTransformer, checkpointing: bool, steps: int = 2, swap=None) -> Tensor:
    """Of a LoRA after some forward and backward passes, with a picture between them."""
    network = attach_lora(made, LoraSpec(dim=2))
    for module in network.modules.values():
        module.lora_up.data.normal_(0, 0.1)
    made.train()
    if swap:
        swap(made)
    captions, noise = [torch.randn(20, 16)], torch.randn(1, 16, 8, 8)
    for _ in range(steps):
        with torch.no_grad():
            made(noise, torch.tensor([0.2]), captions)
            hidden = made.embed(noise, torch.tensor([0.4]), captions)
        made.decode(hidden, run_block(checkpointing)).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for _, parameter in network.named_parameters()])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("count", "ring"), [(1, 2), (3, 1), (4, 2), (6, 2), (6, 3), (6, 9)])
def test_gradients_are_bit_for_bit_those_without_swapping(checkpointing: bool, count: int, ring: int) -> None:
    made: list[BlockSwap] = []
    found = gradients(
        model(True), checkpointing, swap=lambda m: made.append(BlockSwap(list(m.layers), count, CPU, ring))
    )
    assert torch.equal(found, gradients(model(True), checkpointing))
    assert made[0].loads


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("ring", [2, 3])
def test_a_step_moves_every_block_twice_but_those_in_the_ring_at_the_turn(
    checkpointing: bool, ring: int
) -> None:
    made, network = model(), None
    network = attach_lora(made, LoraSpec(dim=2))
    made.train()
    swap = BlockSwap(list(made.layers), LAYERS, CPU, ring)
    captions, noise = [torch.randn(20, 16)], torch.randn(1, 16, 8, 8)
    loads = []
    for _ in range(3):
        before, moved = len(swap.loads), swap.bytes_moved
        with torch.no_grad():
            hidden = made.embed(noise, torch.tensor([0.4]), captions)
        made.decode(hidden, run_block(checkpointing)).square().mean().backward()
        loads.append(swap.loads[before:])
        block = swap.host_bytes // LAYERS
        assert swap.bytes_moved - moved == len(loads[-1]) * block
    up, down = list(range(ring, LAYERS)), list(range(LAYERS - ring - 1, -1, -1))
    assert loads == [[*range(ring), *up, *down], [*up, *down], [*up, *down]]
    assert all(parameter.grad is not None for _, parameter in network.named_parameters())


def test_without_gradients_the_first_block_is_fetched_while_the_last_one_works() -> None:
    made = model()
    swap = BlockSwap(list(made.layers), LAYERS, CPU)
    with torch.inference_mode():
        for _ in range(2):
            made(torch.randn(1, 16, 8, 8), torch.tensor([0.2]), [torch.randn(20, 16)])
    assert swap.loads == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]


def test_only_frozen_tensors_are_swapped_and_the_ring_holds_as_many_blocks_as_it_is_long() -> None:
    made = model()
    network = attach_lora(made, LoraSpec(dim=2))
    whole = sum(p.numel() for p in made.layers.parameters() if not p.requires_grad) * 4
    swap = BlockSwap(list(made.layers), LAYERS, CPU, 2)
    assert whole <= swap.host_bytes < 1.2 * whole
    assert swap.ring_bytes == swap.host_bytes // LAYERS * 2
    with torch.no_grad():
        made(torch.randn(1, 16, 8, 8), torch.tensor([0.2]), [torch.randn(20, 16)])
    there = [swap.slot_of(block.attention.to_q.base.weight) is not None for block in made.layers]
    assert there == [True, False, False, False, False, True]
    assert all(swap.slot_of(parameter) is None for _, parameter in network.named_parameters())
    swap.home()
    assert not any(swap.slot_of(p) for p in made.parameters())


def test_a_weight_that_is_changed_at_home_is_the_one_that_is_used() -> None:
    made, twin = model(), model()
    swap = BlockSwap(list(made.layers), LAYERS, CPU)
    inputs = torch.randn(1, 16, 8, 8), torch.tensor([0.2]), [torch.randn(20, 16)]
    with torch.no_grad():
        made(*inputs)
        swap.home()
        for one in (made, twin):
            one.layers[0].attention.to_q.weight.mul_(2)
        assert torch.equal(made(*inputs), twin(*inputs))


def test_no_block_but_the_one_that_is_copied_is_held_twice_while_the_swap_is_made() -> None:
    with LiveBytes() as made:
        swapped = model()
        weights = made.now()
        swap = BlockSwap(list(swapped.layers), LAYERS, CPU, ring=1)
    assert made.peak < weights + swap.ring_bytes + 1.5 * swap.host_bytes / LAYERS


def test_the_swapped_blocks_are_spread_evenly() -> None:
    assert swapped_positions(30, 3) == [5, 15, 25] and swapped_positions(30, 30) == list(range(30))
    assert len(set(swapped_positions(30, 28))) == 28


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["updated", "gathered"])
def test_trained_blocks_come_back_changed_once_a_step_and_equal_those_never_swapped(
    way, checkpointing: bool
) -> None:
    made, twin = model().requires_grad_(), model().requires_grad_()
    swap = BlockSwap(list(made.layers), LAYERS, CPU, 2, way)
    captions, noise = [torch.randn(20, 16)], torch.randn(1, 16, 8, 8)

    @torch.no_grad()
    def update(parameter: Tensor) -> None:
        parameter -= 0.1 * parameter.grad
        parameter.grad = None

    for network in (made, twin):
        for parameter in network.parameters() if way == "updated" or network is twin else ():
            parameter.register_post_accumulate_grad_hook(update)
    for _ in range(2):
        before = swap.bytes_returned
        for network in (made, twin):
            out = network(noise, torch.tensor([0.4]), captions, run_block=run_block(checkpointing))
            out.square().mean().backward()
        swap.bring_home()
        if way == "updated":
            assert swap.bytes_returned - before == swap.host_bytes
        else:
            for parameter in made.parameters():
                update(parameter)
    assert all(torch.equal(one, two) for one, two in zip(made.parameters(), twin.parameters(), strict=True))
