"""Carries out a plan: streams every tensor into the file or folder, reads it back, then lets it appear.

Knows formats of files and the run's progress. Must not know options or layouts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zimage_gui.burnpack import BpkEntry, fresh_param_id, is_bpk, read_bpk_header, write_bpk
from zimage_gui.engine.convert_model_numbers import Changes, Numbers
from zimage_gui.engine.convert_model_output import whole
from zimage_gui.engine.convert_model_plan import OutTensor, Plan, index_of
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.errors import Interrupted
from zimage_gui.events import Run, Stage
from zimage_gui.files import atomic_write, sweep_temp_files
from zimage_gui.model.streaming import TensorReader, keep_memory
from zimage_gui.model.tensor_files import write_raw

_MB = 1_000_000
_WORTH_TELLING = 100 * _MB
"""Bytes from which progress is shown."""


class Told:
    """Counts bytes into the run's progress, and heeds a stop."""

    def __init__(self, run: Run, name: str, size: int) -> None:
        run.emit(Stage(name="write", text=f"Writing {name} and reading it back"))
        self._run, self._done, self._shown = run, 0, 0
        self._meter = Meter(run, size // _MB, "MB") if size >= _WORTH_TELLING else None

    def add(self, count: int) -> None:
        if self._run.stop_requested():
            raise Interrupted("stopped while writing a model")
        self._done += count
        if self._meter is not None and self._done // _MB > self._shown:
            self._shown = self._done // _MB
            self._meter.at(self._shown)


def write_plan(plan: Plan, run: Run, changes: Changes | None = None) -> list[Path]:
    """Writes what the plan says with the changes of LoRAs in it; returns the path that was promised.

    Raises UserError when the disk or a number format refuses, and Interrupted when the run is stopped; then
    nothing is left behind.
    """
    sweep_temp_files(plan.output.parent)
    told = Told(run, plan.output.name, plan.bytes)
    keep_memory()
    with (
        _one_thread(),
        whole(plan.output, plan.folder) as temp,
        TensorReader(plan.source.checkpoint, dict(plan.source.parts.scales)) as reader,
    ):
        numbers = Numbers(plan.source, reader, changes or {})
        for name, tensors in plan.files.items():
            _write_file(temp / name, plan, tensors, numbers, told)
        if plan.settings is not None:
            _write_settings(temp, plan)
    return [plan.output]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The chunks are too small to share: threads that wait for each other cost more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_file(path: Path, plan: Plan, tensors: Sequence[OutTensor], numbers: Numbers, told: Told) -> None:
    entries = numbers.entries(tensors)
    if plan.layout != "burn":
        write_raw(path, entries, plan.metadata, told.add)
        return
    ids = _param_ids(plan)
    records = [
        BpkEntry(e.name, e.dtype, e.shape, e.chunks, ids.get(e.name, fresh_param_id(e.name))) for e in entries
    ]
    write_bpk(path, records, plan.metadata, on_bytes=told.add)


def _param_ids(plan: Plan) -> dict[str, int]:
    """A record that comes from a .bpk keeps its id."""
    file = plan.source.checkpoint.files[0]
    if not is_bpk(file):
        return {}
    found = read_bpk_header(file).tensors
    return {name: one.param_id for name, one in found.items() if one.param_id is not None}


def _write_settings(folder: Path, plan: Plan) -> None:
    assert plan.settings is not None  # asked by the caller
    atomic_write(folder / "config.json", _json(plan.settings))
    index = index_of(plan)
    if index is not None:
        atomic_write(folder / index[0], index[1])


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(table), indent=2, ensure_ascii=False) + "\n").encode("utf-8")
