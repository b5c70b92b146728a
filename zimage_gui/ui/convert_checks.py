"""Mistakes that headers tell before a conversion is started, so that they appear beside their fields.

Knows the converting commands' options and the kinds of files. Must not know gradio; what needs numbers is
told by the run.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from zimage_gui.config.convert_model import ConvertConfig, MergeConfig, ModelOutput
from zimage_gui.config.schema import Options
from zimage_gui.engine.convert_model_plan import format_problems
from zimage_gui.errors import Problem, UserError, tried
from zimage_gui.model.recognise import recognise, require

_MODELS = ("dit", "base", "tuned")
_LORAS = ("lora_weight", "path")


def early_problems(config: Options, output: str) -> list[Problem]:
    """output: the option that names the result, empty when nothing is written."""
    problems = _of_output(config, output)
    for option in _MODELS:
        path = getattr(config, option, None)
        if path is not None:
            tried(partial(require, path, "transformer", option, fp8=True), problems)
    for option in _LORAS:
        for path in getattr(config, option, None) or ():
            tried(partial(_require_lora, path, option), problems)
    return problems


def _of_output(config: Options, option: str) -> list[Problem]:
    path: Path | None = getattr(config, option, None) if option else None
    if path is None:
        return []
    problems: list[Problem] = []
    if isinstance(config, ModelOutput) and _writes_model(config):
        problems += format_problems(config, path)
    elif path.suffix.lower() != ".safetensors":
        remedy = f"Write {path.with_suffix('.safetensors').name}"
        problems.append(Problem(option, str(path), "must end in .safetensors", remedy))
    if os.path.lexists(path) and not getattr(config, "overwrite", False):
        problems.append(Problem(option, str(path), "exists already", "Choose another name, or set overwrite"))
    return problems


def _writes_model(config: ModelOutput) -> bool:
    return isinstance(config, ConvertConfig) or (isinstance(config, MergeConfig) and config.dit is not None)


def _require_lora(path: Path, option: str) -> None:
    found = recognise(path, option)
    if found.kind != "lora":
        rule = f"must be a LoRA, but this is {found.sentence}"
        raise UserError.one(option, path, rule, "Choose another file")
