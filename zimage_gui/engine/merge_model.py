"""Base model and LoRAs to a new model file: streamed, added up in fp32, rounded or quantised once at the end.

Knows LoRA files and what must fit together. It must not know tensor layouts or bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zimage_gui.config.common import strengths
from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.engine.convert_model import checked_plan, early_problems, sentence
from zimage_gui.engine.convert_model_numbers import Changes
from zimage_gui.engine.convert_model_output import output_problems
from zimage_gui.engine.convert_model_plan import Plan
from zimage_gui.engine.convert_model_scales import refuse_lost_scales
from zimage_gui.engine.convert_model_source import ModelSource, open_model
from zimage_gui.engine.convert_model_write import write_plan
from zimage_gui.errors import Problem, UserError, raise_if_any, tried
from zimage_gui.events import Note, Run
from zimage_gui.model.keymaps import Shape
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.lora_files import LoraFile, fit_problems, read_lora

METADATA_KEY = "zimage_gui_merged"


@dataclass(frozen=True)
class _Merge:
    plan: Plan
    loras: tuple[tuple[LoraFile, float], ...]


def check(config: MergeConfig) -> list[Problem]:
    """Everything that keeps the LoRAs from landing wholly in the model; reads the LoRAs, writes nothing."""
    problems: list[Problem] = []
    if config.output is None:
        _loras(config, None, problems)
    else:
        tried(lambda: _prepared(config), problems)
    return problems


def run(config: MergeConfig, run: Run) -> list[Path]:
    """Writes the merged model, verifies it by reading it back, and says what landed."""
    merge = _prepared(config)
    for note in merge.plan.notes:
        run.emit(Note(text=note))
    changes: dict[str, list[tuple[Entry, float]]] = {}
    for file, multiplier in merge.loras:
        for path, entry in file.entries.items():
            changes.setdefault(f"{path}.weight", []).append((entry, multiplier))
        text = f"LoRA {file.path.name} at {multiplier:g}: all of its {len(file.entries)} modules are merged"
        run.emit(Note(text=text))
    refuse_lost_scales(merge.plan.source)
    written = write_plan(merge.plan, run, _checked(changes, merge.plan))
    run.emit(Note(text=sentence(merge.plan)))
    return written


def _checked(changes: Changes, plan: Plan) -> Changes:
    """Counts once more: a change whose weight no tensor of the result is made of would be lost in silence."""
    written = {part for tensor in plan.tensors for part in tensor.parts}
    lost = sorted(set(changes) - written)
    if lost:
        raise RuntimeError(f"{len(lost)} changed weights are in no tensor of the result: {lost[:3]}")
    return changes


def _prepared(config: MergeConfig) -> _Merge:
    assert config.dit is not None and config.output is not None  # `problems` has seen to it
    dit, output = config.dit, config.output
    problems = early_problems(config, output, [dit, *config.lora_weight])
    source = tried(lambda: _base(config, dit), problems)
    plan = tried(lambda: checked_plan(source, config, output), problems) if source else None
    loras = _loras(config, _linear_shapes(source) if source else None, problems)
    if source and plan:
        files = [*source.checkpoint.files, *config.lora_weight]
        found = output_problems(output, files, config.overwrite, plan.bytes, folder=plan.folder)
        problems += (one for one in found if one not in problems)
    raise_if_any(problems)
    assert plan is not None  # else there were problems
    merged = [{"file": file.path.name, "strength": multiplier} for file, multiplier in loras]
    metadata = {**plan.metadata, METADATA_KEY: json.dumps(merged, ensure_ascii=False)}
    return _Merge(replace(plan, metadata=metadata), tuple(loras))


def _base(config: MergeConfig, path: Path) -> ModelSource:
    source = open_model(path, "dit", "transformer")
    if source.scaled and config.dtype == "keep":
        rule = "cannot be kept: the base is stored as fp8, which the merge opens"
        raise UserError.one(
            "dtype", "keep", rule, "Choose bf16, or fp8_comfy or fp8_blocks to quantise again"
        )
    return source


def _linear_shapes(source: ModelSource) -> dict[str, Shape]:
    return {
        name.removesuffix(".weight"): shape
        for name, shape in source.shapes().items()
        if name.endswith(".weight") and len(shape) == 2
    }


def _loras(
    config: MergeConfig, shapes: Mapping[str, Sequence[int]] | None, problems: list[Problem]
) -> list[tuple[LoraFile, float]]:
    """shapes: those of the base, None when it could not be read."""
    multipliers = strengths(config.lora_multiplier, len(config.lora_weight))
    loras: list[tuple[LoraFile, float]] = []
    for path, multiplier in zip(config.lora_weight, multipliers, strict=False):
        file = tried(partial(read_lora, path), problems)
        if file is None:
            continue
        chosen = file.select(config.include_patterns, config.exclude_patterns)
        if shapes is not None:
            problems += (one for one in fit_problems(chosen, shapes) if one not in problems)
        loras.append((chosen, multiplier))
    return loras
