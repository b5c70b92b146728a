"""The memory estimate of a run for whoever asks: the trainer before it begins, the window before Train.

Knows options, headers and the scan of the pictures, and what is free. Must not know torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zimage_gui.engine.dataset.scan import ScanReport
from zimage_gui.engine.memory_estimate import GIB, Estimate, Workload, estimate, workload
from zimage_gui.engine.memory_models import ModelSizes, model_sizes


@dataclass(frozen=True)
class Free:
    """Bytes that can be had now; None: not known. On a CPU the device's memory is RAM."""

    device: float | None
    ram: float | None
    disk: float | None


@dataclass(frozen=True)
class Plan:
    """One run's estimate with what it was made from, so that it can be made for other options too. updates:
    the run's length in steps."""

    config: Any
    sizes: ModelSizes
    load: Workload
    device: str
    item: int | None = None
    updates: int = 0

    def estimate(self, **changes: object) -> Estimate:
        """With other values of some options. A batch size and a resolution change the largest batch."""
        config = self.config.model_copy(update=changes)
        return estimate(config, self.sizes, _scaled(self.load, self.config, config), self.device, self.item)


def plan(config: Any, report: ScanReport, device: str, item: int | None = None) -> Plan | None:
    """None when nothing is left to train. Raises UserError for a model file that is none."""
    per_epoch = updates_per_epoch(config, report)
    if config.max_train_epochs is not None:
        updates, epochs = config.max_train_epochs * per_epoch, config.max_train_epochs
    else:
        updates, epochs = config.max_train_steps, config.max_train_steps // per_epoch
    if not report.pictures:
        return None
    sizes = model_sizes(config.dit, config.text_encoder, config.vae)
    load = workload(config, report.pictures, updates, epochs, sizes.text.hidden_size)
    assert load is not None
    return Plan(config, sizes, load, device, item, updates)


def updates_per_epoch(config: Any, report: ScanReport) -> int:
    """Optimizer updates in one pass; batches never mix buckets, so each bucket rounds up for itself."""
    batches = 0
    for source in report.sources:
        size = source.batch_size if config.dataset_config is not None else config.batch_size
        counts: dict[tuple[int, int], int] = {}
        for picture in report.pictures:
            if picture.source == source:
                counts[picture.bucket] = counts.get(picture.bucket, 0) + source.num_repeats
        trained = 1 - config.validation_split
        batches += sum(math.ceil(count * trained / size) for count in counts.values())
    return max(1, math.ceil(batches / int(config.gradient_accumulation_steps)))


def _scaled(load: Workload, old: Any, new: Any) -> Workload:
    batch = load.batch
    count = min(batch.count, new.batch_size) if new.batch_size != old.batch_size else batch.count
    scale = math.sqrt(math.prod(new.resolution) / math.prod(old.resolution))
    width, height = (max(16, round(edge * scale / 16) * 16) for edge in (batch.width, batch.height))
    changed = type(batch)(width, height, batch.text, count)
    return Workload(changed, load.cache_bytes * scale**2, load.saves, load.states)


def free_now(device: float | None, folder: Path) -> Free:
    """device: bytes free on the GPU; None on a CPU."""
    ram = float(psutil.virtual_memory().available)
    place = folder.absolute()
    while not place.exists() and place.parent != place:
        place = place.parent
    return Free(ram if device is None else device, ram, float(shutil.disk_usage(place).free))


def table(found: Estimate, free: Free) -> str:
    """The estimate in lines of equal columns, GiB."""
    where = "GPU memory" if found.device == "cuda" else "memory"
    lines = [f"Estimated {where} of this run in GiB ({found.batch.words})"]
    lines += _lines(found.training)
    lines.append(_line("while training", found.training_peak))
    lines += [_line(f"while: {name}", size) for name, size in found.phases.items()]
    lines.append(_line(f"{where} at the fullest", found.peak, free.device))
    lines.append(_line("RAM", found.ram_peak, free.ram))
    lines += [_line(f"disk: {name}", size) for name, size in found.disk.items()]
    lines.append(_line("disk", sum(found.disk.values()), free.disk))
    return "\n".join(lines)


def shortages(found: Estimate, free: Free) -> list[str]:
    """What does not fit, in sentences."""
    told = []
    where = "GPU memory" if found.device == "cuda" else "memory"
    for name, need, there in (
        (where, found.peak, free.device),
        ("RAM", found.ram_peak if found.device == "cuda" else None, free.ram),
        ("disk space", sum(found.disk.values()), free.disk),
    ):
        if need is not None and there is not None and need > there:
            told.append(f"about {_amount(need)} of {name} are needed and {_amount(there)} are free")
    return told


def _amount(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _lines(parts: Mapping[str, float]) -> list[str]:
    return [_line(name, size) for name, size in parts.items()]


def _line(name: str, size: float, free: float | None = None) -> str:
    beside = "" if free is None else f"  of {free / GIB:.2f} free"
    return f"  {name:<32}{size / GIB:>9.2f}{beside}"
