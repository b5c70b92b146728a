"""The truncated Qwen3 gives the hidden states that transformers' whole one gives before its last layer."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from zimage_gui.model.saving import save_text_encoder
from zimage_gui.model.text_encoder import Qwen3TextEncoder, TextEncoderConfig
from zimage_gui.model.weights import load_text_encoder


def reference(layers: int = 3, kv_heads: int = 2) -> Qwen3Model:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=120,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model = Qwen3Model(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def loaded(model: Qwen3Model, folder: Path, dtype: torch.dtype = torch.float32) -> Qwen3TextEncoder:
    return load_text_encoder(save_text_encoder(model.state_dict(), folder / "qwen.safetensors"), dtype=dtype)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_features_equal_the_hidden_states_before_the_last_layer(kv_heads: int, tmp_path: Path) -> None:
    model = reference(kv_heads=kv_heads)
    ids = torch.randint(0, 120, (2, 37))
    wanted = model(ids, output_hidden_states=True).hidden_states[-2]
    features = loaded(model, tmp_path)(ids)
    assert float((features - wanted).norm() / wanted.norm()) < 1e-5


@torch.no_grad()
def test_features_in_bfloat16_follow_transformers_closely(tmp_path: Path) -> None:
    model = reference()
    ids = torch.randint(0, 120, (1, 50))
    exact = model(ids, output_hidden_states=True).hidden_states[-2]
    wanted = model.bfloat16()(ids, output_hidden_states=True).hidden_states[-2].float()
    features = loaded(model, tmp_path, torch.bfloat16)(ids).float()
    assert float((features - exact).norm()) < 1.2 * float((wanted - exact).norm())


@torch.no_grad()
def test_padding_behind_a_prompt_changes_nothing(tmp_path: Path) -> None:
    encoder = loaded(reference(), tmp_path)
    ids = torch.randint(0, 120, (1, 40))
    padded = torch.cat([ids, torch.full((1, 24), 7)], dim=1)
    assert torch.allclose(encoder(padded)[:, :40], encoder(ids), atol=1e-5)


def test_the_last_layer_and_norm_are_neither_built_nor_read(tmp_path: Path) -> None:
    encoder = loaded(reference(layers=5), tmp_path)
    assert encoder.config.n_layers == 4
    names = set(encoder.state_dict())
    assert not any(name.startswith(("layers.4.", "norm.")) for name in names)


def test_the_real_encoder_has_the_published_size_without_its_last_layer() -> None:
    with torch.device("meta"):
        encoder = Qwen3TextEncoder(TextEncoderConfig())
    last_layer_and_norm = 100_930_816 + 2560
    assert sum(p.numel() for p in encoder.parameters()) == 4_022_468_096 - last_layer_and_norm


def test_the_truncated_encoder_is_not_saved_as_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="last layer"):
        save_text_encoder(loaded(reference(), tmp_path), tmp_path / "cut.safetensors")
