"""What `inspect` says of ComfyUI, diffusers and musubi-tuner is what they were measured to do."""

import json
import os
from pathlib import Path

import pytest
import torch
from headers import sparse, split_transformer
from safetensors.torch import save_file

from zimage_gui.engine.inspect_file import inspect
from zimage_gui.errors import UserError
from zimage_gui.model.keymaps import fused_parts
from zimage_gui.model.lora_files import read_lora

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
SINGLE = DATA / "reference" / "single"
DIALECTS = DATA / "lora_dialects"
GOLDEN = json.loads((DIALECTS / "manifest.json").read_text(encoding="utf-8"))["files"]
# First words of the manifest's measurements -> the answer a user should get.
MEASURED = {
    "exact": ("yes",), "partly": ("partly",), "no effect": ("no",), "differs": ("partly",), "error": ("no",),
    "0 patches": ("no",), "7 patches": ("partly",), "14 patches": ("partly",),
    "loads, exact": ("yes",), "loads, WRONG": ("no",), "loads silently": ("no",), "loads partly": ("no", "partly"),
    "refuses": ("no",),
}  # fmt: skip


def answers(path):
    return {one.program: one.answer for one in inspect(path).verdicts}


def expected(measured):
    return next(answer for start, answer in MEASURED.items() if measured.startswith(start))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_golden_dialect_gets_the_measured_answers(name):
    told = answers(DIALECTS / name)
    assert told["ComfyUI"] in expected(GOLDEN[name]["comfyui"])
    assert told["diffusers"] in expected(GOLDEN[name]["diffusers_0_42_1"])
    if "musubi_tuner_0_3_4_merge_max_abs" in GOLDEN[name]:
        assert told["musubi-tuner"] == "yes"
    assert told["z-image-burn"] == ("yes" if name == "fused_rust.safetensors" else "no")


@pytest.mark.parametrize("name", GOLDEN)
def test_here_means_what_the_reader_of_loras_does(name):
    try:
        readable = not read_lora(DIALECTS / name).problems
    except UserError:
        readable = False
    if name == "broken_shape_mismatch.safetensors":  # the reader sees it only beside the model
        readable = False
    assert answers(DIALECTS / name)["here"] == ("yes" if readable else "no")


@pytest.mark.parametrize(
    ("prefix", "style", "alpha", "answer"),
    [
        ("diffusion_model.", "lora_down", False, "yes"),
        ("", "lora_down", True, "yes"),
        ("", "lora_down", False, "no"),
        ("", "lora_A", False, "no"),
        ("transformer.", "lora_down", False, "no"),
        ("base_model.model.transformer.", "lora_A", False, "no"),
        ("base_model.model.", "lora_A", True, "no"),
        ("model.diffusion_model.", "lora_A", True, "no"),
        ("lycoris_", "lora_down", True, "no"),
        ("lora_transformer_", "lora_down", False, "no"),
        ("lora_unet_", "lora_down", False, "yes"),
        ("lora_unet_", "lora_A", True, "no"),
    ],
)
def test_forms_measured_with_diffusers_0_42_1_beside_the_golden_ones(tmp_path, prefix, style, alpha, answer):
    path = "layers.0.feed_forward.w1"
    stem = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
    other = {"lora_A": "lora_B", "lora_down": "lora_up"}[style]
    shapes = {f"{stem}.{style}.weight": (4, 64), f"{stem}.{other}.weight": (64, 4)}
    shapes |= {f"{stem}.alpha": ()} if alpha else {}
    assert answers(sparse(tmp_path / "x.safetensors", shapes, "F32"))["diffusers"] == answer


ENDS = {"x_embedder": (64, 16), "t_embedder_mlp_0": (1024, 256), "t_embedder_mlp_2": (64, 1024)}


@pytest.mark.parametrize(
    ("modules", "comfy", "diffusers"),
    [
        (("x_embedder", "t_embedder_mlp_0", "t_embedder_mlp_2"), "yes", "partly"),
        (("x_embedder",), "yes", "no"),
        (("t_embedder_mlp_0", "t_embedder_mlp_2"), "yes", "yes"),
    ],
)
def test_layers_outside_the_blocks_have_sizes_and_readers_of_their_own(tmp_path, modules, comfy, diffusers):
    shapes = {}
    for module in modules:
        rows, columns = ENDS[module]
        shapes |= {f"lora_unet_{module}.lora_down.weight": (2, columns), f"lora_unet_{module}.alpha": ()}
        shapes[f"lora_unet_{module}.lora_up.weight"] = (rows, 2)
    told = answers(sparse(tmp_path / "x.safetensors", shapes, "F32"))
    assert (told["ComfyUI"], told["diffusers"], told["here"]) == (comfy, diffusers, "yes")


