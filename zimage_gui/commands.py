"""The commands: which options each takes and which function does its work. This module knows names only;
it must not import what it names.

An entry is `function(config, run) -> list[Path]`: it returns the files it made, reports through `run`, and
raises `UserError` for the user's mistakes. A module may also have `check(config) -> list[Problem]`, which
looks at everything that can be looked at before a byte of weights is loaded; `--dry_run` and the window call
it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_gui.config.registry import COMMANDS as CLASSES
from zimage_gui.config.schema import Options
from zimage_gui.errors import Problem

if TYPE_CHECKING:
    from zimage_gui.events import Run


@dataclass(frozen=True)
class CommandSpec:
    """entry: "module:function"; gpu: computes on the device, so it gets a run folder and runs alone."""

    name: str
    entry: str
    gpu: bool
    help: str

    @property
    def config_class(self) -> type[Options]:
        return CLASSES[self.name]

    def load(self) -> Callable[[Options, Run], list[Path]]:
        """The entry function; imports whatever it needs."""
        module, _, function = self.entry.partition(":")
        found: Callable[[Options, Run], list[Path]] = getattr(importlib.import_module(module), function)
        return found

    def check(self, config: Options) -> list[Problem]:
        """Everything that can be found wrong without computing."""
        module = importlib.import_module(self.entry.partition(":")[0])
        check: Callable[[Options], list[Problem]] | None = getattr(module, "check", None)
        return config.problems() if check is None else check(config)


_SPECS = (
    CommandSpec("gui", "zimage_gui.ui.app:run", False, "Open the window."),
    CommandSpec("demo", "zimage_gui.demo.project:run", False, "Write the demo project into a folder."),
    CommandSpec(
        "dataset", "zimage_gui.engine.dataset.report:run", False, "Look over a dataset, write its TOML."
    ),
    CommandSpec(
        "cache-latents", "zimage_gui.engine.cache_latents:run", True, "Encode the pictures with the VAE."
    ),
    CommandSpec("cache-text", "zimage_gui.engine.cache_text:run", True, "Encode the captions."),
    CommandSpec("train-lora", "zimage_gui.engine.train:run", True, "Train a LoRA."),
    CommandSpec("finetune", "zimage_gui.engine.train:run", True, "Train all weights of the transformer."),
    CommandSpec("generate", "zimage_gui.engine.generate:run", True, "Generate pictures."),
    CommandSpec("convert-lora", "zimage_gui.engine.convert_lora:run", False, "Convert a LoRA file."),
    CommandSpec("convert", "zimage_gui.engine.convert_model:run", False, "Convert a model file or folder."),
    CommandSpec("merge", "zimage_gui.engine.merge:run", False, "Merge LoRAs into a model, or into one LoRA."),
    CommandSpec("resize-lora", "zimage_gui.engine.lora_resize:run", False, "Make a LoRA's rank smaller."),
    CommandSpec(
        "extract-lora", "zimage_gui.engine.lora_extract:run", False, "Make a LoRA of two models' difference."
    ),
    CommandSpec("edit-lora", "zimage_gui.engine.lora_edit:run", False, "Scale, prune or describe a LoRA."),
    CommandSpec("verify-lora", "zimage_gui.engine.lora_verify:run", False, "Say whether a LoRA lands whole."),
    CommandSpec("ema-lora", "zimage_gui.engine.lora_ema:run", False, "Average a training's checkpoints."),
    CommandSpec("inspect", "zimage_gui.engine.inspect_file:run", False, "Say what a file is."),
    CommandSpec(
        "train", "zimage_gui.engine.train:run", True, "From a models folder and a picture folder to a LoRA."
    ),
)

COMMANDS: dict[str, CommandSpec] = {spec.name: spec for spec in _SPECS}
