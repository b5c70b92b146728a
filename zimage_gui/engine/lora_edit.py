"""The command `edit-lora`: strength, modules, number format and header of a LoRA, whose names stay.

Knows what may be changed in place. It must not know how a form spells its names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.config.lora_tools import EditLoraConfig
from zimage_gui.engine import header_picture
from zimage_gui.engine.devices import DTYPES
from zimage_gui.engine.lora_io import dora_problems, output_problems, read_input, save, sidecar_of
from zimage_gui.errors import Problem, raise_if_any, tried
from zimage_gui.events import Note, Run
from zimage_gui.files import read_header, sweep_temp_files
from zimage_gui.model.lora_alphas import HEADER_KEY, sidecar_path
from zimage_gui.model.lora_dialects import Key, named_by, parse_key
from zimage_gui.model.lora_files import LoraFile
from zimage_gui.model.lora_forms import Form
from zimage_gui.model.lora_read import load_tensors, taken_apart
from zimage_gui.model.lora_write import write_tensors

# One factor of each kind carries the strength.
_SCALED = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")
_RUST: Form = "rust"


def check(config: EditLoraConfig) -> list[Problem]:
    """Everything that keeps the file from being edited; reads it, writes nothing."""
    problems = config.problems()
    source, picture, form = config.input, config.thumbnail, None
    file = tried(lambda: read_input(source), problems) if source is not None else None
    if file is not None:
        sidecar = tried(lambda: sidecar_of(file.path, read_header(file.path, "input").tensors), problems)
        form = _RUST if sidecar else None
        if config.scale != 1:
            problems += dora_problems(file, "scale")
        problems += _prune_problems(config, file)
    if config.output is not None:
        problems += output_problems(config.output, [source] if source else [], config.overwrite, form)
    if picture is not None:
        tried(lambda: header_picture.from_file(picture), problems)
    return problems


def run(config: EditLoraConfig, run: Run) -> list[Path]:
    """Edits, proves the file, and says what has changed."""
    raise_if_any(check(config))
    assert config.input is not None and config.output is not None  # `check` has seen to it
    file = read_input(config.input)
    stored = load_tensors(config.input, read_header(config.input, "input"), "input")
    keys = {name: key for name in stored if (key := parse_key(name)) is not None}
    gone = {name for name, key in keys.items() if _pruned(key, config.prune)}
    tensors = {
        name: _edited(tensor, keys[name], config) for name, tensor in stored.items() if name not in gone
    }
    metadata = _header(config, file.metadata)
    sidecar = sidecar_of(config.input, stored)
    sweep_temp_files(config.output.parent)
    if gone and HEADER_KEY in file.metadata:
        # PEFT's header names the modules: it is written anew.
        rest = taken_apart(config.input, tensors, file.metadata)
        save(config.output, rest.entries, "peft", metadata)
    else:
        write_tensors(config.output, tensors, metadata, sidecar)
    left = read_input(config.output, "output")
    changed = sum(file.metadata.get(name) != text for name, text in left.metadata.items())
    said = (
        f"{len(left.entries)} of {len(file.entries)} modules written to {config.output.name}, "
        f"{changed} header entries new or changed"
    )
    if config.remove_keys:
        said += f", {len(file.metadata.keys() - left.metadata.keys())} taken out"
    run.emit(Note(text=said))
    return [config.output, *([sidecar_path(config.output)] if sidecar else [])]


def _pruned(key: Key, patterns: tuple[str, ...]) -> bool:
    return all(named_by(target, patterns) for target in key.targets)


def _prune_problems(config: EditLoraConfig, file: LoraFile) -> list[Problem]:
    if not config.prune:
        return []
    assert config.input is not None
    shown = " ".join(config.prune)
    hit = [path for path in file.entries if named_by(path, config.prune)]
    if not hit or len(hit) == len(file.entries):
        rule = f"finds {'all' if hit else 'none'} of the {len(file.entries)} modules"
        return [Problem("prune", shown, rule, f"A module is called {next(iter(file.entries))}")]
    for name in read_header(config.input, "input").tensors:
        key = parse_key(name)
        hits = [named_by(target, config.prune) for target in key.targets] if key is not None else []
        if any(hits) and not all(hits):
            rule = f"finds only a part of the fused {name}"
            remedy = "Split it first with convert-lora --target default, or take out all of q, k and v"
            return [Problem("prune", shown, rule, remedy)]
    return []


def _edited(tensor: Tensor, key: Key, config: EditLoraConfig) -> Tensor:
    if config.scale != 1 and key.part in _SCALED:
        exact = tensor.float() * config.scale
        kept = exact.to(tensor.dtype)
        tensor = kept if torch.equal(kept.float(), exact) else exact
    return tensor if key.part == "alpha" else tensor.to(DTYPES.get(config.dtype, tensor.dtype))


def _header(config: EditLoraConfig, metadata: Mapping[str, str]) -> dict[str, str]:
    changes = config.header_changes
    if config.thumbnail is not None:
        changes[header_picture.KEY] = header_picture.from_file(config.thumbnail)
    kept = {name: text for name, text in metadata.items() if not _removed(name, config.remove_keys)}
    if changes:
        kept = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "Z-Image/lora"} | kept
    return {name: text for name, text in (kept | changes).items() if text or name not in changes}


def _removed(name: str, patterns: tuple[str, ...]) -> bool:
    """The header that holds PEFT's alphas is part of the weights and stays."""
    if name == HEADER_KEY:
        return False
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)
