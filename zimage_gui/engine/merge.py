"""The command `merge`: with a base model LoRAs become part of it, without one they become one LoRA.

Knows which half is meant. It must not know how either is done.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.errors import Problem, raise_if_any
from zimage_gui.events import Run


def check(config: MergeConfig) -> list[Problem]:
    """Everything that keeps the merge from being done; writes nothing."""
    found: list[Problem] = [*config.problems(), *_half(config).check(config)]
    return list(dict.fromkeys(found))


def run(config: MergeConfig, run: Run) -> list[Path]:
    """Merges and returns what was written."""
    raise_if_any(config.problems())
    written: list[Path] = _half(config).run(config, run)
    return written


def _half(config: MergeConfig) -> Any:
    name = "lora_merge_files" if config.dit is None else "merge_model"
    return importlib.import_module(f"zimage_gui.engine.{name}")
