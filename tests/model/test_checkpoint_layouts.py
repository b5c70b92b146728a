"""Every layout a user may have on disk fills the same network with the same numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from variants import FUSED, HUB, LDM, QWEN, renamed, tensors, write

from zimage_gui.errors import UserError
from zimage_gui.model.weights import (
    load_text_encoder,
    load_transformer,
    load_vae,
    model_problems,
    text_encoder_config_of,
    transformer_config_of,
    vae_config_of,
)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


SHARD = HUB / "transformer" / "diffusion_pytorch_model-00001-of-00003.safetensors"


@pytest.mark.parametrize(
    "path", [HUB, HUB / "transformer", SHARD, FUSED], ids=["root", "folder", "shard", "fused"]
)
def test_the_transformer_loads_alike_from_hub_folder_shard_and_fused_file(path: Path) -> None:
    wanted = tensors(HUB / "transformer")
    model = load_transformer(path, dtype=torch.float32)
    assert set(model.state_dict()) == set(wanted)
    assert all(torch.equal(tensor, wanted[name].float()) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


@pytest.mark.parametrize(
    "prefix",
    ["model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "module.", "any.thing."],
)
@pytest.mark.parametrize("source", [FUSED, HUB / "transformer"], ids=["fused", "split"])
def test_prefixes_are_stripped(prefix: str, source: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "prefixed.safetensors", renamed(tensors(source), lambda name: prefix + name))
    assert same(load_transformer(file), load_transformer(HUB))


def test_an_all_in_one_file_gives_every_part(tmp_path: Path) -> None:
    state = renamed(tensors(FUSED), lambda name: "model.diffusion_model." + name)
    state |= renamed(tensors(LDM), lambda name: "first_stage_model." + name)
    state |= renamed(tensors(QWEN), lambda name: "text_encoders.qwen3_4b.transformer." + name)
    file = write(tmp_path / "everything.safetensors", state)
    assert same(load_transformer(file), load_transformer(HUB))
    assert same(load_vae(file), load_vae(HUB))
    assert same(load_text_encoder(file), load_text_encoder(HUB))


def test_flat_pad_tokens_and_the_legacy_norm_are_accepted(tmp_path: Path) -> None:
    state = {
        name: tensor.flatten() if "pad_token" in name else tensor for name, tensor in tensors(FUSED).items()
    }
    state["norm_final.weight"] = torch.ones(64)
    assert same(load_transformer(write(tmp_path / "flat.safetensors", state)), load_transformer(HUB))


def test_mixed_dtypes_become_the_asked_one(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = {name: tensor.to(dtypes[i % 4]) for i, (name, tensor) in enumerate(tensors(FUSED).items())}
    model = load_transformer(write(tmp_path / "mixed.safetensors", state), dtype=torch.float32)
    wanted = load_transformer(HUB, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype is torch.float32
        assert torch.allclose(tensor, wanted[name], atol=1e-3), name


def test_the_autoencoder_loads_alike_from_both_layouts_and_old_attention_names(tmp_path: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        for new, word in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{word}.")
        return name

    aged = write(tmp_path / "aged.safetensors", renamed(tensors(HUB / "vae"), rename))
    prefixed = write(tmp_path / "prefixed.safetensors", renamed(tensors(LDM), lambda name: "vae." + name))
    wanted = load_vae(HUB / "vae")
    for path in (HUB, LDM, aged, prefixed):
        assert same(load_vae(path), wanted), path


def test_the_text_encoder_loads_alike_from_hub_folder_and_files_with_or_without_prefix(
    tmp_path: Path,
) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors(QWEN).items()}
    bare["lm_head.weight"] = torch.zeros(600, 64)
    long = renamed(tensors(QWEN), lambda name: "text_encoders.qwen3_4b.transformer." + name)
    wanted = load_text_encoder(HUB)
    files = [write(tmp_path / "bare.safetensors", bare), write(tmp_path / "long.safetensors", long)]
    for path in (HUB / "text_encoder", QWEN, *files):
        assert same(load_text_encoder(path), wanted), path


def test_sizes_are_known_from_headers_alone() -> None:
    assert transformer_config_of(FUSED) == load_transformer(HUB).config == transformer_config_of(HUB)
    assert vae_config_of(LDM) == load_vae(HUB).config
    assert text_encoder_config_of(QWEN) == load_text_encoder(HUB).config
    assert model_problems(FUSED, LDM, QWEN) == []


def test_a_config_beside_the_file_decides_what_tensors_cannot_show(tmp_path: Path) -> None:
    settings = {
        "_class_name": "ZImageTransformer2DModel",
        "axes_dims": [16, 8, 8],
        "rope_theta": 100.0,
        "t_scale": 500,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(FUSED, tmp_path)
    shutil.copy(LDM, tmp_path)
    config = transformer_config_of(tmp_path / FUSED.name)
    assert (config.axes_dims, config.rope_theta, config.t_scale) == ((16, 8, 8), 100.0, 500.0)
    assert vae_config_of(tmp_path / LDM.name) == vae_config_of(LDM), "a config of another part is not read"


def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    settings = json.loads((HUB / "transformer" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(settings | {"n_layers": 30}), encoding="utf-8")
    shutil.copy(FUSED, tmp_path)
    with pytest.raises(UserError, match=r"config\.json.*n_layers = 30 \(tensors: 2\)"):
        transformer_config_of(tmp_path / FUSED.name)


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    load_transformer(HUB, on_bytes=lambda done, total: seen.append((done, total)))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors(HUB / "transformer").values())
    assert seen[-1] == (stored, stored)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_loaded_model_does_not_hold_its_file(tmp_path: Path) -> None:
    file = Path(shutil.copy(FUSED, tmp_path / "model.safetensors"))
    model = load_transformer(file)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
