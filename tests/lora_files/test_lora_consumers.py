"""The programs that read our files compute the same with them: diffusers itself, and ComfyUI's rules."""

import warnings

import pytest
import torch
from comfy_twin import apply, fused_model
from dialect_files import BLOCKS, SHAPES, make, weights
from lora_golden import DIALECTS, HUB
from safetensors.torch import load_file

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.engine.convert_lora import run as convert
from zimage_gui.events import NullRun
from zimage_gui.model.lora_files import LowRank, linear_shapes, merged_weights, read_lora, write_lora


def _converted(folder, source, target):
    config = ConvertLoraConfig(input=source, output=folder / "out.safetensors", target=target)
    return convert(config, NullRun(folder))[0]


@pytest.mark.parametrize("target", ["other", "comfy"])
@pytest.mark.parametrize(
    "dialect",
    [
        "musubi",
        "peft header",
        "rust",
        "fused kohya",
        "only to_q",
        "fused lokr",
        "dm lokr_low",
        "native mixed",
        "fp16",
    ],
)
def test_comfyui_maps_every_tensor_and_adds_the_same(tmp_path, dialect, target):
    source, wanted = make(dialect, tmp_path)
    path = _converted(tmp_path, source, target)
    found, unused = apply(weights(), load_file(path))
    assert not unused
    for name, tensor in fused_model(weights() | wanted).items():
        torch.testing.assert_close(found[name], tensor, atol=3e-6, rtol=1e-5)


def test_musubis_own_names_load_only_partly_in_comfyui(tmp_path):
    """Else the twin would accept what ComfyUI does not, and the test above would prove nothing."""
    source, _ = make("musubi", tmp_path)
    _, unused = apply(weights(), load_file(source))
    assert unused and all("attention_to_" in name or "_unet_all_" in name for name in unused)


def _fused_by_diffusers(path):
    """Every weight after diffusers has loaded and fused the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import ZImagePipeline, ZImageTransformer2DModel

        transformer = ZImageTransformer2DModel.from_pretrained(HUB / "transformer", torch_dtype=torch.float32)
        parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
        pipeline = ZImagePipeline(**parts, transformer=transformer)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    return {name: tensor.detach() for name, tensor in pipeline.transformer.state_dict().items()}


def _assert_fused(path, base, source):
    wanted = merged_weights(base, source)
    for name, tensor in _fused_by_diffusers(path).items():
        torch.testing.assert_close(tensor, wanted.get(name, base[name]), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("all_kohya_split", "other"),
        ("all_kohya_split", "peft"),
        ("all_kohya_fused", "peft"),
        ("main_kohya_split", "comfy"),
        ("loha_kohya", "peft"),
        ("lokr_full_kohya", "peft"),
        ("lokr_lowrank_kohya", "other"),
        ("dora_plain", "peft"),
        ("fused_rust", "default"),
    ],
)
def test_diffusers_fuses_to_the_same_weights(tmp_path, base, name, target):
    source = DIALECTS / f"{name}.safetensors"
    _assert_fused(_converted(tmp_path, source, target), base, read_lora(source))


def test_diffusers_follows_the_ranks_and_alphas_of_each_module(tmp_path, base, model):
    generator = torch.Generator().manual_seed(1)
    entries = {}
    for index, (path, (rows, columns)) in enumerate(linear_shapes(model).items()):
        if "layers" in path or "refiner" in path:
            rank, alpha = 1 + index % 3, [1.0, 2.5, 8.0, 0.25][index % 4]
            down, up = (
                torch.randn(rank, columns, generator=generator),
                torch.randn(rows, rank, generator=generator),
            )
            entries[path] = LowRank(down, up / 8, alpha)
    write_lora(tmp_path / "p.safetensors", entries, "peft")
    read = read_lora(tmp_path / "p.safetensors")
    assert {p: (e.rank, e.alpha) for p, e in read.entries.items()} == {
        p: (e.rank, e.alpha) for p, e in entries.items()
    }
    _assert_fused(tmp_path / "p.safetensors", base, read)


def test_the_rust_programs_formula_gives_the_same_weights(tmp_path):
    """y = W x + alpha / rank * B A x on its fused qkv, with one rank and alpha for all."""
    import json

    source, wanted = make("native mixed", tmp_path)
    path = _converted(tmp_path, source, "rust")
    facts = json.loads((tmp_path / "out.lora.json").read_text(encoding="utf-8"))
    assert facts["target_attention"] and facts["target_feed_forward"] and facts["target_refiners"]
    model = {
        name.replace("attention.out", "attention.to_out"): t.clone()
        for name, t in fused_model(weights()).items()
    }
    tensors = load_file(path)
    for name, down in tensors.items():
        if name.endswith(".lora_a"):
            up = tensors[name[:-1] + "b"]
            assert down.shape[0] == up.shape[1] == facts["rank"] and down.dtype is torch.float32
            model[name.removesuffix(".lora_a")] += facts["alpha"] / facts["rank"] * up @ down
    for name, tensor in fused_model(weights() | wanted).items():
        torch.testing.assert_close(
            model[name.replace("attention.out", "attention.to_out")], tensor, atol=3e-6, rtol=1e-5
        )
    assert set(BLOCKS) < set(SHAPES)
