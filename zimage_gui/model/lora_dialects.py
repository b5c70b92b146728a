"""Names of LoRA tensors: what every known producer calls the factors and modules of a Z-Image transformer.

Knows key spellings only. It must not know tensors, devices or how a factor is applied, and must not import
torch, so that the window and `inspect` can describe a LoRA from its header alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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

# Wrappers a name may carry in front, in any order: PEFT, torch.compile, DataParallel, whole checkpoints.
_DOTTED_PREFIX = re.compile(r"(?:(?:base_model|_orig_mod|diffusion_model|model|transformer|module|unet)\.)*")
_UNDERSCORED_PREFIX = re.compile(
    r"(?:lora|lycoris)_(?:unet_|(?:base_model|diffusion_model|model|transformer)_)*"
)

# PEFT writes the adapter's name, `default` or another, before `.weight`.
_FACTOR = re.compile(
    r"\.lora_(A|B|down|up)(?:\.[^.]+)?\.weight$|\.lora(?:_linear_layer)?\.(down|up)\.weight$"
)
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?$")
_OTHER_PART = re.compile(
    r"\.(alpha|dora_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|lora_a|lora_b)$"
)  # fmt: skip
_SIDES = {"A": "down", "B": "up", "lora_a": "down", "lora_b": "up"}

# Parts of adapters that change something else than the weight of a Linear layer by a product of factors.
_UNUSABLE = (
    (re.compile(r"\.diff$"), "whole weight differences (.diff), which are no adapter"),
    (re.compile(r"\.diff_b$|\.lora_(B|up)(\.[^.]+)?\.bias$|\.b_norm$"), "changes of a bias"),
    (re.compile(r"\.w_norm$|_norm[12qk]?\.(lora_|diff)"), "changes of a norm"),
    (re.compile(r"\.(lora_mid\.weight|lokr_t2|hada_t[12])$"), "factors of convolutions"),
    (re.compile(r"\.(oft_|boft_|ia3_|on_input$|glora_)"), "adapters of another kind"),
    (re.compile(r"^(lora_te|text_encoder|te\.|text_model)"), "changes of the text encoder"),
)

_OF_ADAPTERS = re.compile(r"(^|[._])lora_|\.(diff|diff_b|w_norm|oft_\w+|boft_\w+)$")


def unusable_part(name: str) -> str:
    """What a tensor of an adapter file holds that no program here can apply, in words; empty when unknown."""
    return next((words for pattern, words in _UNUSABLE if pattern.search(name)), "")


_BLOCK = re.compile(r"(layers|noise_refiner|context_refiner)([._])(\d{1,4})\2(.+)")
_UNDERSCORED_BLOCK_MODULES = {name.replace(".", "_"): name for name in BLOCK_MODULES}
_UNDERSCORED_GLOBAL_MODULES = {
    name.replace(".", "_").replace("-", dash): name for name in GLOBAL_MODULES for dash in "-_"
}


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


def _part_of(key: str) -> tuple[str, str] | None:
    """(part, suffix) of a tensor name, whatever module it belongs to."""
    if found := _FACTOR.search(key):
        side = found[1] or found[2]
        return _SIDES.get(side, side), found[0]
    if found := _MAGNITUDE.search(key):
        return "magnitude", found[0]
    if found := _OTHER_PART.search(key):
        return _SIDES.get(found[1], found[1]), found[0]
    return None


def parse_key(key: str) -> Key | None:
    """Takes a tensor name apart; None when it is no LoRA tensor of a Z-Image transformer."""
    found = _part_of(key)
    if found is None:
        return None
    part, suffix = found
    stem = key[: -len(suffix)]
    for pattern, separator in ((_UNDERSCORED_PREFIX, "_"), (_DOTTED_PREFIX, ".")):
        prefix = match[0] if (match := pattern.match(stem)) else ""
        targets = resolve_module(stem[len(prefix) :], separator) if match else ()
        if targets:
            return Key(prefix, targets, part, suffix)
    return None


def looks_like_lora(names: Iterable[str]) -> bool:
    """Whether any tensor name is that of an adapter of whatever model."""
    return any((_part_of(name) or ("alpha",))[0] != "alpha" or _OF_ADAPTERS.search(name) for name in names)


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
    if ".lora_A.default.weight" in suffixes and prefixes == {""}:
        return "DiffSynth names (.default)"
    if prefixes == {"lora_unet_"}:
        return "kohya / musubi names (lora_unet_)"
    if any(prefix.endswith("_") for prefix in prefixes):
        return f"underscored names ({', '.join(sorted(prefixes))})"
    if any(prefix.startswith("base_model.") for prefix in prefixes):
        return "PEFT names (base_model.)"
    if "transformer." in prefixes:
        return "diffusers / PEFT names (transformer.)"
    if any(prefix.endswith("diffusion_model.") for prefix in prefixes):
        return "ComfyUI names (diffusion_model.)"
    return f"names beginning with {', '.join(sorted(prefixes))}" if any(prefixes) else "bare names"


def native_name(path: str) -> str:
    """The kohya name of a module: `layers.0.attention.to_q` -> `lora_unet_layers_0_attention_to_q`."""
    return "lora_unet_" + path.replace(".", "_")


def named_by(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the regular expressions finds something in a module's dotted name or its kohya name."""
    return any(re.search(pattern, name) for pattern in patterns for name in (path, native_name(path)))


def chosen(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a module is one that some `include` pattern names (any, when there is none) and no `exclude`
    pattern does."""
    return (not include or named_by(path, include)) and not named_by(path, exclude)


def comfy_name(path: str) -> str:
    """ComfyUI's path of a module outside the blocks; others stay as they are."""
    names = {ours: comfy for comfy, ours in GLOBAL_MODULES.items() if comfy != ours}
    return names.get(path, path)
