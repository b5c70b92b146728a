"""The command `verify-lora`: whether a LoRA is whole, and how many of its tensors land in a model.

Knows what is counted and how it is said. It reads a model's header only.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from zimage_gui.config.lora_tools import VerifyLoraConfig
from zimage_gui.errors import Problem, UserError, raise_if_any, tried
from zimage_gui.events import Note, Run, Warning
from zimage_gui.files import read_header
from zimage_gui.model.lora_dialects import parse_key
from zimage_gui.model.lora_entries import Dora, Entry
from zimage_gui.model.lora_files import LoraFile, fit_problems, linear_shapes, read_lora
from zimage_gui.model.lora_lowrank import spectrum
from zimage_gui.model.sizes import TransformerConfig
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import transformer_config_of

_SHOWN = 6


def check(config: VerifyLoraConfig) -> list[Problem]:
    """Whether there is something to verify; what is wrong inside is what the command itself says."""
    problems = config.problems()
    if (path := config.input) is not None:
        tried(lambda: read_lora(path, "input"), problems)
    if (model := config.dit) is not None:
        tried(lambda: transformer_config_of(model, "dit"), problems)
    return problems


def run(config: VerifyLoraConfig, run: Run) -> list[Path]:
    """Says what the file is and that all of it lands. Raises UserError when anything in it does not."""
    raise_if_any(check(config))
    assert config.input is not None  # `check` has seen to it
    sizes = transformer_config_of(config.dit, "dit") if config.dit else TransformerConfig()
    with torch.device("meta"):
        shapes = linear_shapes(ZImageTransformer(sizes))
    file = read_lora(config.input, "input")
    names = list(read_header(config.input, "input").tensors)
    landing = _landing(file, names, shapes)
    where = config.dit.name if config.dit else "Z-Image"
    count = f"{landing} of {len(names)} tensors land in {where}"
    problems = fit_problems(file, shapes, "input")
    if problems:
        raise UserError(
            Problem(p.option, p.value, f"{count}: {p.rule}" if index == 0 else p.rule, p.remedy)
            for index, p in enumerate(problems)
        )
    idle = [path for path, entry in file.entries.items() if _idle(entry)]
    if idle:
        shown = ", ".join(idle[:_SHOWN]) + (" …" if len(idle) > _SHOWN else "")
        run.emit(Warning(text=f"{len(idle)} of {len(file.entries)} modules change nothing: {shown}"))
    ranks = " and ".join(str(rank) for rank in file.ranks if rank)
    told = f"rank {ranks}" if ranks else "full factors"
    run.emit(Note(text=f"{file.dialect}, {told}; every number is finite"))
    run.emit(Note(text=f"{count}: {len(file.entries)} modules"))
    return []


def _landing(file: LoraFile, names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    fits = {path for path, entry in file.entries.items() if tuple(shapes.get(path, ())) == entry.shape}
    keys = [key for key in map(parse_key, names) if key is not None]
    # A third of a fused qkv that changes nothing has no adapter of its own.
    return sum(
        any(target in fits for target in key.targets)
        and all(target in fits or target not in file.entries for target in key.targets)
        for key in keys
    )


def _idle(entry: Entry) -> bool:
    return not isinstance(entry, Dora) and spectrum(entry).energy == 0