def test_a_lokr_whose_first_factor_is_in_two_is_not_for_diffusers(tmp_path):
    stem = "diffusion_model.layers.0.attention.to_q.lokr_"
    shapes = {f"{stem}w1_a": (4, 2), f"{stem}w1_b": (2, 4), f"{stem}w2": (16, 16)}
    told = answers(sparse(tmp_path / "x.safetensors", shapes, "F32"))
    assert (told["ComfyUI"], told["diffusers"]) == ("yes", "no")


@pytest.mark.parametrize(
    ("alpha", "header"),
    [([1.0, 2.0], None), (float("nan"), None), (None, "{cut"), (None, '{"transformer.lora_alpha": "x"}')],
)
def test_a_strength_that_cannot_be_read_keeps_a_lora_from_loading_here(tmp_path, alpha, header):
    stem = "transformer.layers.0.attention.to_q."
    tensors = {f"{stem}lora_A.weight": torch.ones(2, 64), f"{stem}lora_B.weight": torch.ones(64, 2)}
    tensors |= {} if alpha is None else {f"{stem}alpha": torch.tensor(alpha)}
    metadata = {"lora_adapter_metadata": header} if header else None
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    assert answers(tmp_path / "x.safetensors")["here"] == "no"
    assert read_lora(tmp_path / "x.safetensors").problems


@pytest.mark.parametrize(
    "shapes",
    [
        {"attention.qkv.lora_A.weight": (2, 64), "attention.qkv.lora_B.weight": (224, 2)},
        {"attention.qkv.lokr_w1": (4, 4), "attention.qkv.lokr_w2": (16, 16)},
        {
            "attention.to_q.lokr_w1": (8, 8),
            "attention.to_q.lokr_w2_a": (8, 2),
            "attention.to_q.lokr_w2_b": (3, 8),
        },
        {f"attention.to_q.hada_w{n}_{x}": (64, 2) if x == "a" else (n + 1, 64) for n in (1, 2) for x in "ab"},
    ],
)
def test_factors_that_cannot_be_multiplied_or_split_load_nowhere(tmp_path, shapes):
    tensors = {f"diffusion_model.layers.0.{name}": torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors").problems
    told = answers(tmp_path / "x.safetensors")
    assert told["here"] == told["diffusers"] == "no" and told["ComfyUI"] != "yes"


def test_an_alpha_stored_as_a_whole_number_is_told(tmp_path):
    stem = "diffusion_model.layers.0.attention.to_q."
    tensors = {f"{stem}lora_A.weight": torch.ones(2, 64), f"{stem}lora_B.weight": torch.ones(64, 2)}
    save_file(tensors | {f"{stem}alpha": torch.tensor(3)}, tmp_path / "x.safetensors")
    assert "alpha 3" in inspect(tmp_path / "x.safetensors").sentence


def test_a_rust_lora_without_its_sidecar_is_of_no_use(tmp_path):
    os.link(DIALECTS / "fused_rust.safetensors", tmp_path / "x.safetensors")
    told = answers(tmp_path / "x.safetensors")
    assert told["z-image-burn"] == told["here"] == "no"


PROGRAMS = ("ComfyUI", "diffusers", "musubi-tuner", "z-image-burn", "here")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (HUB / "transformer", "no yes yes no yes"),
        (SINGLE / "z_image_fused.safetensors", "yes yes yes yes yes"),
        (HUB / "vae", "yes yes yes no yes"),
        (SINGLE / "ae.safetensors", "yes partly yes yes yes"),
        (HUB / "text_encoder", "no yes yes no yes"),
        (SINGLE / "qwen_3.safetensors", "yes no yes yes yes"),
    ],
)
def test_every_model_layout_gets_its_answers(path, told):
    assert answers(path) == dict(zip(PROGRAMS, told.split(), strict=True))


TELLING = {
    "cap_embedder.1.weight": (64, 2560), "cap_pad_token": (1, 64), "layers.0.attention.qkv.weight": (192, 64),
}  # fmt: skip


def _shapes(split: bool) -> dict[str, tuple[int, ...]]:
    whole = split_transformer()
    if split:
        return whole
    return {
        name: (sum(whole[part][0] for part in parts), *whole[parts[0]][1:])
        for name, parts in fused_parts(whole).items()
    }


