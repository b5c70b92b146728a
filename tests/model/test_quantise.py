"""Quantised base weights: what they stand for, what they cost, what autograd keeps, and how they are loaded."""

import gc
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor, nn
from variants import FUSED, HUB, QWEN, tensors

from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.engine import convert_model
from zimage_gui.events import NullRun
from zimage_gui.model import quantise
from zimage_gui.model.fp8_names import is_fp8_target
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_merge import AppliedLora, LoraStack
from zimage_gui.model.lora_read import LoraFile, read_lora
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.placing import merges_of
from zimage_gui.model.quantise import QuantLinear, opened, packed, saved_bytes, stored_bytes
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import load_text_encoder, load_transformer

BOUNDS = {"fp8": 0.03, "int8": 0.008, "nf4": 0.1}
"""Largest error of a weight as a share of its norm."""
COSINES = {"fp8": 0.99, "int8": 0.999, "nf4": 0.9}
"""Of a LoRA's gradient through the whole model with the gradient on the model as it is."""
TARGETS = "every matrix of the blocks, nothing else"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def gradients(model: ZImageTransformer) -> Tensor:
    """Of a LoRA whose upper halves are not zero, as one vector."""
    network = attach_lora(model, LoraSpec(dim=4))
    for module in network.modules.values():
        with torch.no_grad():
            module.lora_up.copy_(drawn(*module.lora_up.shape) * 0.05)
    model.train()
    captions = [drawn(20, model.config.cap_feat_dim, seed=2)]
    model(drawn(1, 16, 8, 8), torch.tensor([0.4]), captions).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for _, parameter in network.named_parameters()])


