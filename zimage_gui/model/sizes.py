"""Sizes of the networks, read off the names and shapes of a checkpoint and the config.json beside it.

Knows which tensor shows which size. Must not know torch, files or key layouts: names come in the
diffusers (split) spelling, without prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

# A bound against hostile headers, far above any model: the network is built before its tensors are read.
MOST_LAYERS = 1000


class SizeError(ValueError):
    """The shapes contradict themselves or the config.json; the message says how."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; the defaults are the released 6.15 B model."""

    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    cap_feat_dim: int = 2560
    axes_dims: tuple[int, ...] = (32, 48, 48)
    in_channels: int = 16
    patch_size: int = 2
    norm_eps: float = 1e-5
    rope_theta: float = 256.0
    t_scale: float = 1000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        return int(self.dim / 3 * 8)

    @property
    def time_dim(self) -> int:
        return min(self.dim, 256)

    @property
    def token_dim(self) -> int:
        return self.patch_size**2 * self.in_channels


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder; the defaults are the used part (35 of 36 layers) of Qwen3-4B."""

    hidden_size: int = 2560
    intermediate_size: int = 9728
    n_layers: int = 35
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0


def count_layers(names: Iterable[str], list_name: str) -> int:
    """How many `list_name.N.` there are. Gaps are not looked at: they show as missing tensors later."""
    pattern = re.compile(rf"{re.escape(list_name)}\.(\d{{1,9}})\.")
    found = {match[1] for name in names if (match := pattern.match(name))}
    if len(found) > MOST_LAYERS:
        raise SizeError(f"has {len(found)} `{list_name}`, more than any model this program knows")
    return len(found)


def transformer_config_from(shapes: Shapes, settings: Mapping[str, Any]) -> TransformerConfig:
    """Config of a transformer from its tensors; `settings` is its config.json, or empty.

    Raises SizeError when a telling tensor is absent or config.json belongs to another model.
    """
    dim, cap_feat_dim = _shape(shapes, "cap_embedder.1.weight", 2)
    (head_dim,) = _shape(shapes, "layers.0.attention.norm_q.weight", 1)
    _, token_dim = _shape(shapes, "all_x_embedder.2-1.weight", 2)
    if min(dim, cap_feat_dim, head_dim, token_dim) < 1 or dim % head_dim or token_dim % 4:
        raise SizeError(f"has impossible sizes: width {dim}, head {head_dim}, patch {token_dim}")
    found = {
        "dim": dim,
        "n_layers": count_layers(shapes, "layers"),
        "n_refiner_layers": count_layers(shapes, "noise_refiner"),
        "n_heads": dim // head_dim,
        "cap_feat_dim": cap_feat_dim,
        "in_channels": token_dim // 4,
    }
    _refuse_contradictions(found, settings)
    _refuse_contradictions({"n_kv_heads": found["n_heads"]}, settings)
    return TransformerConfig(
        **found,
        axes_dims=_axes(head_dim, settings),
        norm_eps=_number(settings, "norm_eps", 1e-5),
        rope_theta=_number(settings, "rope_theta", 256.0),
        t_scale=_number(settings, "t_scale", 1000.0),
    )


def text_encoder_config_from(shapes: Shapes, settings: Mapping[str, Any]) -> TextEncoderConfig:
    """Config of the used part of a Qwen3 text encoder: every layer of the checkpoint but the last.

    Raises SizeError as `transformer_config_from` does.
    """
    vocab_size, hidden = _shape(shapes, "embed_tokens.weight", 2)
    (head_dim,) = _shape(shapes, "layers.0.self_attn.q_norm.weight", 1)
    query_rows, _ = _shape(shapes, "layers.0.self_attn.q_proj.weight", 2)
    key_rows, _ = _shape(shapes, "layers.0.self_attn.k_proj.weight", 2)
    intermediate, _ = _shape(shapes, "layers.0.mlp.gate_proj.weight", 2)
    sizes = (vocab_size, hidden, head_dim, query_rows, key_rows, intermediate)
    if (
        min(sizes) < 1
        or head_dim % 2
        or query_rows % head_dim
        or key_rows % head_dim
        or query_rows % key_rows
    ):
        raise SizeError(
            f"has impossible sizes: head {head_dim}, query rows {query_rows}, key rows {key_rows}"
        )
    found = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": count_layers(shapes, "layers"),
        "num_attention_heads": query_rows // head_dim,
        "num_key_value_heads": key_rows // head_dim,
        "head_dim": head_dim,
    }
    if found["num_hidden_layers"] < 2:
        raise SizeError("has fewer than two layers; the features are those before the last one")
    _refuse_contradictions(found, settings)
    return TextEncoderConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        n_layers=found["num_hidden_layers"] - 1,
        n_heads=found["num_attention_heads"],
        n_kv_heads=found["num_key_value_heads"],
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=_number(settings, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(settings),
    )


def _rope_theta(settings: Mapping[str, Any]) -> float:
    """Base of the rotary positions. Raises SizeError where they are stretched or attention looks back only a
    part of them."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling")
    stretched = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) != "default"
    if stretched or settings.get("use_sliding_window"):
        raise SizeError(
            "has a config.json with stretched positions or a sliding window, which Z-Image never has"
        )
    source = rope if isinstance(rope, dict) and "rope_theta" in rope else settings
    return _number(source, "rope_theta", 1e6)


