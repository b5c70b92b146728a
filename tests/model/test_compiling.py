"""Compiled blocks: whole graphs, the numbers of the plain ones, with adapters, checkpointing and swapping."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zimage_gui.model.compiling import Compiler, why_not
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.offload import BlockSwap
from zimage_gui.model.quantise import QuantLinear, packed
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer, call_block_keeping_products

# torch warns of what its own tracer does
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

CPU = torch.device("cpu")
# the whole of tracing and differentiating, without the code generation that takes minutes
TRACED = Compiler(backend="aot_eager", fullgraph=True)


def model(quant: bool) -> ZImageTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, axes_dims=(4, 6, 6))  # fmt: skip
    made = ZImageTransformer(config)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
    if quant:
        for block in made.layers:
            weight = block.attention.to_q.weight.detach()
            block.attention.to_q = QuantLinear("int8", *packed(weight, "int8", weight.dtype), (32, 32))
    return made


def recomputed(block: nn.Module, x: Tensor, rope: Tensor, time: Tensor | None) -> Tensor:
    out: Tensor = checkpoint(block, x, rope, time, use_reentrant=False)
    return out


def outcome(compiler: Compiler | None, run_block, quant: bool, swapped: int) -> tuple[Tensor, Tensor]:
    """Output and the gradients of a LoRA."""
    made = model(quant)
    network = attach_lora(made, LoraSpec(dim=2))
    for module in network.modules.values():
        module.lora_up.data.normal_(0, 0.1)
    made.train()
    if swapped:
        BlockSwap(list(made.layers), swapped, CPU)
    if compiler is not None:
        compiler.apply(made.layers)
    with torch.no_grad():
        hidden = made.embed(torch.randn(2, 16, 8, 8), torch.tensor([0.4, 0.9]), [torch.randn(20, 16)] * 2)
    out = made.decode(hidden, run_block)
    out.square().mean().backward()
    return out.detach(), torch.cat([one.grad.flatten() for _, one in network.named_parameters()])


@pytest.mark.parametrize(
    ("run_block", "quant", "swapped"),
    [
        (call_block_keeping_products, True, 1),
        (recomputed, False, 0),
    ],
)
def test_compiled_blocks_have_the_output_and_gradients_of_plain_ones(run_block, quant, swapped) -> None:
    torch._dynamo.reset()
    plain = outcome(None, run_block, quant, swapped)
    compiled = outcome(TRACED, run_block, quant, swapped)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("way", "run_block"), [("updated", recomputed), ("gathered", call_block_keeping_products)]
)
def test_compiled_blocks_whose_trained_weights_are_swapped_train_as_those_never_moved(way, run_block) -> None:
    torch._dynamo.reset()
    made, twin = model(False).requires_grad_(), model(False).requires_grad_()
    swap = BlockSwap(list(made.layers), 2, CPU, 1, way)
    inputs = torch.randn(1, 16, 8, 8), torch.tensor([0.4]), [torch.randn(20, 16)]

    @torch.no_grad()
    def update(parameter: Tensor) -> None:
        parameter -= 0.1 * parameter.grad
        parameter.grad = None

    for network in (made, twin):
        TRACED.apply(network.layers)
        for parameter in network.parameters() if way == "updated" or network is twin else ():
            parameter.register_post_accumulate_grad_hook(update)
    for _ in range(2):
        for network in (made, twin):
            network(*inputs, run_block=run_block).square().mean().backward()
        swap.bring_home()
        for parameter in made.parameters() if way == "gathered" else ():
            update(parameter)
    assert all(torch.equal(one, two) for one, two in zip(made.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("quant", ["fp8", "int8", "nf4"])
def test_a_quantised_layer_is_compiled_whole_with_gradients_and_without(quant) -> None:
    torch._dynamo.reset()
    layer = QuantLinear(quant, *packed(torch.randn(64, 64), quant, torch.float32), (64, 64))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 64, requires_grad=True)
    for asked in (True, False):
        with torch.set_grad_enabled(asked):
            assert torch.equal(compiled(x), layer(x)) and compiled(x).requires_grad == asked


def test_blocks_of_one_kind_share_one_piece_of_code() -> None:
    torch._dynamo.reset()
    pieces: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        pieces.append(graph)
        return graph

    made = model(False).eval()
    Compiler(backend=counting, fullgraph=True).apply([*made.noise_refiner, *made.layers])  # type: ignore[arg-type]
    with torch.no_grad():
        made(torch.randn(1, 16, 8, 8), torch.tensor([0.4]), [torch.randn(20, 16)])
    assert len(pieces) == 2  # the refiner's picture alone, and picture with caption


def test_an_unknown_backend_is_refused_with_the_known_ones_and_a_missing_compiler_with_its_name(
    monkeypatch,
) -> None:
    rule, remedy = why_not("indcutor", CPU) or ("", "")
    assert "no backend" in rule and "inductor" in remedy
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    assert "package tvm" in (why_not("tvm", CPU) or ("",))[0]
    rule, _ = why_not("inductor", CPU) or ("", "")
    assert "no-such-compiler" in rule and why_not("aot_eager", CPU) is None