@pytest.mark.parametrize(
    ("prefix", "split", "told"),
    [
        ("", True, "partly yes yes no yes"),
        ("model.diffusion_model.", False, "yes yes no no yes"),
        ("model.diffusion_model.", True, "partly no no no yes"),
        ("transformer.", False, "no no no no yes"),
    ],
)
def test_a_prefix_decides_who_reads_a_transformer(tmp_path, prefix, split, told):
    """diffusers' answers were measured with `from_single_file` of 0.42.1."""
    shapes = {prefix + name: shape for name, shape in _shapes(split).items()}
    assert answers(sparse(tmp_path / "x.safetensors", shapes)) == dict(
        zip(PROGRAMS, told.split(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers.7.feed_forward.w2.weight": None}, "1 tensor missing (layers.7.feed_forward.w2.weight)"),
        ({"layers.7.feed_forward.w9.weight": (3840,)}, "1 tensor of no part of the model (layers.7."),
        (
            {"x_pad_token": (2, 3840)},
            "1 tensor of another shape (x_pad_token is [2, 3840], needed [1, 3840])",
        ),
    ],
)
def test_a_model_that_is_not_whole_loads_nowhere_and_says_why(tmp_path, change, told):
    shapes = {name: shape for name, shape in (_shapes(True) | change).items() if shape is not None}
    verdicts = inspect(sparse(tmp_path / "x.safetensors", shapes)).verdicts
    assert {one.answer for one in verdicts} == {"no"}
    assert all(told in one.because for one in verdicts)


@pytest.mark.parametrize(
    ("extra", "word", "comfy"),
    [
        ({"layers.0.x.scale_weight": ((8, 1, 1), "BF16")}, "scaled fp8 in blocks, as musubi-tuner", "no"),
        ({"layers.0.x.scale_weight": ((), "F32"), "scaled_fp8": ((2,), "F8_E4M3")}, "scaled fp8", "yes"),
        ({"layers.0.x.weight_scale_2": ((), "F32")}, "NVFP4", "yes"),
        (
            {"layers.0.x.comfy_quant": ((9,), "U8"), "layers.0.x.weight": ((8, 8), "I8")},
            "int8 ComfyUI",
            "yes",
        ),
        ({"layers.0.x.qweight": ((8,), "U8")}, "nunchaku", "partly"),
        ({"layers.0.x.weight.absmax": ((8,), "F32")}, "bitsandbytes", "no"),
        ({"layers.0.x.weight": ((8, 8), "F8_E4M3")}, "fp8", "yes"),
    ],
)
def test_quantised_models_are_named_with_who_reads_them(tmp_path, extra, word, comfy):
    shapes = TELLING | {name: shape for name, (shape, _) in extra.items()}
    dtypes = {name: dtype for name, (_, dtype) in extra.items()}
    path = sparse(tmp_path / "x.safetensors", shapes, dtypes)
    assert word in inspect(path).sentence and answers(path)["ComfyUI"] == comfy


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({"model.diffusion_model.input_blocks.1.0.x": (4,), "b.attn2.to_k.weight": (64, 2048)}, "an SDXL model"),
        ({"model.diffusion_model.input_blocks.1.0.x": (4,), "b.attn2.to_k.weight": (64, 768)}, "Stable Diffusion 1.x"),
        ({"model.diffusion_model.input_blocks.1.0.x": (4,), "b.attn2.to_k.weight": (64, 2048), "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "an SDXL model"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4), "guidance_in.in_layer.weight": (4, 4)}, "Flux dev"),
        ({"blocks.0.cross_attn.q.weight": (4, 4), "patch_embedding.weight": (4, 4)}, "a Wan video model"),
        ({"control_layers.0.attention.qkv.weight": (4, 4)}, "a Z-Image ControlNet"),
        ({"cap_embedder.1.weight": (64, 2304), "layers.0.attention.qkv.weight": (4, 4)}, "Lumina-Image 2.0"),
        (TELLING | {"siglip_embedder.0.weight": (4,)}, "Z-Image Omni"),
        ({"layers.0.attention.to_q.lora_A.weight": (4, 2304), "layers.0.attention.to_q.lora_B.weight": (4, 4)}, "for Lumina-Image 2.0"),
        ({"lora_te1_text_model_encoder_layers_0.lora_down.weight": (4, 4)}, "an adapter for SDXL"),
        ({"a.exp_avg_sq": (4,)}, "moments of an optimizer"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (4, 4)}, "a Stable Diffusion VAE"),
        ({"something.weight": (4,)}, "a file this program does not know (1 tensors, for example 'something.weight')"),
    ],
)  # fmt: skip
def test_other_models_are_named_and_not_for_here(tmp_path, shapes, word):
    path = sparse(tmp_path / "x.safetensors", shapes)
    assert word in inspect(path).sentence and answers(path).get("here", "no") == "no"