def vae_sizes_from(shapes: Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `VaeConfig` from an autoencoder's tensors and its config.json.

    The group count cannot be read from tensors: config.json decides, else 32 when every width divides by it,
    otherwise 8. Raises SizeError as the others do.
    """
    # A decoder alone tells the same, widest level first and one layer more in each.
    whole = any(name.startswith("encoder.") for name in shapes)
    blocks = "encoder.down_blocks." if whole else "decoder.up_blocks."
    side, _, kind = blocks.removesuffix(".").partition(".")
    levels = count_layers((name.removeprefix(f"{side}.") for name in shapes), kind)
    widths = tuple(_shape(shapes, f"{blocks}{level}.resnets.0.conv2.weight", 4)[0] for level in range(levels))
    first_level = (name.removeprefix(f"{blocks}0.") for name in shapes)
    layers = count_layers(first_level, "resnets")
    widths, layers = (widths, layers) if whole else (widths[::-1], layers - 1)
    sizes: dict[str, Any] = {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "latent_channels": _shape(shapes, "decoder.conv_in.weight", 4)[1],
    }
    if not widths or min(widths) < 1 or layers < 0:
        raise SizeError(f"has no usable {side} levels")
    stated = settings.get("block_out_channels", list(widths))
    if stated != list(widths):
        raise SizeError(
            f"disagrees with the config.json beside it: block_out_channels {stated}, tensors {list(widths)}"
        )
    _refuse_contradictions({key: sizes[key] for key in ("layers_per_block", "latent_channels")}, settings)
    groups = settings.get("norm_num_groups", 32 if all(width % 32 == 0 for width in widths) else 8)
    if not isinstance(groups, int) or groups < 1 or any(width % groups for width in widths):
        raise SizeError(f"has widths {list(widths)}, which {groups} normalisation groups do not divide")
    return sizes | {
        "norm_groups": groups,
        "scaling_factor": _number(settings, "scaling_factor", 0.3611),
        "shift_factor": _number(settings, "shift_factor", 0.1159),
    }


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise SizeError(f"lacks the tensor {name}")
    if len(shape) != dimensions:
        raise SizeError(f"has {name} with shape {list(shape)}, where {dimensions} dimensions are expected")
    return shape


def _refuse_contradictions(found: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    wrong = [
        f"{key} = {settings[key]} (tensors: {size})"
        for key, size in found.items()
        if settings.get(key) not in (None, size)
    ]
    if wrong:
        raise SizeError(f"disagrees with the config.json beside it, which says {', '.join(wrong)}")


def _axes(head_dim: int, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Rope axes: config.json decides, else 1/4, 3/8 and 3/8 of the head, as in the real model."""
    axes = settings.get("axes_dims")
    if axes is None:
        axes = [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8]
    if (
        not isinstance(axes, list)
        or len(axes) != 3
        or not all(isinstance(size, int) and size >= 2 and size % 2 == 0 for size in axes)
        or sum(axes) != head_dim
    ):
        raise SizeError(f"has heads of {head_dim}, which the rope axes {axes} do not fill")
    return tuple(axes)


def _number(settings: Mapping[str, Any], key: str, default: float) -> float:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise SizeError(f"has a config.json with {key} = {value!r}, where a positive number is expected")
    return float(value)
