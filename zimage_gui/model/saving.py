"""Writes our networks in the file layouts other programs read: hub folders and ComfyUI single files.

Knows layouts and config.json. Must not know runs. Every file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zimage_gui.files import atomic_write
from zimage_gui.model.keymaps import fused_parts, ldm_vae_name
from zimage_gui.model.sizes import TextEncoderConfig, TransformerConfig
from zimage_gui.model.tensor_files import Entry, entry_of, write_tensors
from zimage_gui.model.vae import VaeConfig

State = Mapping[str, Tensor] | nn.Module

# transformers refuses a file without it.
_FORMAT = {"format": "pt"}


def _tensors(state: State) -> Mapping[str, Tensor]:
    return state.state_dict() if isinstance(state, nn.Module) else state


def save_transformer(
    state: State,
    path: Path,
    layout: Literal["diffusers", "comfy"] = "diffusers",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    whole: Callable[[str], Tensor] | None = None,
) -> Path:
    """One file with the whole transformer; "comfy" fuses q, k, v as ComfyUI expects.

    `state` is the network or its tensors under our names; dtype None keeps each tensor's own. Nothing is held
    twice: each tensor is cast while it is written. whole: gives its values then, where `state` has only its
    shape.
    """
    tensors = _tensors(state)
    parts = {name: (name,) for name in tensors} if layout == "diffusers" else fused_parts(tensors)
    values = whole or tensors.__getitem__
    entries = {name: _joined(tensors, names, dtype, values) for name, names in parts.items()}
    return write_tensors(path, entries, _FORMAT | dict(metadata or {}))


def _joined(
    tensors: Mapping[str, Tensor],
    names: tuple[str, ...],
    dtype: torch.dtype | None,
    values: Callable[[str], Tensor],
) -> Entry:
    first = tensors[names[0]]
    shape = (sum(len(tensors[name]) for name in names), *first.shape[1:]) if first.dim() else ()
    return Entry(dtype or first.dtype, shape, [partial(values, name) for name in names])


def save_vae(
    state: State,
    path: Path,
    layout: Literal["diffusers", "ldm"] = "diffusers",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """One file with the autoencoder; "ldm" is the layout of `ae.safetensors`."""
    tensors = _tensors(state)
    levels = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up_blocks.")})
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        if layout == "ldm":
            ldm = ldm_vae_name(name, levels)
            # There the attention's projections are 1x1 convolutions.
            conv = ".attn_1." in ldm and tensor.dim() == 2
            entries[ldm] = entry_of(tensor[:, :, None, None] if conv else tensor, dtype)
        else:
            entries[name] = entry_of(tensor, dtype)
    return write_tensors(path, entries, _FORMAT | dict(metadata or {}))


def save_text_encoder(
    state: State, path: Path, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """One file with a whole Qwen3 (last layer and final norm included), names under `model.` as on the hub.

    Other programs need the last layer, so our own truncated network raises ValueError here.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in _tensors(state).items()}
    if "norm.weight" not in tensors:
        raise ValueError(
            "a text encoder without its last layer and final norm cannot be saved for other programs"
        )
    entries = {f"model.{name}": entry_of(tensor, dtype) for name, tensor in tensors.items()}
    return write_tensors(path, entries, _FORMAT | dict(metadata or {}))


_HUB_FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def save_hub_part(
    folder: Path,
    part: Literal["transformer", "vae", "text_encoder"],
    state: State,
    settings: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """A component folder as diffusers and transformers load it: the weights in one file, then config.json."""
    path = folder / _HUB_FILES[part]
    if part == "transformer":
        save_transformer(state, path, dtype=dtype)
    elif part == "vae":
        save_vae(state, path, dtype=dtype)
    else:
        save_text_encoder(state, path, dtype)
    text = json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n"
    return [path, atomic_write(folder / "config.json", text.encode("utf-8"))]


def transformer_settings(config: TransformerConfig) -> dict[str, Any]:
    """config.json of a transformer, as diffusers reads it."""
    return {
        "_class_name": "ZImageTransformer2DModel",
        "_diffusers_version": "0.36.0",
        "all_f_patch_size": [1],
        "all_patch_size": [config.patch_size],
        "axes_dims": list(config.axes_dims),
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": config.cap_feat_dim,
        "dim": config.dim,
        "in_channels": config.in_channels,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_heads,
        "n_layers": config.n_layers,
        "n_refiner_layers": config.n_refiner_layers,
        "norm_eps": config.norm_eps,
        "qk_norm": True,
        "rope_theta": config.rope_theta,
        "t_scale": config.t_scale,
    }


def vae_settings(config: VaeConfig) -> dict[str, Any]:
    """config.json of an autoencoder, as diffusers reads it."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.36.0",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": config.norm_groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def text_encoder_settings(config: TextEncoderConfig) -> dict[str, Any]:
    """config.json of a whole Qwen3 with one layer more than the used ones, as transformers reads it."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": 40960,
        "model_type": "qwen3",
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers + 1,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
