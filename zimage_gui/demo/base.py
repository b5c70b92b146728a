"""Assemble the untrained demo model in the hub's folder layout: the start of the finetune run.

Knows the demo's sizes and the names of the hub's files. Must not know pictures or training. Transformer
and text encoder are random, the VAE is the one that `train_vae` made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from zimage_gui.demo.text import HIDDEN, make_text_encoder, make_tokenizer
from zimage_gui.demo.train_vae import DEMO_VAE
from zimage_gui.model.saving import transformer_settings, vae_settings
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

DEMO_TRANSFORMER = TransformerConfig(
    dim=192, n_layers=4, n_refiner_layers=1, n_heads=6, cap_feat_dim=HIDDEN, axes_dims=(8, 12, 12)
)
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
}
MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@torch.no_grad()
def initialise(model: ZImageTransformer, seed: int) -> None:
    """Xavier weights, zero biases; output layer and time modulation zero, so that training begins calmly.

    Gates open by a fixed amount: with closed ones (tanh(0)) no block would learn in the first steps.
    """
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("pad_token"):
            nn.init.normal_(weight, std=0.02)
        elif "adaLN" in name or "all_final_layer" in name or name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() == 2:
            nn.init.xavier_uniform_(weight)
        if name.endswith("adaLN_modulation.0.bias"):
            weight.view(4, -1)[1::2] = OPEN_GATE


OPEN_GATE = 0.5


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_base(folder: Path, vae_weights: Path, seed: int = 7) -> None:
    """Write the whole untrained model, loadable by diffusers' `ZImagePipeline.from_pretrained`."""
    model = ZImageTransformer(DEMO_TRANSFORMER)
    initialise(model, seed)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "transformer" / "config.json", transformer_settings(DEMO_TRANSFORMER))
    save_file(model.state_dict(), folder / "transformer" / WEIGHTS_NAME)
    write_json(folder / "vae" / "config.json", vae_settings(DEMO_VAE) | {"sample_size": 128})
    shutil.copyfile(vae_weights, folder / "vae" / WEIGHTS_NAME)
    make_tokenizer(folder / "tokenizer")
    make_text_encoder(folder / "text_encoder")
