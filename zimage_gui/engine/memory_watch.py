"""A run's memory before, while and after: the estimate is told, settles what the options leave to it, and is
held against the real peak.

Knows torch's counters and the estimate. Must not know how training is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zimage_gui.config.schema import show
from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import sources_of
from zimage_gui.engine.devices import DTYPES, device_name, free_memory, number_format
from zimage_gui.engine.memory_advice import changes
from zimage_gui.engine.memory_estimate import (
    GIB,
    PREVIEWS,
    SAVING,
    TEXT_ENCODER,
    TRAINING,
    VAE,
    least_recomputed,
)
from zimage_gui.engine.memory_peak import PeakMeter
from zimage_gui.engine.memory_plan import Plan, free_now, plan, shortages, table
from zimage_gui.engine.memory_steps import AUTO
from zimage_gui.engine.pace import PaceRecord, key_of, known_pace, time_line
from zimage_gui.errors import NoMemory
from zimage_gui.events import Event, Note, Run, Stage, Warning

_NO_RAM = "DefaultCPUAllocator"
"""In torch's words when the system grants no more RAM."""
_PHASES = {
    "load_vae": VAE, "load_text_encoder": TEXT_ENCODER, "encode_prompts": TEXT_ENCODER, "load_dit": TRAINING,
}  # fmt: skip
"""Stages of a run that begin one of the estimate's phases."""
_SHOWING = "sample"


class MemoryWatch:
    """Tells the table when it is made; `settled` and `compare` come later in the run."""

    def __init__(self, config: Any, run: Run, device: torch.device, folder: Path) -> None:
        self._run, self._device, self._config = run, device, config
        self._meter, self._shown = PeakMeter(device), False
        self.free = free_now(free_memory(device) if device.type == "cuda" else None, folder)
        self.plan = self._plan()
        if self.plan is None:
            return
        self._settle_share()
        self._estimate = self.plan.estimate(**self.settled())
        self.key = key_of(config, self._estimate.batch.words, device_name(device))
        time = time_line(known_pace(run.folder.parent, self.key), self.plan.updates)
        run.emit(Note(text=f"{table(self._estimate, self.free)}\n{time}"))
        for words in shortages(self._estimate, self.free):
            run.emit(Warning(text=words))

    def _plan(self) -> Plan | None:
        sources = sources_of(self._config, self._config.batch_size)
        item = DTYPES[self._config.mixed_precision].itemsize
        made = plan(self._config, scan(sources), self._device.type, item)
        if made is None:  # the caches say what is wrong with the pictures
            return None
        computing = number_format(self._device, self._config.mixed_precision, made.sizes.transformer.all)
        return replace(made, item=computing.itemsize)

    def _settle_share(self) -> None:
        self._share: dict[str, str] = {}
        if self._config.gradient_checkpointing_fraction != AUTO or not self._config.gradient_checkpointing:
            return
        assert self.plan is not None and self.free.device is not None
        plan, layers = self.plan, self.plan.sizes.config.n_layers
        count = least_recomputed(
            self._config, plan.sizes, plan.load, plan.device, self.free.device, plan.item
        )
        self._share = {"gradient_checkpointing_fraction": f"{count / layers:.6f}"}
        text = f"{count} of {layers} blocks are computed twice, by the memory that is free"
        self._run.emit(Note(text=text))

    def settled(self) -> dict[str, str]:
        """Options that were left to the estimate, with their values."""
        if self.plan is None and self._config.gradient_checkpointing_fraction == AUTO:
            return {"gradient_checkpointing_fraction": "1"}
        return {} if self.plan is None else self._share

    def listeners(self) -> dict[str, Callable[[Event], None]]:
        """What is to hear of the run's events: how long its steps take is written down for later ones, and
        each phase has a peak of its own."""
        if self.plan is None:
            return {}
        return {"pace": PaceRecord(self._run.folder, self.key).listen, "memory": self._hear}

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Inside, the memory is measured, and memory that runs out ends the run with what to change instead
        of a traceback."""
        try:
            with self._meter.running():
                yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            on_gpu = isinstance(error, torch.OutOfMemoryError)
            if not (on_gpu or isinstance(error, MemoryError) or _NO_RAM in str(error)):
                raise
            raise self._no_memory("GPU" if on_gpu else "computer") from None

    def _no_memory(self, whose: str) -> NoMemory:
        plan, free = self.plan, self.free.device
        found = [] if plan is None or free is None else changes(plan, free)
        message = f"The {whose}'s memory is full."
        if plan is not None and free is not None:
            known = f"about {plan.estimate(**self.settled()).peak / GIB:.2f} GiB"
            message += f" This run was estimated at {known}, and {free / GIB:.2f} were free when it began."
        lines = ["Close other programs that use it. Then, in this order, each together with those above it:"]
        lines += [f"  {change.words}" for change in found]
        hint = "\n".join(lines if found else [lines[0].partition(" Then")[0]])
        return NoMemory(message, hint, {change.option: show(change.value) for change in found})

    def compare(self) -> None:
        """At the end: the real peaks beside the estimates, for the phases that there were."""
        peaks = dict(self._meter.peaks)
        if self.plan is None or TRAINING not in peaks:
            return
        if self._device.type == "cuda":  # it takes as many pictures at once as there is room for
            peaks.pop(VAE, None)
        expected = {name: self._estimate.taken(name) for name in peaks}
        amid = [SAVING] if SAVING in self._estimate.phases else []
        amid += [PREVIEWS] if self._shown else []
        expected[TRAINING] = max(map(self._estimate.taken, (TRAINING, *amid)))
        most = max(expected.values())
        whole = _beside(most, max(peaks.values()), "estimated {} GiB, really {}")
        parts = ", ".join(f"{name} " + _beside(expected[name], peaks[name], "{} and {}") for name in peaks)
        self._run.emit(Note(text=f"memory at the fullest: {whole} {self._meaning(most)}: {parts}"))

    def _meaning(self, expected: float) -> str:
        if self._device.type == "cuda":
            return "(torch's reserved memory; CUDA's own comes on top)"
        grown = _beside(
            expected + self._estimate.kept, self._meter.grown, "the process was to grow by {} and grew by {}"
        )
        if not self._meter.in_use:
            return f"({grown})"
        return f"(RAM in use; {grown}, with code that was loaded and memory kept for reuse)"

    def _hear(self, event: Event) -> None:
        if isinstance(event, Stage):
            self._shown |= event.name == _SHOWING
            if phase := _PHASES.get(event.name):
                self._meter.begin(phase)


def _beside(expected: float, real: float, words: str) -> str:
    digits = 2 if max(expected, real) >= GIB / 10 else 3
    return words.format(f"{expected / GIB:.{digits}f}", f"{real / GIB:.{digits}f}")
