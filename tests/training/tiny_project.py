"""A whole project small enough for tests: three random models in real file layouts and a few captioned pictures."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.model.saving import save_text_encoder, save_transformer, save_vae
from zimage_gui.model.sizes import TextEncoderConfig, TransformerConfig
from zimage_gui.model.text_encoder import Qwen3TextEncoder
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL, VaeConfig

TRANSFORMER = TransformerConfig(
    dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, axes_dims=(4, 6, 6)
)
COLOURS = ("red", "green", "blue", "yellow", "purple")


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, scale, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


def write_models(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    transformer = ZImageTransformer(TRANSFORMER)
    randomise(transformer, 1)
    save_transformer(transformer, folder / "dit.safetensors")
    vae = AutoencoderKL(VaeConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=8))
    randomise(vae, 2)
    save_vae(vae, folder / "vae.safetensors")
    config = TextEncoderConfig(
        hidden_size=16,
        intermediate_size=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        vocab_size=151936,
    )
    encoder = Qwen3TextEncoder(config)
    randomise(encoder, 3)
    save_text_encoder({**encoder.state_dict(), "norm.weight": torch.ones(16)}, folder / "te.safetensors")


def write_pictures(folder: Path, count: int = 5, size: tuple[int, int] = (48, 32)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {COLOURS[number % len(COLOURS)]} picture", encoding="utf-8")


def lora_config(project: Path, **options: Any) -> TrainLoraConfig:
    return TrainLoraConfig(**(_common(project) | {"network_dim": 2} | options))


def finetune_config(project: Path, **options: Any) -> FinetuneConfig:
    return FinetuneConfig(**(_common(project) | {"optimizer_type": "AdamW"} | options))


def _common(project: Path) -> dict[str, Any]:
    return {
        "dit": project / "models" / "dit.safetensors",
        "vae": project / "models" / "vae.safetensors",
        "text_encoder": project / "models" / "te.safetensors",
        "dataset": project / "pictures",
        "resolution": (32, 32),
        "batch_size": 2,
        "max_train_steps": 4,
        "seed": 7,
        "learning_rate": 1e-2,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "max_data_loader_n_workers": 0,
        "device": "cpu",
        "output_dir": project / "out",
    }
