"""Several LoRAs with strengths as one: exact by setting their ranks side by side, or cut to a rank.

Knows which LoRAs add up and what the result's header says; the maths is in `model.lora_lowrank`. This is the
half of the command `merge` that has no base model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.config.common import strengths
from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.config.lora_tools import LoraSizeOptions
from zimage_gui.engine.lora_io import dora_problems, output_problems, read_input, save, with_sizes
from zimage_gui.engine.lora_losses import Losses
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Progress, Run
from zimage_gui.model.lora_entries import Entry, LowRank
from zimage_gui.model.lora_files import LoraFile
from zimage_gui.model.lora_forms import Form, form_problems
from zimage_gui.model.lora_lowrank import of_factors, spectrum

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def check(config: MergeConfig) -> list[Problem]:
    """Everything that keeps the LoRAs from becoming one; reads them, writes nothing."""
    problems: list[Problem] = []
    if config.output is not None:
        problems += output_problems(config.output, config.lora_weight, config.overwrite, _form(config))
    if config.dtype != "keep" and config.dtype not in _DTYPES:
        rule = "is a number format of models, not of LoRAs"
        problems.append(Problem("dtype", config.dtype, rule, "Use keep, f32, f16 or bf16"))
    files = []
    for path in config.lora_weight:
        try:
            file = read_input(path, "lora_weight").select(config.include_patterns, config.exclude_patterns)
            files.append(file)
            problems += dora_problems(file, "lora_weight")
            if not file.entries:
                rule = "has no module that the patterns leave"
                remedy = "Check include_patterns and exclude_patterns"
                problems.append(Problem("lora_weight", str(path), rule, remedy))
        except UserError as error:
            problems += error.problems
    return problems + _size_problems(files)


def run(config: MergeConfig, run: Run) -> list[Path]:
    """Merges the files, proves the result, and says what a cut has cost."""
    raise_if_any(check(config))
    assert config.output is not None  # `check` has seen to it
    size = LoraSizeOptions(rank=config.rank, energy=config.energy)
    files = [
        read_input(path, "lora_weight").select(config.include_patterns, config.exclude_patterns)
        for path in config.lora_weight
    ]
    multipliers = strengths(config.lora_multiplier, len(files))
    losses = Losses()
    paths = list(dict.fromkeys(path for file in files for path in file.entries))
    entries: dict[str, Entry] = {}
    for path in paths:
        parts = [
            (file.entries[path], strength)
            for file, strength in zip(files, multipliers, strict=True)
            if path in file.entries
        ]
        entries[path] = _sum(path, parts, size, losses)
        run.emit(Progress(done=len(entries), total=len(paths), unit="modules"))
    metadata = with_sizes(_header(config.output, files, multipliers), entries)
    raise_if_any(form_problems(entries, _form(config), option="lora_format"))
    made, said = save(config.output, entries, _form(config), metadata, _DTYPES.get(config.dtype))
    for line in losses.lines():
        run.emit(Note(text=line))
    how = "exactly, their ranks side by side" if not losses.modules else "by singular values"
    what = "1 LoRA" if len(files) == 1 else f"{len(files)} LoRAs"
    run.emit(Note(text=f"{what} merged {how}: {len(entries)} modules {said}"))
    return made


def _form(config: MergeConfig) -> Form:
    return config.lora_format or "universal"


def _sum(path: str, parts: Sequence[tuple[Entry, float]], size: LoraSizeOptions, losses: Losses) -> LowRank:
    low = [_scaled(entry, strength) for entry, strength in parts]
    rank = sum(part.rank for part in low)
    if size.rank is None and size.energy is None and rank <= min(low[0].shape):
        down, up = torch.cat([part.down for part in low]), torch.cat([part.up for part in low], dim=1)
        return LowRank(down, up, float(rank))
    whole: list[Tensor] = [torch.cat([part.down.double() for part in low])]
    whole.append(torch.cat([part.up.double() for part in low], dim=1))
    return losses.cut(path, of_factors(whole[1], whole[0]), size.rank, size.energy)


def _scaled(entry: Entry, strength: float) -> LowRank:
    """At scale 1 with the strength inside."""
    low = entry if isinstance(entry, LowRank) else spectrum(entry).cut()[0]
    return replace(low, alpha=low.alpha * strength).with_alpha(float(low.rank))


def _size_problems(files: Sequence[LoraFile]) -> list[Problem]:
    """Modules that two files make for different sizes of the same layer."""
    shapes: dict[str, tuple[int, int]] = {}
    for file in files:
        for path, entry in file.entries.items():
            if shapes.setdefault(path, entry.shape) != entry.shape:
                rule = (
                    f"{path} is made for a weight {list(entry.shape)}, in another file {list(shapes[path])}"
                )
                remedy = "Merge LoRAs of one model"
                return [Problem("lora_weight", str(file.path), rule, remedy)]
    return []


def _header(output: Path, files: Sequence[LoraFile], multipliers: Sequence[float]) -> Mapping[str, str]:
    """What all files say alike, and what they were."""
    common = {
        name: text
        for name, text in files[0].metadata.items()
        if all(file.metadata.get(name) == text for file in files[1:])
    }
    merged = [{"file": file.path.name, "strength": x} for file, x in zip(files, multipliers, strict=True)]
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "Z-Image/lora",
        **common,
        "modelspec.title": output.stem,
        "zimage_gui_merged": json.dumps(merged, ensure_ascii=False),
    }
