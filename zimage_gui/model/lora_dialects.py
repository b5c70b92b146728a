"""Names of LoRA tensors: what every known producer calls the factors and modules of a Z-Image transformer.

Knows key spellings only. It must not know tensors, devices or how a factor is applied, and must not import
torch, so that the window and `inspect` can describe a LoRA from its header alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

QKV = ("attention.to_q", "attention.to_k", "attention.to_v")

# Module names inside one block, as any dialect spells them -> diffusers names (three of them for a fused
# qkv).
BLOCK_MODULES: dict[str, tuple[str, ...]] = {
    "attention.to_q": ("attention.to_q",),
    "attention.to_k": ("attention.to_k",),
    "attention.to_v": ("attention.to_v",),
    "attention.to_out.0": ("attention.to_out.0",),
    "attention.to_out": ("attention.to_out.0",),
    "attention.out": ("attention.to_out.0",),
    "attention.qkv": QKV,
    "feed_forward.w1": ("feed_forward.w1",),
    "feed_forward.w2": ("feed_forward.w2",),
    "feed_forward.w3": ("feed_forward.w3",),
    "adaLN_modulation.0": ("adaLN_modulation.0",),
}

# Modules outside the blocks.
GLOBAL_MODULES: dict[str, str] = {
    "all_x_embedder.2-1": "all_x_embedder.2-1",
    "x_embedder": "all_x_embedder.2-1",
    "all_final_layer.2-1.linear": "all_final_layer.2-1.linear",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
}

# Longest first: `base_model.model.transformer.` must win over `base_model.model.`.
DOTTED_PREFIXES = (
    "base_model.model.transformer.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "",
)
UNDERSCORE_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

_SUFFIXES: dict[str, str] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_a": "down",
    ".lora_b": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".dora_scale": "dora_scale",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
}
_SUFFIX = re.compile("(" + "|".join(re.escape(s) for s in sorted(_SUFFIXES, key=len, reverse=True)) + ")$")
_BLOCK = re.compile(r"(layers|noise_refiner|context_refiner)([._])(\d{1,4})\2(.+)")
_UNDERSCORED_BLOCK_MODULES = {name.replace(".", "_"): name for name in BLOCK_MODULES}
_UNDERSCORED_GLOBAL_MODULES = {name.replace(".", "_"): name for name in GLOBAL_MODULES}


@dataclass(frozen=True)
class Key:
    """One tensor name taken apart: `targets` are the diffusers module paths it acts on (three for a fused
    qkv)."""

    prefix: str
    targets: tuple[str, ...]
    part: str
    suffix: str


def resolve_module(name: str, separator: str) -> tuple[str, ...]:
    """Diffusers module paths meant by `name`, written with `separator` between its parts; empty when
    unknown."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] == separator:
        inner = match[4] if separator == "." else _UNDERSCORED_BLOCK_MODULES.get(match[4], "")
        block = f"{match[1]}.{int(match[3])}"
        return tuple(f"{block}.{target}" for target in BLOCK_MODULES.get(inner, ()))
    dotted = name if separator == "." else _UNDERSCORED_GLOBAL_MODULES.get(name, "")
    return (GLOBAL_MODULES[dotted],) if dotted in GLOBAL_MODULES else ()


def parse_key(key: str) -> Key | None:
    """Takes a tensor name apart; None when it is no LoRA tensor of a Z-Image transformer."""
    found = _SUFFIX.search(key)
    if not found:
        return None
    suffix = found[1]
    stem = key[: -len(suffix)]
    for prefix, separator in [(p, "_") for p in UNDERSCORE_PREFIXES] + [(p, ".") for p in DOTTED_PREFIXES]:
        if stem.startswith(prefix):
            targets = resolve_module(stem[len(prefix) :], separator)
            if targets:
                return Key(prefix, targets, _SUFFIXES[suffix], suffix)
    return None


def looks_like_lora(names: Iterable[str]) -> bool:
    """Whether any tensor name is that of an adapter of whatever model."""
    return any(_SUFFIX.search(name) and not name.endswith(".alpha") for name in names)


def describe_dialect(names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """The producer's form in words, from the names alone."""
    keys = [key for key in map(parse_key, names) if key]
    if not keys:
        return "unknown"
    parts = {key.part for key in keys}
    prefixes = {key.prefix for key in keys}
    suffixes = {key.suffix for key in keys}
    kind = _kind(parts)
    where = _where(prefixes, suffixes, metadata)
    notes = [
        note
        for flag, note in (
            (any(len(key.targets) == 3 for key in keys), "fused qkv"),
            ("alpha" in parts, "alpha"),
            ("lora_adapter_metadata" in metadata, "alpha in the header"),
        )
        if flag
    ]
    return f"{kind}, {where}" + (f" ({', '.join(notes)})" if notes else "")


def _kind(parts: set[str]) -> str:
    if any(part.startswith("hada") for part in parts):
        return "LoHa"
    if any(part.startswith("lokr") for part in parts):
        return "LoKr"
    return "DoRA" if parts & {"magnitude", "dora_scale"} else "LoRA"


def _where(prefixes: set[str], suffixes: set[str], metadata: Mapping[str, str]) -> str:
    if ".lora_a" in suffixes:
        return "z-image-train names with a .lora.json sidecar"
    if ".lora_A.default.weight" in suffixes:
        return "DiffSynth names (.default)"
    if "lora_unet_" in prefixes:
        return "kohya / musubi names (lora_unet_)"
    if prefixes & {"lora_transformer_", "lycoris_"}:
        return f"underscored names ({', '.join(sorted(prefixes))})"
    if "transformer." in prefixes or any(p.startswith("base_model") for p in prefixes):
        return "diffusers / PEFT names (transformer.)"
    if "diffusion_model." in prefixes or "model.diffusion_model." in prefixes:
        return "ComfyUI names (diffusion_model.)"
    return "bare names"


def native_name(path: str) -> str:
    """The kohya name of a module: `layers.0.attention.to_q` -> `lora_unet_layers_0_attention_to_q`."""
    return "lora_unet_" + path.replace(".", "_")
