"""Which options belong to which command. This module knows the names of commands, not what they do.

Classes are imported when they are asked for: `--help` of one command must not pay for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from zimage_gui.config.schema import Options

_CLASSES = {
    "gui": ("app", "GuiConfig"),
    "demo": ("app", "DemoConfig"),
    "dataset": ("dataset", "DatasetConfig"),
    "cache-latents": ("cache", "CacheLatentsConfig"),
    "cache-text": ("cache", "CacheTextConfig"),
    "train-lora": ("training", "TrainLoraConfig"),
    "finetune": ("training", "FinetuneConfig"),
    "generate": ("generate", "GenerateConfig"),
    "convert-lora": ("convert", "ConvertLoraConfig"),
    "convert": ("convert_model", "ConvertConfig"),
    "merge": ("convert_model", "MergeConfig"),
    "resize-lora": ("lora_tools", "ResizeLoraConfig"),
    "extract-lora": ("lora_tools", "ExtractLoraConfig"),
    "edit-lora": ("lora_tools", "EditLoraConfig"),
    "verify-lora": ("lora_tools", "VerifyLoraConfig"),
    "ema-lora": ("lora_tools", "EmaLoraConfig"),
    "inspect": ("convert", "InspectConfig"),
    "train": ("training", "TrainConfig"),
}


class _Registry(Mapping[str, type[Options]]):
    def __getitem__(self, command: str) -> type[Options]:
        module, name = _CLASSES[command]
        found: type[Options] = getattr(importlib.import_module(f"zimage_gui.config.{module}"), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


COMMANDS: Mapping[str, type[Options]] = _Registry()
