"""The forms in which other programs read a LoRA: names, scales and headers of each.

Knows what each form can say. It must not know files, nor how a file was made.

Forms: `universal` (diffusion_model. names, lora_A/lora_B, alpha/rank inside lora_B, `.alpha` = rank: exact in
ComfyUI and in every diffusers that knows Z-Image), `native` (kohya / musubi), `comfy` (kohya names with a
fused qkv), `peft` (transformer. names with rank and alpha in the header), `rust` (z-image-train).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zimage_gui.errors import Problem
from zimage_gui.model.lora_alphas import HEADER_KEY
from zimage_gui.model.lora_dialects import QKV, comfy_name, native_name
from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_qkv import fuse_qkv

Form = Literal["universal", "native", "comfy", "peft", "rust"]
FUSED_FORMS: tuple[Form, ...] = ("comfy", "rust")
LOW_RANK_FORMS: tuple[Form, ...] = ("peft", "rust")
"""Forms that say LoRA and no other kind."""
_RUST_BLOCKS = ("layers", "noise_refiner", "context_refiner")
_RUST_MODULES = (*QKV, "attention.to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_NAMED = 6


@dataclass(frozen=True)
class Written:
    """A file's content: tensors on the CPU, its own header entries, and the text of a sidecar if it has
    one."""

    tensors: dict[str, Tensor]
    header: dict[str, str]
    sidecar: str = ""


def written(
    entries: Mapping[str, Entry],
    form: Form,
    dtype: torch.dtype | None = None,
    prefix: str = "diffusion_model",
) -> Written:
    """`entries`, of which `form_problems` has nothing to say, in a form; `dtype` casts every factor, None
    keeps them (z-image-train: fp32, the only type it trains in)."""
    header: dict[str, str] = {}
    sidecar = ""
    named: dict[str, Tensor] = {}
    if form == "rust":
        named, sidecar = _rust(entries)
        dtype = dtype or torch.float32
    elif form == "peft":
        named = _flat(_peft_names(f"transformer.{path}", entry) for path, entry in entries.items())
        header[HEADER_KEY] = _peft_header(entries)
    elif form == "universal":
        start = f"{prefix}." if prefix else ""
        named = _flat(_universal(start + path, entry, prefix) for path, entry in entries.items())
    else:
        whole = fused(entries, "out") if form == "comfy" else entries
        if form == "comfy":
            whole = {comfy_name(path): entry for path, entry in whole.items()}
        named = _flat(_native(native_name(path), entry) for path, entry in whole.items())
    tensors = {
        name: tensor.detach().to("cpu", None if name.endswith(".alpha") else dtype).contiguous().clone()
        for name, tensor in named.items()
    }
    return Written(tensors, header, sidecar)


def form_problems(
    entries: Mapping[str, Entry], form: Form, prefix: str = "diffusion_model", option: str = "target"
) -> list[Problem]:
    """What of `entries` the form, chosen by `option`, cannot say, whatever is done to them."""
    doras = {path: entry for path, entry in entries.items() if isinstance(entry, Dora)}
    allowed = form == "peft" or (form == "universal" and prefix == "transformer")
    refused = [path for path, entry in doras.items() if not (allowed and _is_pefts(entry))]
    odd = [path for path, entry in doras.items() if not _is_pefts(entry)]
    problems = []
    if odd:
        rule = f"{_some(odd)} is a DoRA of another kind than PEFT's, which no form here can say"
        problems.append(Problem(option, form, rule, "Merge it into a model instead"))
    elif refused:
        rule = f"{_some(refused)} is a DoRA, whose size per row this form cannot say"
        remedy = "Choose peft (exact in diffusers), or merge it into a model"
        problems.append(Problem(option, form, rule, remedy))
    elif doras and len(doras) < len(entries):
        rule = f"only {len(doras)} of the {len(entries)} modules are DoRAs, and PEFT takes all or none"
        problems.append(Problem(option, form, rule, "Merge it into a model instead"))
    foreign = [path for path in entries if form == "rust" and not _in_rust(path)]
    if foreign:
        rule = (
            f"{_some(foreign)} is no layer that z-image-train adapts (attention and feed-forward of blocks)"
        )
        remedy = "Take it out with edit-lora --prune, or choose another form"
        problems.append(Problem(option, form, rule, remedy))
    return problems


def _is_pefts(entry: Dora) -> bool:
    return isinstance(entry.inner, LowRank) and entry.magnitude.shape[1] == 1


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:_NAMED])
    return shown if len(paths) <= _NAMED else f"{shown} (and {len(paths) - _NAMED} more)"


def fused(entries: Mapping[str, Entry], out: str) -> dict[str, Entry]:
    """The same adapters with q, k and v of each block as one qkv, and the output projection called `out`."""
    whole: dict[str, Entry] = {}
    for path, entry in entries.items():
        block, _, last = path.rpartition(".attention.")
        if block and f"attention.{last}" in QKV:
            name = f"{block}.attention.qkv"
            if name not in whole:
                whole[name] = fuse_qkv([entries.get(f"{block}.{part}") for part in QKV])
        else:
            whole[f"{block}.attention.{out}" if block and last == "to_out.0" else path] = entry
    return whole


def _flat(groups: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for group in groups for name, tensor in group.items()}


def _universal(name: str, entry: Entry, prefix: str) -> dict[str, Tensor]:
    if isinstance(entry, Dora) and isinstance(entry.inner, LowRank):
        magnitude = {f"{name}.lora_magnitude_vector": entry.magnitude.reshape(-1)}
        return _universal(name, entry.inner, prefix) | magnitude
    if not isinstance(entry, LowRank):
        return _lycoris(name, entry)
    folded = entry.with_alpha(float(entry.rank))
    factors = {f"{name}.lora_A.weight": folded.down, f"{name}.lora_B.weight": folded.up}
    # diffusers refuses `.alpha` under any other prefix
    alpha = {f"{name}.alpha": torch.tensor(folded.alpha)} if prefix == "diffusion_model" else {}
    return factors | alpha


def _native(name: str, entry: Entry) -> dict[str, Tensor]:
    if not isinstance(entry, LowRank):
        return _lycoris(name, entry)
    return {
        f"{name}.lora_down.weight": entry.down,
        f"{name}.lora_up.weight": entry.up,
        f"{name}.alpha": torch.tensor(entry.alpha),
    }


def _lycoris(name: str, entry: Entry) -> dict[str, Tensor]:
    if isinstance(entry, LoHa):
        return {
            f"{name}.hada_w1_a": entry.w1_a,
            f"{name}.hada_w1_b": entry.w1_b,
            f"{name}.hada_w2_a": entry.w2_a,
            f"{name}.hada_w2_b": entry.w2_b,
            f"{name}.alpha": torch.tensor(entry.alpha),
        }
    assert isinstance(entry, LoKr)
    named = {f"{name}.alpha": torch.tensor(entry.alpha)}
    for side, factors in (("lokr_w1", entry.w1), ("lokr_w2", entry.w2)):
        suffixes = ("",) if len(factors) == 1 else ("_a", "_b")
        named.update({f"{name}.{side}{end}": factor for end, factor in zip(suffixes, factors, strict=True)})
    return named


def _peft_names(name: str, entry: Entry) -> dict[str, Tensor]:
    if isinstance(entry, Dora):
        magnitude = {f"{name}.lora_magnitude_vector": entry.magnitude.reshape(-1)}
        return _peft_names(name, entry.inner) | magnitude
    assert isinstance(entry, LowRank)
    return {f"{name}.lora_A.weight": entry.down, f"{name}.lora_B.weight": entry.up}


def _peft_header(entries: Mapping[str, Entry]) -> str:
    """PEFT's settings under the names diffusers looks for. All that any diffusers since 0.36 asks for is
    there; modules that differ from the commonest rank and alpha are in the patterns."""
    low = {path: entry.inner if isinstance(entry, Dora) else entry for path, entry in entries.items()}
    ranks = {path: entry.rank for path, entry in low.items()}
    alphas = {path: entry.alpha for path, entry in low.items() if isinstance(entry, LowRank)}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    values = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _short(alpha),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: _short(value) for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(entries),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": False,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": any(isinstance(entry, Dora) for entry in entries.values()),
    }
    return json.dumps({f"transformer.{name}": value for name, value in values.items()}, sort_keys=True)


def _short(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha


def _in_rust(path: str) -> bool:
    block, _, rest = path.partition(".")
    return block in _RUST_BLOCKS and rest.partition(".")[2] in _RUST_MODULES


def _rust(entries: Mapping[str, Entry]) -> tuple[dict[str, Tensor], str]:
    """Tensors and sidecar. One rank and one alpha hold for all modules, so that smaller ones are filled up
    with zeros and other strengths go into lora_b."""
    low = {path: entry for path, entry in fused(entries, "to_out").items() if isinstance(entry, LowRank)}
    rank = max(entry.rank for entry in low.values())
    scales = {entry.scale for entry in low.values()}
    scale = scales.pop() if len(scales) == 1 and 0 not in scales else 1.0
    named = {}
    for path, entry in low.items():
        even = entry.with_alpha(scale * entry.rank)
        missing = rank - entry.rank
        named[f"{path}.lora_a"] = torch.nn.functional.pad(even.down, (0, 0, 0, missing))
        named[f"{path}.lora_b"] = torch.nn.functional.pad(even.up, (0, missing))
    facts = {
        "rank": rank,
        "alpha": scale * rank,
        "target_attention": any(".attention." in path for path in low),
        "target_feed_forward": any(".feed_forward." in path for path in low),
        "target_refiners": any("_refiner." in path for path in low),
    }
    return named, json.dumps(facts, indent=2) + "\n"