@pytest.mark.parametrize("shape", [(64, 128), (85, 32), (32, 85)])
@pytest.mark.parametrize("quant", BOUNDS)
def test_a_weight_comes_back_within_the_error_of_its_format(quant: str, shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    back = opened(quant, *packed(weight, quant, torch.float32), shape, torch.float32)
    assert 0 < error(back, weight) < BOUNDS[quant]


def test_nf4_is_to_the_bit_what_bitsandbytes_makes_with_its_kernel_or_without() -> None:
    weight = drawn(48, 128)
    codes, scale = packed(weight, "nf4", torch.float32)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(theirs.view(-1), codes) and torch.equal(state.absmax, scale)
    values = bnb.dequantize_4bit(theirs, state)
    assert torch.equal(opened("nf4", codes, scale, (48, 128), torch.float32), values)
    assert torch.equal(quantise._nf4_opened(codes, scale, torch.float32).view(48, 128), values)


@pytest.mark.parametrize("quant", BOUNDS)
def test_opening_in_bf16_rounds_once(quant: str) -> None:
    codes, scale = packed(drawn(64, 128), quant, torch.bfloat16)
    exact = opened(quant, codes, scale, (64, 128), torch.float32)
    assert torch.equal(opened(quant, codes, scale, (64, 128), torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize(("quant", "bytes_each"), [("fp8", 1.0625), ("int8", 1.002), ("nf4", 0.5625)])
def test_the_memory_of_a_layer_of_the_real_model_is_what_its_format_says(
    quant: str, bytes_each: float
) -> None:
    layer = QuantLinear(quant, *packed(drawn(3840, 3840), quant, torch.float32), (3840, 3840))
    assert stored_bytes(layer) == pytest.approx(bytes_each * 3840**2, rel=1e-3)
    assert saved_bytes(layer, torch.bfloat16) == 2 * 3840**2 - stored_bytes(layer)


@pytest.mark.parametrize("quant", BOUNDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["one step", "composed"])
def test_autograd_keeps_the_quantised_weight_and_never_an_opened_copy(quant: str, dropout: float) -> None:
    layer = QuantLinear(quant, *packed(drawn(96, 64), quant, torch.float32), (96, 64))
    model = nn.ModuleList([layer])
    network = attach_lora(model, LoraSpec(dim=2, include=("0",), dropout=dropout))
    model.train()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        result = model[0](drawn(5, 64).requires_grad_())
    assert not [x for x in kept if x.is_floating_point() and x.numel() >= 96 * 64 and x.itemsize > 1]
    own = {x.data_ptr() for x in layer.stored}
    assert own <= {x.data_ptr() for x in kept}
    result.sum().backward()
    assert all(parameter.grad is not None for _, parameter in network.named_parameters())


def test_gradients_are_those_of_the_opened_weight() -> None:
    layer = QuantLinear("int8", *packed(drawn(7, 5), "int8", torch.float32), (7, 5))
    x, plain = drawn(2, 3, 5).requires_grad_(), drawn(2, 3, 5).requires_grad_()
    layer(x).square().sum().backward()
    nn.functional.linear(plain, layer.weight).square().sum().backward()
    assert torch.equal(x.grad, plain.grad)


@pytest.mark.parametrize("quant", BOUNDS)
def test_a_loras_gradient_on_a_quantised_model_is_near_the_one_on_the_whole(quant: str) -> None:
    whole = gradients(load_transformer(FUSED, dtype=torch.float32))
    near = gradients(load_transformer(FUSED, dtype=torch.float32, quant=quant))
    assert COSINES[quant] < float(nn.functional.cosine_similarity(near, whole, dim=0)) < 1
    assert error(near, whole) < 5 * BOUNDS[quant]


@pytest.mark.parametrize("path", [FUSED, HUB], ids=["fused", "split"])
def test_exactly_the_matrices_of_the_blocks_are_quantised_while_loading(path: Path) -> None:
    model = load_transformer(path, dtype=torch.float32, quant="fp8")
    plain = load_transformer(path, dtype=torch.float32).state_dict()
    layers = {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert layers == {n.removesuffix(".weight") for n in plain if is_fp8_target(n, "transformer")}, TARGETS
    for name, tensor in plain.items():
        owner = name.removesuffix(".weight")
        if owner in layers:
            found = model.get_submodule(owner).stored
            assert all(map(torch.equal, found, packed(tensor, "fp8", torch.float32)))
        else:
            assert torch.equal(model.get_parameter(name), tensor)


def in_full(size: int) -> int:
    """How many unquantised tensors of at least so many numbers are alive."""
    alive = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and not x.is_meta]
    return len(
        {x.data_ptr() for x in alive if x.numel() >= size and x.is_floating_point() and x.itemsize > 1}
    )


def test_a_load_never_holds_more_than_one_tensor_in_full() -> None:
    sizes = [tensor.numel() for name, tensor in tensors(FUSED).items() if "feed_forward" in name]
    most: list[int] = []

    def count(done: int, total: int) -> None:
        most.append(in_full(min(sizes)))

    gc.collect()
    gc.freeze()  # what is alive already is not looked through each time
    try:
        load_transformer(FUSED, dtype=torch.float32, quant="nf4", on_bytes=count)
    finally:
        gc.unfreeze()
    # the caption embedder and the modulation are no smaller, and stay whole by intention
    whole = [n for n, t in tensors(HUB / "transformer").items() if t.numel() >= min(sizes)]
    kept = sum(not is_fp8_target(name, "transformer") for name in whole)
    assert 0 < max(most) <= kept + 1 < len(whole)


def lora(folder: Path, model: ZImageTransformer) -> LoraFile:
    weight = model.layers[0].attention.to_q.weight
    entry = LowRank(drawn(2, weight.shape[1], seed=5), drawn(weight.shape[0], 2, seed=6), 2.0)
    write_lora(folder / "l.safetensors", {"layers.0.attention.to_q": entry})
    return read_lora(folder / "l.safetensors")


def test_a_lora_is_merged_before_the_weight_is_quantised(tmp_path: Path) -> None:
    plain = load_transformer(HUB, dtype=torch.float32)
    file = lora(tmp_path, plain)
    weight = plain.layers[0].attention.to_q.weight
    changed = weight + file.entries["layers.0.attention.to_q"].delta(weight) * 0.5
    model = load_transformer(HUB, dtype=torch.float32, quant="fp8", merges=merges_of([(file, 0.5)]))
    found = model.layers[0].attention.to_q.stored
    assert all(map(torch.equal, found, packed(changed, "fp8", torch.float32)))


def test_loras_act_on_a_quantised_model_and_leave_it_untouched_when_taken_off(tmp_path: Path) -> None:
    model = load_transformer(HUB, dtype=torch.float32, quant="fp8")
    file = lora(tmp_path, model)
    layer, x = model.layers[0].attention.to_q, drawn(3, 64)
    before = layer(x)
    stack = LoraStack(model)
    assert stack.set([AppliedLora(file, 0.5)]) == [1]
    wanted = before + 0.5 * x @ file.entries["layers.0.attention.to_q"].delta(layer.weight).t()
    assert torch.allclose(layer(x), wanted, atol=1e-4)
    stack.clear()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("form", ["fp8_comfy", "fp8_blocks"])
@pytest.mark.parametrize("layout", ["comfy", "diffusers"])
def test_a_file_in_scaled_fp8_loads_and_stays_quantised_when_asked(
    tmp_path: Path, form: str, layout: str
) -> None:
    (path,) = converted(FUSED, tmp_path / "f.safetensors", dtype=form, layout=layout)
    (plain,) = converted(path, tmp_path / "p.safetensors", dtype="fp32", layout="diffusers")
    wanted = tensors(plain)
    model = load_transformer(path, dtype=torch.float32)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    kept = load_transformer(path, dtype=torch.float32, quant="fp8")
    layer = kept.layers[1].attention.to_v
    assert layer.stored[0].dtype is torch.float8_e4m3fn
    assert torch.equal(layer.weight, wanted["layers.1.attention.to_v.weight"])
    again = load_transformer(path, dtype=torch.float32, quant="int8").layers[1].attention.to_v
    assert again.quant == "int8" and error(again.weight, layer.weight) < BOUNDS["int8"]


def converted(source: Path, output: Path, **options: str) -> list[Path]:
    return convert_model.run(ConvertConfig(input=source, output=output, **options), NullRun(output.parent))


def test_the_text_encoder_keeps_its_norms_and_embedding_and_gives_near_features() -> None:
    ids = torch.arange(12)[None]
    plain = load_text_encoder(QWEN, dtype=torch.float32)
    small = load_text_encoder(QWEN, dtype=torch.float32, quant="fp8")
    assert type(small.layers[0].mlp.up_proj) is QuantLinear
    assert torch.equal(small.embed_tokens.weight, plain.embed_tokens.weight)
    assert torch.equal(small.layers[0].input_layernorm.weight, plain.layers[0].input_layernorm.weight)
    assert 0 < error(small(ids), plain(ids)) < 0.05
