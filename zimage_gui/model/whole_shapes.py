"""All tensors that a whole transformer, VAE or text encoder has, with their shapes, and what a file lacks.

Knows the networks' tensors by name and size; a test holds it to the networks themselves. Must not know torch,
so that `inspect` answers at once. Names are those of the diffusers checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zimage_gui.model.sizes import (
    Shapes,
    SizeError,
    TextEncoderConfig,
    TransformerConfig,
    count_layers,
    text_encoder_config_from,
    transformer_config_from,
    vae_sizes_from,
)

Table = dict[str, tuple[int, ...]]

LORA_TARGET = re.compile(r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])")
"""The layers that a LoRA sits on unless patterns name others."""

_TIME_FREQUENCIES, _TIME_HIDDEN = 256, 1024
_SHOWN = 3


def whole_shapes(part: str, shapes: Shapes, settings: Mapping[str, Any]) -> Table:
    """What a model of this part consists of, from the tensors it has; of a VAE's decoder alone, that.

    Raises SizeError when they tell no sizes.
    """
    if part == "transformer":
        return transformer_table(transformer_config_from(shapes, settings))
    if part == "text_encoder":
        return text_encoder_table(text_encoder_config_from(shapes, settings))
    sizes = vae_sizes_from(shapes, settings)
    widths, layers = sizes["block_out_channels"], sizes["layers_per_block"]
    encoder = _vae_half("encoder", widths, layers, (3, 2 * sizes["latent_channels"]))
    decoder = _vae_half("decoder", widths[::-1], layers + 1, (sizes["latent_channels"], 3))
    return decoder | (encoder if any(name.startswith("encoder.") for name in shapes) else {})


def whole_names(part: str, shapes: Shapes) -> frozenset[str]:
    """The names alone, from the numbers of layers; empty for a VAE whose sizes cannot be told."""
    if part == "transformer":
        layers, refiners = count_layers(shapes, "layers"), count_layers(shapes, "noise_refiner")
        return frozenset(transformer_table(TransformerConfig(n_layers=layers, n_refiner_layers=refiners)))
    if part == "text_encoder":
        return frozenset(text_encoder_table(TextEncoderConfig(n_layers=count_layers(shapes, "layers") - 1)))
    try:
        # How a norm groups its channels is nothing that names tell.
        return frozenset(whole_shapes(part, shapes, {"norm_num_groups": 1}))
    except SizeError:
        return frozenset()


def misfits(shapes: Shapes, whole: Shapes) -> list[str]:
    """What is missing, not known, or of another shape, each with examples; empty for a whole model."""
    missing = sorted(whole.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - whole.keys())
    misshaped = [
        f"{name} is {list(shapes[name])}, needed {list(whole[name])}"
        for name in sorted(shapes.keys() & whole.keys())
        if squeezed(shapes[name]) != squeezed(whole[name])
    ]
    told = ((missing, "missing"), (misshaped, "of another shape"), (unknown, "of no part of the model"))
    return [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what} ({', '.join(names[:_SHOWN])}"
        + (" …)" if len(names) > _SHOWN else ")")
        for names, what in told
        if names
    ]


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape without its ones: a 1x1 convolution serves as a Linear, a flat pad token as a row."""
    return tuple(size for size in shape if size != 1)


def _layer(name: str, *shape: int) -> Table:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def transformer_table(config: TransformerConfig) -> Table:
    """All tensors of a transformer of these sizes."""
    dim, time = config.dim, config.time_dim
    table = (
        _layer("all_x_embedder.2-1", dim, config.token_dim)
        | _layer("all_final_layer.2-1.linear", config.token_dim, dim)
        | _layer("all_final_layer.2-1.adaLN_modulation.1", dim, time)
        | _layer("t_embedder.mlp.0", _TIME_HIDDEN, _TIME_FREQUENCIES)
        | _layer("t_embedder.mlp.2", time, _TIME_HIDDEN)
        | {
            "cap_embedder.0.weight": (config.cap_feat_dim,),
            "x_pad_token": (1, dim),
            "cap_pad_token": (1, dim),
        }
        | _layer("cap_embedder.1", dim, config.cap_feat_dim)
    )
    for kind, count in (
        ("layers", config.n_layers),
        ("noise_refiner", config.n_refiner_layers),
        ("context_refiner", config.n_refiner_layers),
    ):
        for number in range(count):
            block = f"{kind}.{number}"
            table |= _block(block, config)
            if kind != "context_refiner":
                table |= _layer(f"{block}.adaLN_modulation.0", 4 * dim, time)
    return table


def _block(block: str, config: TransformerConfig) -> Table:
    dim = config.dim
    square = ("to_q", "to_k", "to_v", "to_out.0")
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    matrices: Table = {f"{block}.attention.{name}.weight": (dim, dim) for name in square}
    return (
        matrices
        | {f"{block}.attention.{name}.weight": (config.head_dim,) for name in ("norm_q", "norm_k")}
        | {f"{block}.feed_forward.{name}.weight": (config.ffn_dim, dim) for name in ("w1", "w3")}
        | {f"{block}.feed_forward.w2.weight": (dim, config.ffn_dim)}
        | {f"{block}.{name}.weight": (dim,) for name in norms}
    )


def text_encoder_table(config: TextEncoderConfig) -> Table:
    """All tensors of a text encoder of these sizes; the last layer and the last norm are never used here."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    parts: Table = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    blocks: Table = {
        f"layers.{number}.{name}.weight": shape
        for number in range(config.n_layers + 1)
        for name, shape in parts.items()
    }
    return blocks | {"embed_tokens.weight": (config.vocab_size, width), "norm.weight": (width,)}


def _vae_half(side: str, widths: tuple[int, ...], layers: int, ends: tuple[int, int]) -> Table:
    """widths: of the levels in the order in which pictures pass them; ends: channels in and out."""
    level, change = ("down", "downsamplers") if side == "encoder" else ("up", "upsamplers")
    middle = widths[-1] if side == "encoder" else widths[0]
    attention = f"{side}.mid_block.attentions.0"
    table = (
        _layer(f"{side}.conv_in", widths[0], ends[0], 3, 3)
        | _layer(f"{side}.conv_norm_out", widths[-1])
        | _layer(f"{side}.conv_out", ends[1], widths[-1], 3, 3)
        | _resnet(f"{side}.mid_block.resnets.0", middle, middle)
        | _resnet(f"{side}.mid_block.resnets.1", middle, middle)
        | _layer(f"{attention}.group_norm", middle)
    )
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        table |= _layer(f"{attention}.{name}", middle, middle)
    for index, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        block = f"{side}.{level}_blocks.{index}"
        for number in range(layers):
            table |= _resnet(f"{block}.resnets.{number}", before if number == 0 else width, width)
        if index < len(widths) - 1:
            table |= _layer(f"{block}.{change}.0.conv", width, width, 3, 3)
    return table


def _resnet(name: str, before: int, after: int) -> Table:
    table = (
        _layer(f"{name}.norm1", before)
        | _layer(f"{name}.conv1", after, before, 3, 3)
        | _layer(f"{name}.norm2", after)
        | _layer(f"{name}.conv2", after, after, 3, 3)
    )
    return table if before == after else table | _layer(f"{name}.conv_shortcut", after, before, 1, 1)
