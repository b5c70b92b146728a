"""Scaled fp8: written as the two peers write it, and read back to exactly the numbers it stands for."""

import json

import pytest
import torch
from models import DEMO, FUSED, MUSUBI, SINGLE, assert_same, convert, tensors
from safetensors.torch import load_file, save_file

from zimage_gui.errors import UserError
from zimage_gui.model.weights import load_transformer

F8 = torch.float8_e4m3fn
MATRICES = ("attention.qkv.", "attention.out.", "feed_forward.")


def _value(stored, name):
    """What a quantised weight stands for, by the formula q · s."""
    weight = stored[f"{name}.weight"].float()
    scale = stored[f"{name}.scale_weight"].float()
    if scale.numel() == 1:
        return weight * scale
    per_row = scale.view(len(weight), -1)
    return weight * per_row.repeat_interleave(weight.shape[1] // per_row.shape[1], dim=1)


def test_comfyuis_form_has_its_mark_one_scale_per_matrix_and_leaves_the_rest(tmp_path):
    stored = tensors(convert(FUSED, tmp_path / "o.safetensors", dtype="fp8_comfy")[0])
    whole = load_file(FUSED)
    assert stored["scaled_fp8"].dtype == F8 and stored["scaled_fp8"].shape == (2,)
    quantised = {name for name, tensor in stored.items() if tensor.dtype == F8} - {"scaled_fp8"}
    assert quantised == {
        name for name in whole if any(part in name for part in MATRICES) and name.endswith(".weight")
    }
    for name in quantised:
        scale = stored[name.replace(".weight", ".scale_weight")]
        assert scale.shape == () and scale.dtype == torch.float32
        torch.testing.assert_close(scale, whole[name].float().abs().max() / 448)
        assert stored[name].float().abs().max() == 448
        error = _value(stored, name.removesuffix(".weight")) - whole[name].float()
        # e4m3 has three bits behind the point: half a step is 1/16 of the number, below 2^-6 a fixed 2^-10.
        assert bool((error.abs() <= whole[name].float().abs() / 16 + scale * 2**-10).all())
    assert_same(
        {n: t for n, t in whole.items() if n not in quantised},
        {n: stored[n] for n in whole if n not in quantised},
    )


@pytest.mark.parametrize("source", [MUSUBI / "models" / "dit.safetensors", DEMO / "transformer"])
def test_the_first_seeds_form_scales_blocks_of_64_and_rows_where_that_does_not_divide(tmp_path, source):
    stored = tensors(convert(source, tmp_path / "o.safetensors", dtype="fp8_blocks", layout="diffusers")[0])
    whole = tensors(source)
    quantised = {name for name, tensor in stored.items() if tensor.dtype == F8}
    blocks = len(
        {
            name.rsplit(".", 3)[0].split(".attention")[0]
            for name in whole
            if name.endswith(".attention.to_q.weight")
        }
    )
    assert len(quantised) == 7 * blocks
    for name in quantised:
        stem, weight = name.removesuffix(".weight"), whole[name].float()
        scale, (rows, width) = stored[f"{stem}.scale_weight"], weight.shape
        assert scale.shape == ((rows, width // 64, 1) if width % 64 == 0 else (rows, 1))
        assert scale.dtype == whole[name].dtype
        error = (_value(stored, stem) - weight).norm() / weight.norm()
        assert error < 0.03
    assert "scaled_fp8" not in stored


@pytest.mark.parametrize("form", ["fp8_comfy", "fp8_blocks"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("output", ["o.safetensors", "o.bpk", "o"])
def test_scaled_fp8_opens_to_exactly_the_numbers_it_stands_for(tmp_path, form, dtype, output):
    source, _ = convert(FUSED, tmp_path / "fp8.safetensors", dtype=form)
    stored = load_file(source)
    opened, _ = convert(source, tmp_path / output, dtype=dtype)
    found = tensors(convert(opened, tmp_path / "fused.safetensors")[0])
    target = torch.float32 if dtype == "f32" else torch.bfloat16
    for name, tensor in load_file(FUSED).items():
        stem = name.removesuffix(".weight")
        want = _value(stored, stem) if f"{stem}.scale_weight" in stored else tensor
        assert torch.equal(found[name], want.to(target)), name


def test_comfyuis_newer_form_and_plain_fp8_are_read_too(tmp_path):
    old = load_file(convert(FUSED, tmp_path / "old.safetensors", dtype="fp8_comfy")[0])
    new, plain = {}, {}
    for name, tensor in old.items():
        new[name.replace(".scale_weight", ".weight_scale")] = tensor
        if name.endswith(".scale_weight"):
            conf = json.dumps({"format": "float8_e4m3fn"}).encode()
            new[name.replace(".scale_weight", ".comfy_quant")] = torch.frombuffer(
                bytearray(conf), dtype=torch.uint8
            ).clone()
            new[name.replace(".scale_weight", ".input_scale")] = torch.tensor(1.0)
        elif name != "scaled_fp8":
            plain[name] = tensor
    del new["scaled_fp8"]
    save_file(new, tmp_path / "new.safetensors", metadata={"_quantization_metadata": "{}"})
    save_file(plain, tmp_path / "plain.safetensors")
    want = tensors(convert(tmp_path / "old.safetensors", tmp_path / "a.safetensors", dtype="f32")[0])
    assert_same(
        want, tensors(convert(tmp_path / "new.safetensors", tmp_path / "b.safetensors", dtype="f32")[0])
    )
    found = tensors(convert(tmp_path / "plain.safetensors", tmp_path / "c.safetensors", dtype="f32")[0])
    assert_same({name: tensor.float() for name, tensor in plain.items()}, found)


def test_fp8_is_kept_where_nothing_else_changes_and_not_rounded_in_silence_elsewhere(tmp_path):
    source, _ = convert(FUSED, tmp_path / "s.safetensors", dtype="fp8_comfy", prefix="model.diffusion_model.")
    kept, _ = convert(source, tmp_path / "kept.safetensors")
    assert_same(
        {name.removeprefix("model.diffusion_model."): tensor for name, tensor in load_file(source).items()},
        tensors(kept),
    )
    for output in ("o", "o.bpk"):
        with pytest.raises(UserError, match=r"would keep fp8 numbers.*Choose bf16 or f32 \(exact\)\."):
            convert(source, tmp_path / output)
    with pytest.raises(UserError, match=r"\(exact\), or one of the fp8 forms\."):
        convert(source, tmp_path / "split.safetensors", layout="diffusers")


def test_a_text_encoder_can_be_quantised_and_opened(tmp_path):
    source, _ = convert(SINGLE / "qwen_3.safetensors", tmp_path / "s.safetensors", dtype="fp8_comfy")
    stored = load_file(source)
    assert sum(tensor.dtype == F8 for tensor in stored.values()) == 2 * 7 + 1
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16
    found = tensors(convert(source, tmp_path / "o.safetensors", dtype="f32")[0])
    name = "model.layers.1.mlp.gate_proj"
    assert torch.equal(found[f"{name}.weight"], _value(stored, name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers.0.attention.out.scale_weight": torch.ones(7)}, "scales neither tensor, rows nor blocks"),
        (
            {"layers.1.attention.out.scale_weight": None},
            "layers.1.attention.out.weight in fp8 without its scale",
        ),
        ({"layers.9.attention.out.scale_weight": torch.ones(())}, "no scale of exactly one weight"),
        ({"layers.0.attention.out.scale_weight": torch.ones(64, 2, dtype=torch.uint8)}, "does not read"),
    ],
)
def test_a_scale_that_fits_nothing_is_named(tmp_path, change, reason):
    stored = load_file(convert(FUSED, tmp_path / "s.safetensors", dtype="fp8_comfy")[0])
    broken = {name: value for name, value in (stored | change).items() if value is not None}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=reason):
        convert(tmp_path / "broken.safetensors", tmp_path / "o.safetensors", dtype="bf16")


@pytest.mark.parametrize("dtype", ["fp8_comfy", "fp8_blocks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_quantised(tmp_path, dtype, value):
    weights = load_file(FUSED)
    weights["layers.0.attention.out.weight"][3, 5] = value
    save_file(weights, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"layers\.0\.attention\.out\.weight, which holds infinity or NaN"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype=dtype)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("form", ["fp8_comfy", "fp8_blocks"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_scale_that_is_no_number_is_refused_wherever_it_would_be_used(tmp_path, form, value):
    stored = load_file(convert(FUSED, tmp_path / "s.safetensors", dtype=form)[0])
    stored["layers.1.feed_forward.w2.scale_weight"].view(-1)[-1] = value
    broken = tmp_path / "broken.safetensors"
    save_file(stored, broken)
    reason = r"undefined fp8 scale for layers\.1\.feed_forward\.w2\.weight"
    with pytest.raises(UserError, match=reason):
        convert(broken, tmp_path / "o.safetensors", dtype="bf16")
    with pytest.raises(UserError, match=reason):
        load_transformer(broken)
    convert(broken, tmp_path / "kept.safetensors")  # changes no number
    assert not (tmp_path / "o.safetensors").exists()
