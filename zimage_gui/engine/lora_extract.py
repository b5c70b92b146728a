"""The command `extract-lora`: the difference of two transformers as a LoRA, one layer in memory at a time.

Knows which tensors are compared and what a LoRA cannot hold; the maths is in `model.lora_lowrank`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.config.lora_tools import USUAL_RANK, ExtractLoraConfig
from zimage_gui.engine.devices import DTYPES, pick_device
from zimage_gui.engine.lora_io import output_problems, save
from zimage_gui.engine.lora_losses import Losses
from zimage_gui.errors import Problem, UserError, raise_if_any, tried
from zimage_gui.events import Note, Progress, Run, Warning
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.keymaps import Source
from zimage_gui.model.lora_dialects import chosen, resolve_module
from zimage_gui.model.lora_entries import Entry, LowRank
from zimage_gui.model.lora_forms import Form, form_problems
from zimage_gui.model.lora_lowrank import of_dense
from zimage_gui.model.tensor_files import read_source
from zimage_gui.model.weights import transformer_config_of, transformer_tensors

_SHOWN = 4


@dataclass(frozen=True)
class _Model:
    """A transformer on disk, by our names."""

    checkpoint: Checkpoint
    sources: Mapping[str, Source]

    def shape(self, name: str) -> tuple[int, ...]:
        source = self.sources[name]
        return source.shape_of(self.checkpoint.places[source.name].info.shape)

    def tensor(self, name: str) -> Tensor:
        source = self.sources[name]
        place = self.checkpoint.places[source.name]
        with place.file.open("rb") as file:
            return read_source(file, place.info, source)


def check(config: ExtractLoraConfig) -> list[Problem]:
    """Everything that can be found wrong from the headers."""
    problems = config.problems()
    if config.output is not None:
        problems += output_problems(config.output, [], config.overwrite, _form(config))
    tried(lambda: pick_device(config.device), problems)
    sizes = [
        tried(partial(transformer_config_of, path, option), problems)
        for option, path in (("base", config.base), ("tuned", config.tuned))
        if path is not None
    ]
    if None not in sizes and len(sizes) == 2 and sizes[0] != sizes[1]:
        rule = "is a model of another size than the base"
        problems.append(Problem("tuned", str(config.tuned), rule, "Give two models of one shape"))
    return problems


def run(config: ExtractLoraConfig, run: Run) -> list[Path]:
    """Extracts, proves the file, and says the error."""
    raise_if_any(check(config))
    assert config.base and config.tuned and config.output  # `check` has seen to it
    base, tuned = _open(config.base, "base"), _open(config.tuned, "tuned")
    names = [name for name in base.sources if _is_linear(name) and _wanted(config, name)]
    device, dtype = pick_device(config.device), DTYPES.get(config.dtype, torch.float32)
    rank = config.rank or (USUAL_RANK if config.energy is None else None)
    losses = Losses()
    entries: dict[str, Entry] = {}
    for done, name in enumerate(names, 1):
        pair = {"tuned": tuned.tensor(name).float(), "base": base.tensor(name).float()}
        raise_if_any(_not_finite(config, name, pair))
        change = pair["tuned"] - pair["base"]
        if bool(change.any()):
            path = name.removesuffix(".weight")
            found = of_dense(change.to(device), rank, config.energy)
            low = losses.cut(path, found, rank, config.energy)
            entries[path] = LowRank(low.down.to("cpu", dtype), low.up.to("cpu", dtype), low.alpha)
        run.emit(Progress(done=done, total=len(names), unit="layers"))
    if not entries:
        rule = f"does not differ from the base in any of {len(names)} layers"
        raise UserError.one("tuned", config.tuned, rule, "Check the two paths and the patterns")
    raise_if_any(form_problems(entries, _form(config), option="lora_format"))
    if lost := _not_in_a_lora(base, tuned):
        shown = ", ".join(lost[:_SHOWN]) + (" …" if len(lost) > _SHOWN else "")
        run.emit(Warning(text=f"{len(lost)} tensors differ that no LoRA can hold (norms, biases): {shown}"))
    made, said = save(config.output, entries, _form(config), _header(config, losses))
    for line in losses.lines():
        run.emit(Note(text=line))
    run.emit(Note(text=f"{len(entries)} of {len(names)} layers differ; {said}"))
    return made


def _not_finite(config: ExtractLoraConfig, name: str, pair: Mapping[str, Tensor]) -> list[Problem]:
    rule, remedy = f"holds NaN or infinity in {name}", "Download the model again, or use another checkpoint"
    return [
        Problem(option, str(getattr(config, option)), rule, remedy)
        for option, tensor in pair.items()
        if not bool(tensor.isfinite().all())
    ]


def _form(config: ExtractLoraConfig) -> Form:
    return "universal" if config.lora_format == "keep" else config.lora_format


def _open(path: Path, option: str) -> _Model:
    transformer_config_of(path, option)  # refuses what is no whole transformer
    return _Model(*transformer_tensors(path, option))


def _is_linear(name: str) -> bool:
    return name.endswith(".weight") and bool(resolve_module(name.removesuffix(".weight"), "."))


def _wanted(config: ExtractLoraConfig, name: str) -> bool:
    return chosen(name.removesuffix(".weight"), config.include_patterns, config.exclude_patterns)


def _not_in_a_lora(base: _Model, tuned: _Model) -> list[str]:
    return [
        name
        for name in base.sources
        if not _is_linear(name)
        and name in tuned.sources
        and not torch.equal(tuned.tensor(name).float().flatten(), base.tensor(name).float().flatten())
    ]


def _header(config: ExtractLoraConfig, losses: Losses) -> dict[str, str]:
    assert config.base and config.tuned and config.output
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "Z-Image/lora",
        "modelspec.title": config.output.stem,
        "ss_base_model_version": "z_image",
        "ss_sd_model_name": config.base.name,
        "zimage_gui_extracted": f"{config.tuned.name}, relative error {losses.overall:.3g}",
    }
