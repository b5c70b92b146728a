"""The records of burn's modules as z-image-burn and qwen3-burn name them in .bpk files: names, shapes, order.

Knows spellings and rules, for any number of layers. Must not know torch or files. burn keeps the matrix of a
linear layer as (in, out), the transpose of everyone else's, and fuses q, k, v in its columns; it says gamma
and beta where others say weight and bias of a norm. The rest is named almost as in ComfyUI's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zimage_gui.model.keymaps import (
    SPLIT_QKV,
    Shape,
    Source,
    fused_parts,
    ldm_vae_name,
    own_names,
    split_name,
    vae_name,
)


@dataclass(frozen=True)
class Record:
    """One tensor of a burn module, made of ours.

    parts: our names; where there are several, their rows follow each other before the transpose.
    shape: as burn keeps it, after the transpose. The bytes are those of (parts one below the other),
    transposed or not, in this shape.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool
    shape: Shape


# Words of the record names, in the order of burn's fields, which is the order of the bytes in a file.
_ORDER = {
    "transformer": (
        "x_embedder final_layer noise_refiner context_refiner t_embedder cap_embedder_0 cap_embedder_1 "
        "x_pad_token cap_pad_token layers attention feed_forward attention_norm1 ffn_norm1 attention_norm2 "
        "ffn_norm2 linear adaln_modulation qkv to_out q_norm k_norm w1 w2 w3 mlp_1 mlp_2"
    ),
    "vae": (
        "encoder decoder conv_in down mid_block_1 mid_attn_1 mid_block_2 up norm_out conv_out block "
        "downsample upsample norm q k v proj_out norm1 conv1 norm2 conv2 nin_shortcut conv"
    ),
    "text_encoder": (
        "embed_tokens layers self_attn mlp input_layernorm post_attention_layernorm norm q_proj k_proj "
        "v_proj o_proj q_norm k_norm gate_proj up_proj down_proj"
    ),
}
_RANKS = {
    part: {word: rank for rank, word in enumerate([*words.split(), "weight", "bias", "gamma", "beta"])}
    for part, words in _ORDER.items()
}

# (pattern of ComfyUI's, ldm's or Qwen3's name, burn's) and back.
_TO_BURN = {
    "transformer": (
        (r"\.adaLN_modulation\.\d\.", ".adaln_modulation."),
        (r"^t_embedder\.mlp\.0\.", "t_embedder.mlp_1."),
        (r"^t_embedder\.mlp\.2\.", "t_embedder.mlp_2."),
        (r"^cap_embedder\.(\d)\.", r"cap_embedder_\1."),
        (r"\.attention\.out\.", ".attention.to_out."),
        (r"(^cap_embedder_0|norm\d?)\.weight$", r"\1.gamma"),
    ),
    "vae": (
        (r"coder\.mid\.", "coder.mid_"),
        (r"\.(norm(?:\d|_out)?)\.weight$", r".\1.gamma"),
        (r"\.(norm(?:\d|_out)?)\.bias$", r".\1.beta"),
    ),
    "text_encoder": ((r"norm\.weight$", "norm.gamma"),),
}
_FROM_BURN = {
    "transformer": (
        (r"^final_layer\.adaln_modulation\.", "final_layer.adaLN_modulation.1."),
        (r"\.adaln_modulation\.", ".adaLN_modulation.0."),
        (r"^t_embedder\.mlp_1\.", "t_embedder.mlp.0."),
        (r"^t_embedder\.mlp_2\.", "t_embedder.mlp.2."),
        (r"^cap_embedder_(\d)\.", r"cap_embedder.\1."),
        (r"\.attention\.to_out\.", ".attention.out."),
        (r"\.gamma$", ".weight"),
    ),
    "vae": ((r"coder\.mid_", "coder.mid."), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    "text_encoder": ((r"\.gamma$", ".weight"),),
}
_QKV = ".attention.qkv.weight"


def is_burn(names: Iterable[str]) -> bool:
    """Whether a model's tensors carry burn's names: every one of its modules has norms, and only burn says
    gamma.
    """
    return any(name.endswith(".gamma") for name in names)


def burn_name(name: str, part: str) -> str:
    """burn's name of what is ComfyUI's (transformer), ldm's (vae) or Qwen3's bare (text_encoder) `name`."""
    return _renamed(name, _TO_BURN[part])


def plain_name(name: str, part: str) -> str:
    """Inverse of `burn_name`."""
    return _renamed(name, _FROM_BURN[part])


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def record_place(name: str, part: str) -> tuple[int, ...]:
    """Sort key of a record: its place in the module, which is that of its bytes. Raises ValueError for a name
    that the module does not have.
    """
    ranks = _RANKS[part]
    words = name.split(".")
    if any(word not in ranks and not (word.isascii() and word.isdigit()) for word in words):
        raise ValueError(f"{name} has no place in a {part.replace('_', ' ')} of burn")
    return tuple(int(word) if word.isdigit() else ranks[word] for word in words)


def burn_records(part: str, shapes: Mapping[str, Shape]) -> list[Record]:
    """Records of a part ("transformer", "vae", "text_encoder") given under our names, in the file's order.

    A vae may be a decoder alone. Raises ValueError for a tensor that burn's module does not have.
    """
    levels = len({name.split(".")[2] for name in shapes if name.startswith("decoder.up_blocks.")})
    if part == "transformer":
        plain = fused_parts(shapes)
    elif part == "vae":
        plain = {ldm_vae_name(name, levels): (name,) for name in shapes}
    else:
        plain = {name: (name,) for name in shapes}
    records = []
    for name, parts in plain.items():
        burn = burn_name(name, part)
        first = shapes[parts[0]]
        shape = (sum(shapes[one][0] for one in parts), *first[1:]) if len(parts) > 1 else first
        if "mid_attn_1." in burn and len(shape) == 2:
            shape = (*shape, 1, 1)  # burn, like ldm, has convolutions there
        transposed = _is_linear(burn, part) and len(shape) == 2
        records.append(Record(burn, parts, transposed, shape[::-1] if transposed else shape))
    return sorted(records, key=lambda record: record_place(record.name, part))


def _is_linear(burn: str, part: str) -> bool:
    return part != "vae" and burn.endswith(".weight") and not burn.endswith("embed_tokens.weight")


def burn_sources(part: str, shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """Where each of our tensors lies in a model with burn's names; unknown names stay as they are."""
    bare = own_names(shapes, part)
    levels = len({name.split(".")[2] for name in bare.values() if name.startswith("decoder.up.")})
    sources: dict[str, Source] = {}
    for name, burn in bare.items():
        transposed = _is_linear(burn, part) and len(shapes[name]) == 2
        plain = plain_name(burn, part)
        if part == "transformer" and plain.endswith(_QKV) and transposed and shapes[name][1] % 3 == 0:
            third = shapes[name][1] // 3
            for index, suffix in enumerate(SPLIT_QKV):
                columns = (index * third, (index + 1) * third)
                sources[plain.removesuffix(_QKV) + suffix] = Source(name, None, columns, transposed=True)
        elif part == "transformer":
            sources[split_name(plain)] = Source(name, transposed=transposed)
        elif part == "vae":
            sources[vae_name(plain, levels)] = Source(name)
        elif not plain.endswith("lm_head.weight"):
            sources[plain] = Source(name, transposed=transposed)
    return sources
