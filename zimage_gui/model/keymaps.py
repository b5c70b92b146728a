"""Names of tensors in every file layout, and how they map onto the names of our networks.

Knows spellings only. Must not know torch or files: it turns {name: shape} into {our name: where it lies}.
Our names are those of the diffusers checkpoints (the text encoder's without the leading `model.`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Where one of our tensors lies: a tensor of the file, or a range of its rows or columns; transposed when
    the file keeps it the other way round (the ranges count before that)."""

    name: str
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    transposed: bool = False

    def shape_of(self, stored: Shape) -> Shape:
        """Shape of our tensor, from that of the file's."""
        ranges = (self.rows, self.columns)
        cut = tuple(
            ranges[axis][1] - ranges[axis][0] if axis < 2 and ranges[axis] else size  # type: ignore[index]
            for axis, size in enumerate(stored)
        )
        return cut[::-1] if self.transposed else cut


FUSED_QKV = ".attention.qkv.weight"
SPLIT_QKV = (".attention.to_q.weight", ".attention.to_k.weight", ".attention.to_v.weight")
_COMFY_SUFFIXES = {
    ".attention.out.weight": ".attention.to_out.0.weight",
    ".attention.q_norm.weight": ".attention.norm_q.weight",
    ".attention.k_norm.weight": ".attention.norm_k.weight",
}
_COMFY_STARTS = {"x_embedder.": "all_x_embedder.2-1.", "final_layer.": "all_final_layer.2-1."}
# Left over in some conversions; the model never reads it.
_TRANSFORMER_LEGACY = {"norm_final.weight"}
# Parts of an all-in-one checkpoint that lie beside the transformer.
_OTHER_PARTS = (
    "model.diffusion_model.",
    "first_stage_model.",
    "vae.",
    "text_encoders.",
    "text_encoder.",
    "cond_stage_model.",
    "conditioner.",
)

# The first one found tells; burn says cap_embedder_1, and its autoencoder may be a decoder alone.
TELLING_NAMES = {
    "transformer": ("cap_embedder.1.weight", "cap_embedder_1.weight"),
    "vae": ("encoder.conv_in.weight", "decoder.conv_in.weight"),
    "text_encoder": ("embed_tokens.weight",),
}


def prefix_of(names: Iterable[str], part: str) -> str | None:
    """What stands before every name of `part` (a key of `TELLING_NAMES`); None when it is absent."""
    everything = tuple(names)
    for telling in TELLING_NAMES[part]:
        ends = "." + telling
        found = [name[: -len(telling)] for name in everything if name == telling or name.endswith(ends)]
        if found:
            return min(found, key=len)
    return None


def own_names(names: Iterable[str], part: str) -> dict[str, str]:
    """{name of the file: name without prefix} of one part, leaving out the other parts of an all-in-one file.

    Names that mean nothing stay in, so that the strict check can name them.
    """
    prefix = prefix_of(names, part) or ""
    foreign = tuple(other for other in _OTHER_PARTS if not prefix.startswith(other))
    return {name: name.removeprefix(prefix) for name in names if not name.startswith(foreign)}


