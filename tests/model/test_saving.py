"""What we write, other programs read: diffusers and transformers load our files, and we read our own back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersVae
from diffusers import ZImageTransformer2DModel
from safetensors.torch import load_file
from transformers import Qwen3Model
from variants import FUSED, HUB, LDM, QWEN, tensors

from zimage_gui.files import read_header
from zimage_gui.model.keymaps import fused_parts
from zimage_gui.model.recognise import recognise
from zimage_gui.model.saving import (
    save_hub_part,
    save_text_encoder,
    save_transformer,
    save_vae,
    text_encoder_settings,
    transformer_settings,
    vae_settings,
)
from zimage_gui.model.tensor_files import Entry, write_tensors
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer
from zimage_gui.model.weights import load_text_encoder, load_transformer, load_vae


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_the_fused_file_we_write_equals_comfys_tensor_for_tensor(tmp_path: Path) -> None:
    model = load_transformer(HUB)
    assert equal(load_file(save_transformer(model, tmp_path / "comfy.safetensors", "comfy")), tensors(FUSED))
    assert equal(
        load_file(save_transformer(model, tmp_path / "split.safetensors")), tensors(HUB / "transformer")
    )


def test_the_ldm_file_we_write_equals_the_original_layout(tmp_path: Path) -> None:
    vae = load_vae(HUB, dtype=torch.bfloat16)
    assert equal(load_file(save_vae(vae, tmp_path / "ae.safetensors", "ldm")), tensors(LDM))
    assert equal(load_file(save_vae(vae, tmp_path / "vae.safetensors")), tensors(HUB / "vae"))


def test_the_text_encoder_file_we_write_equals_the_original(tmp_path: Path) -> None:
    state = {name.removeprefix("model."): tensor for name, tensor in tensors(QWEN).items()}
    assert equal(load_file(save_text_encoder(state, tmp_path / "qwen.safetensors")), tensors(QWEN))


def test_a_cast_while_saving_and_metadata_arrive(tmp_path: Path) -> None:
    model = load_transformer(HUB, dtype=torch.float32)
    file = save_transformer(model, tmp_path / "half.safetensors", "comfy", torch.float16, {"title": "猫"})
    header = read_header(file)
    assert header.metadata == {"format": "pt", "title": "猫"}
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    assert recognise(file).kind == "transformer"


def test_diffusers_and_transformers_load_the_hub_folders_we_write(tmp_path: Path) -> None:
    ours, vae, encoder = load_transformer(HUB), load_vae(HUB), load_text_encoder(HUB)
    save_hub_part(tmp_path / "transformer", "transformer", ours, transformer_settings(ours.config))
    save_hub_part(tmp_path / "vae", "vae", vae, vae_settings(vae.config))
    save_hub_part(
        tmp_path / "text_encoder", "text_encoder", tensors(QWEN), text_encoder_settings(encoder.config)
    )
    reference = ZImageTransformer2DModel.from_pretrained(tmp_path / "transformer", torch_dtype=torch.bfloat16)
    assert equal(dict(reference.state_dict()), dict(ours.state_dict()))
    assert reference.config.axes_dims == [8, 12, 12]
    assert equal(dict(DiffusersVae.from_pretrained(tmp_path / "vae").state_dict()), dict(vae.state_dict()))
    qwen = Qwen3Model.from_pretrained(tmp_path / "text_encoder", dtype=torch.bfloat16)
    wanted = {name.removeprefix("model."): tensor for name, tensor in tensors(QWEN).items()}
    assert equal(dict(qwen.state_dict()), wanted)
    assert load_transformer(tmp_path).config == ours.config and load_vae(tmp_path).config == vae.config
    assert load_text_encoder(tmp_path).config == encoder.config


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_our_settings_agree_with_the_originals(part: str) -> None:
    original = json.loads((HUB / part / "config.json").read_text(encoding="utf-8"))
    ours = {
        "transformer": lambda: transformer_settings(load_transformer(HUB).config),
        "vae": lambda: vae_settings(load_vae(HUB).config),
        "text_encoder": lambda: text_encoder_settings(load_text_encoder(HUB).config),
    }[part]()
    shared = set(original) & set(ours) - {"_diffusers_version"}
    assert len(shared) > 10
    assert {key: ours[key] for key in shared} == {key: original[key] for key in shared}


def test_equal_tensors_give_equal_bytes_and_odd_layouts_are_written_right(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    entries = {
        "turned": Entry(torch.bfloat16, (4, 3, 2), [base.permute(2, 1, 0)]),
        "joined": Entry(torch.float32, (4, 3, 4), [base, lambda: base + 24]),
        "scalar": Entry(torch.float32, (), [torch.tensor(7.0)]),
        "empty": Entry(torch.int64, (0, 5), [torch.zeros(0, 5, dtype=torch.int64)]),
    }
    first = write_tensors(tmp_path / "a.safetensors", entries, {"b": "2", "a": "1"}).read_bytes()
    again = write_tensors(
        tmp_path / "b.safetensors", dict(reversed(entries.items())), {"a": "1", "b": "2"}
    ).read_bytes()
    assert first == again
    read = load_file(tmp_path / "a.safetensors")
    assert torch.equal(read["turned"], base.permute(2, 1, 0).bfloat16())
    assert torch.equal(read["joined"].flatten(), torch.arange(48, dtype=torch.float32))
    assert read["scalar"] == 7 and read["empty"].shape == (0, 5)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"old")

    def fail() -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_tensors(file, {"x": Entry(torch.float32, (1,), [fail])})
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_the_real_model_becomes_453_fused_tensors_of_comfys_shapes() -> None:
    with torch.device("meta"):
        state = ZImageTransformer(TransformerConfig()).state_dict()
    parts = fused_parts(state)
    assert len(state) == 521 and len(parts) == 453
    assert sorted(name for names in parts.values() for name in names) == sorted(state)
    assert sum(len(state[name]) for name in parts["layers.29.attention.qkv.weight"]) == 11520
    assert parts["x_embedder.weight"] == ("all_x_embedder.2-1.weight",)
    assert {"final_layer.adaLN_modulation.1.bias", "context_refiner.1.attention.out.weight"} <= set(parts)
