"""How long a run will take: what an earlier run with the same settings on the same device has shown.

A run writes its pace to `pace.json` in its folder once its first steps are done; a later one looks for it in
the folders beside its own. Knows options, events and run folders. Must not know torch or training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

from zimage_gui.events import Event, Step
from zimage_gui.files import atomic_write

FILE = "pace.json"
_WARMING = 2
"""First steps that are not counted: they compile, warm up and read the first files."""
_MEASURED = 10
_MOST_RUNS = 200
_DECIDES = (
    "batch_size", "gradient_accumulation_steps", "optimizer_type", "mixed_precision", "attn_mode",
    "gradient_checkpointing", "gradient_checkpointing_fraction", "gradient_checkpointing_cpu_offload",
    "blocks_to_swap", "block_swap_ring_size", "base_quant", "gpus", "compile", "compile_backend",
    "compile_mode", "compile_dynamic", "dynamo_backend", "cuda_allow_tf32", "network_module", "network_dim",
    "include_patterns", "exclude_patterns", "network_reg_dims", "lokr_factor", "lokr_full",
    "dim_from_weights", "scale_weight_norms", "ema_decay", "ema_device", "train_patterns", "freeze_patterns",
    "full_bf16", "stochastic_rounding", "fused_backward_pass",
)  # fmt: skip
"""Options on which the seconds of a step depend, beside the model and the pictures."""


def key_of(config: Any, batch: str, device: str) -> str:
    """The same for runs whose steps take equally long. batch: the largest in words; device: its name."""
    dit = Path(config.dit)
    size = dit.stat().st_size if dit.is_file() else 0
    decides = {name: getattr(config, name) for name in _DECIDES if hasattr(config, name)}
    text = json.dumps([config.command, dit.name, size, batch, device, decides], default=str, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def known_pace(runs: Path, key: str) -> tuple[float, str] | None:
    """Seconds of a step and the name of the newest run in `runs` that showed them; None when none did."""
    for file in sorted(runs.glob(f"2*/{FILE}"), reverse=True)[:_MOST_RUNS]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["key"] == key and float(found["seconds"]) > 0:
                return float(found["seconds"]), file.parent.name
    return None


def time_line(pace: tuple[float, str] | None, steps: int) -> str:
    """The estimate's line about time. No figure where none was measured: a guess would be off by a lot."""
    if pace is None:
        return "  time: told from the first steps on; no run here had these settings"
    seconds, run = pace
    return f"  time for {steps:,} steps: about {_duration(seconds * steps)} ({seconds:.2g} s each in {run})"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class PaceRecord:
    """Listens to a run's steps and writes their pace down, once."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._seen = 0
        self._seconds: list[float] = []

    def listen(self, event: Event) -> None:
        if not isinstance(event, Step) or len(self._seconds) >= _MEASURED:
            return
        self._seen += 1
        if self._seen > _WARMING:
            self._seconds.append(event.seconds)
        if len(self._seconds) == _MEASURED:
            pace = {"key": self._key, "seconds": statistics.median(self._seconds), "steps": _MEASURED}
            with contextlib.suppress(OSError):  # a full disk costs the record, not the run
                atomic_write(self._folder / FILE, json.dumps(pace).encode("utf-8"))
