"""What can be done with a file, by what it is: which command, what the file becomes in it, what is written.

Knows the converting commands and the kinds of `inspect`. Knows nothing of gradio; reads no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.config.lora_tools import USUAL_RANK
from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.ui.values import Raw

MODELS = ("transformer", "vae", "text_encoder", "all_in_one", "quantised")
# Quantisations, in the words of `recognise`, of which at least one action makes something.
_READ = re.compile(r"fp8|burn's")
_BYTES = {"f32": 4, "fp32": 4, "f16": 2, "fp16": 2, "bf16": 2, "fp8_comfy": 1, "fp8_blocks": 1}
_LORA_ENDINGS = {"other": "universal", "default": "native", "comfy": "comfy", "peft": "peft", "rust": "rust"}


@dataclass(frozen=True)
class FileAction:
    """One entry of the list. takes: the option that the file becomes; words: the entry's text; output: the
    option that names the result, empty when nothing is written; anew: what stands in its form is about one
    file, and does not stay for the next."""

    key: str
    command: str
    words: str
    kinds: tuple[str, ...]
    takes: str
    output: str
    suffix: Callable[[Mapping[str, Raw]], str] = lambda raw: ""
    anew: bool = False


def _model_suffix(raw: Mapping[str, Raw]) -> str:
    layout, dtype = str(raw.get("layout") or ""), str(raw.get("dtype") or "keep")
    name = "".join(f"_{part}" for part in (layout, dtype if dtype != "keep" else "") if part)
    ending = {"burn": ".bpk", "diffusers": ""}.get(layout, ".safetensors")
    return (name or "_converted") + ending


def _lora_suffix(raw: Mapping[str, Raw]) -> str:
    target = "default" if raw.get("reverse") else str(raw.get("target") or "other")
    return f"_{_LORA_ENDINGS.get(target, target)}.safetensors"


def _resized(raw: Mapping[str, Raw]) -> str:
    return f"_rank{raw['rank']}.safetensors" if raw.get("rank") else "_resized.safetensors"


ACTIONS = (
    FileAction(
        "convert", "convert", "Change layout or number format", MODELS, "input", "output", _model_suffix
    ),
    FileAction(
        "merge-model", "merge", "Merge LoRAs into it", ("transformer", "all_in_one", "quantised"), "dit",
        "output", lambda raw: "_merged" + _model_suffix(raw).replace("_converted", ""),
    ),
    FileAction(
        "extract", "extract-lora", "Extract a LoRA from its difference to a base model", ("transformer",),
        "tuned", "output", lambda raw: "_lora.safetensors",
    ),
    FileAction(
        "convert-lora", "convert-lora", "Change its form for another program", ("lora",), "input", "output",
        _lora_suffix,
    ),
    FileAction(
        "merge-loras", "merge", "Merge it with other LoRAs", ("lora",), "lora_weight", "output",
        lambda raw: "_merged.safetensors",
    ),
    FileAction("resize", "resize-lora", "Change its rank", ("lora",), "input", "output", _resized),
    FileAction(
        "edit", "edit-lora", "Scale, prune or describe it", ("lora",), "input", "output",
        lambda raw: "_edited.safetensors", anew=True,
    ),
    FileAction("verify", "verify-lora", "Verify it against a model", ("lora",), "input", ""),
    FileAction(
        "average", "ema-lora", "Average it with other checkpoints", ("lora",), "path", "output_file",
        lambda raw: "_ema.safetensors",
    ),
)  # fmt: skip


def actions_for(found: FileReport | None) -> list[FileAction]:
    """What makes sense for a file; nothing for what is no model and no LoRA."""
    if found is None or (found.kind == "quantised" and not _READ.search(found.sentence)):
        return []
    return [action for action in ACTIONS if found.kind in action.kinds]


def output_name(action: FileAction, source: Path, raw: Mapping[str, Raw], folder: Path) -> Path:
    """Where the result goes unless the user says otherwise."""
    stem = source.stem if source.suffix in (".safetensors", ".bpk") else source.name
    stem = stem.removesuffix(".safetensors.index.json")
    return folder / f"{stem.split('-00001-of-')[0]}{action.suffix(raw)}"


def needed_bytes(action: FileAction, found: FileReport, raw: Mapping[str, Raw]) -> int | None:
    """About how large the result is, from the header alone; None where that cannot be said beforehand."""
    if not action.output or action.key == "merge-loras":
        return None
    if action.key == "extract":
        return _extracted_bytes(found, raw)
    if action.key == "resize":
        return _resized_bytes(found, str(raw.get("rank") or ""))
    width = _BYTES.get(str(raw.get("dtype") or "keep"))
    if width is None:
        return found.bytes
    wide = 2 if width == 1 else width
    return sum(
        math.prod(info.shape) * (width if len(info.shape) == 2 and "layers." in name else wide)
        for name, info in found.tensors.items()
    )


def _extracted_bytes(found: FileReport, raw: Mapping[str, Raw]) -> int | None:
    """At most: when every matrix differs."""
    rank = str(raw.get("rank") or ("" if raw.get("energy") else USUAL_RANK))
    if not rank.isdigit():
        return None
    sides = (
        sum(info.shape) + (2 if ".qkv." in name else 0) * min(info.shape)  # written as q, k and v
        for name, info in found.tensors.items()
        if len(info.shape) == 2 and name.endswith(".weight")
    )
    return int(rank) * sum(sides) * _BYTES.get(str(raw.get("dtype") or "keep"), 4)


def _resized_bytes(found: FileReport, rank: str) -> int | None:
    ranks = found.lora.ranks if found.lora is not None else ()
    return found.bytes * int(rank) // max(ranks) if rank.isdigit() and ranks else None