def transformer_sources(shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """Sources of a transformer in the split or the fused layout, under any prefix."""
    sources: dict[str, Source] = {}
    for name, bare in own_names(shapes, "transformer").items():
        shape = shapes[name]
        if bare in _TRANSFORMER_LEGACY:
            continue
        if bare.endswith(FUSED_QKV) and len(shape) == 2 and shape[0] % 3 == 0:
            third = shape[0] // 3
            stem = bare.removesuffix(FUSED_QKV)
            for index, suffix in enumerate(SPLIT_QKV):
                sources[stem + suffix] = Source(name, (index * third, (index + 1) * third))
        else:
            sources[split_name(bare)] = Source(name)
    return sources


def split_name(name: str) -> str:
    """ComfyUI's name of a tensor (not the fused qkv) in our spelling; other names stay as they are."""
    for comfy, ours in _COMFY_STARTS.items():
        if name.startswith(comfy):
            return ours + name[len(comfy) :]
    for comfy, ours in _COMFY_SUFFIXES.items():
        if name.endswith(comfy):
            return name.removesuffix(comfy) + ours
    return name


def fused_parts(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """ComfyUI's layout of our transformer: {its name: our names whose rows follow each other}."""
    parts: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name.endswith(SPLIT_QKV[0]):
            stem = name.removesuffix(SPLIT_QKV[0])
            parts[stem + FUSED_QKV] = tuple(stem + suffix for suffix in SPLIT_QKV)
        elif not name.endswith(SPLIT_QKV):
            parts[_fused_name(name)] = (name,)
    return parts


def _fused_name(name: str) -> str:
    for comfy, ours in _COMFY_STARTS.items():
        if name.startswith(ours):
            return comfy + name[len(ours) :]
    for comfy, ours in _COMFY_SUFFIXES.items():
        if name.endswith(ours):
            return name.removesuffix(ours) + comfy
    return name


def text_encoder_sources(shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """Sources of a Qwen3 text encoder under any prefix; the output head is never used and left out."""
    return {
        bare: Source(name)
        for name, bare in own_names(shapes, "text_encoder").items()
        if not name.endswith(("lm_head.weight", "rotary_emb.inv_freq"))
    }


_VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
_VAE_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LDM_LEVEL = re.compile(
    r"(encoder\.down|decoder\.up)\.(\d{1,3})\.(block\.(\d{1,3})|downsample|upsample)\.(.+)"
)
_LDM_MID = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)")
_OLD_ATTENTION = re.compile(r"(.+\.attentions\.\d{1,3}\.)(query|key|value|proj_attn)\.(weight|bias)")


def vae_sources(shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """Sources of an autoencoder in the diffusers layout (old attention names too) or the ldm layout."""
    own = own_names(shapes, "vae")
    found = (_LDM_LEVEL.fullmatch(bare) for bare in own.values())
    levels = len({match[2] for match in found if match and match[1] == "decoder.up"})
    return {vae_name(bare, levels): Source(name) for name, bare in own.items()}


def vae_name(name: str, levels: int) -> str:
    """An ldm (or old diffusers) name in our spelling; ldm counts the decoder's levels the other way round."""
    if match := _LDM_LEVEL.fullmatch(name):
        side, level, kind, block, rest = match.groups()
        index = int(level) if side == "encoder.down" else levels - 1 - int(level)
        blocks = side.replace(".down", ".down_blocks").replace(".up", ".up_blocks")
        if block is None:
            return f"{blocks}.{index}.{kind}rs.0.{rest}"
        return f"{blocks}.{index}.resnets.{block}.{rest.replace('nin_shortcut', 'conv_shortcut')}"
    if match := _LDM_MID.fullmatch(name):
        side, kind, rest = match.groups()
        if kind != "attn_1":
            return f"{side}.mid_block.resnets.{int(kind[-1]) - 1}.{rest}"
        layer, _, leaf = rest.rpartition(".")
        return f"{side}.mid_block.attentions.0.{_VAE_ATTENTION.get(layer, layer)}.{leaf}"
    if match := _OLD_ATTENTION.fullmatch(name):
        return f"{match[1]}{_VAE_OLD_ATTENTION[match[2]]}.{match[3]}"
    return name.replace("coder.norm_out.", "coder.conv_norm_out.")


_LEVEL = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets\.(\d+)|(down|up)samplers\.0)\.(.+)")
_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def ldm_vae_name(name: str, levels: int) -> str:
    """Our name of an autoencoder tensor in the ldm layout (`ae.safetensors`); inverse of `vae_name`."""
    if match := _LEVEL.fullmatch(name):
        side, level, _, block, kind, rest = match.groups()
        index = int(level) if side == "encoder.down" else levels - 1 - int(level)
        if block is None:
            return f"{side}.{index}.{kind}sample.{rest}"
        return f"{side}.{index}.block.{block}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    if match := _MID.fullmatch(name):
        side, kind, index_text, rest = match.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(index_text) + 1}.{rest}"
        layer, _, leaf = rest.rpartition(".")
        back = {ours: ldm for ldm, ours in _VAE_ATTENTION.items()}
        return f"{side}.mid.attn_1.{back[layer]}.{leaf}"
    return name.replace("coder.conv_norm_out.", "coder.norm_out.")
