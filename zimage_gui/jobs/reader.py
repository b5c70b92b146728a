"""Knows how to follow a run's events cheaply and to hold what the panel draws. Only reads; draws nothing
itself.

Each poll reads only what was appended since the last one, so a run of 100,000 steps costs one long first
poll.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zimage_gui.events import (
    Checkpoint,
    Event,
    Failed,
    Finished,
    Follower,
    Note,
    Progress,
    Resumed,
    Sample,
    Stage,
    Step,
    Validation,
    Warning,
)
from zimage_gui.jobs.console import CONSOLE_FILE, tail
from zimage_gui.jobs.folder import EVENTS_FILE
from zimage_gui.jobs.state import RunState, judge

MOST_WARNINGS = 100
_MOST_READERS = 64


@dataclass
class Curves:
    """One value per optimiser step, in the order they were reported: `steps` ascend, loss may be NaN."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    loss: array[float] = field(default_factory=lambda: array("d"))
    loss_average: array[float] = field(default_factory=lambda: array("d"))
    lr: array[float] = field(default_factory=lambda: array("d"))

    def add(self, event: Step) -> None:
        """Append a step; one at or below the last (a resumed run) replaces everything from there on."""
        while self.steps and self.steps[-1] >= event.step:
            for column in (self.steps, self.loss, self.loss_average, self.lr):
                column.pop()
        self.steps.append(event.step)
        self.loss.append(event.loss)
        self.loss_average.append(event.loss_average)
        self.lr.append(event.lr)

    def until(self, step: int) -> Curves:
        """The same up to that step."""
        count = bisect_right(self.steps, step)
        return Curves(self.steps[:count], self.loss[:count], self.loss_average[:count], self.lr[:count])

    def copy(self) -> Curves:
        """The same values in arrays of their own; some milliseconds for a million steps."""
        return Curves(self.steps[:], self.loss[:], self.loss_average[:], self.lr[:])

    def thinned(self, most: int = 1000) -> Curves:
        """At most about `most` points, with the lowest and the highest loss of every stretch kept.

        Single outliers therefore stay visible; the last step is always among the points.
        """
        count = len(self.steps)
        if count <= most:
            kept: Sequence[int] = range(count)
        else:
            width = math.ceil(2 * count / most)
            kept = sorted(
                {index for start in range(0, count, width) for index in self._extremes(start, width)}
                | {count - 1}
            )
        return Curves(*(array(column.typecode, [column[i] for i in kept]) for column in self._columns()))  # type: ignore[arg-type]

    def _columns(self) -> tuple[array[int] | array[float], ...]:
        return self.steps, self.loss, self.loss_average, self.lr

    def _extremes(self, start: int, width: int) -> tuple[int, int]:
        indices = range(start, min(start + width, len(self.steps)))
        odd = next((index for index in indices if not math.isfinite(self.loss[index])), None)
        if odd is not None:
            return odd, odd
        return min(indices, key=self.loss.__getitem__), max(indices, key=self.loss.__getitem__)


@dataclass
class RunView:
    """All that the panel shows of a run. `state` is None once the folder is gone."""

    folder: Path
    state: RunState | None = None
    curves: Curves = field(default_factory=Curves)
    step: Step | None = None
    stage: Stage | None = None
    progress: Progress | None = None
    validations: list[Validation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: Failed | None = None
    finished: Finished | None = None
    peak_vram_gb: float | None = None
    broken_lines: int = 0
    version: int = 0

    def copy(self) -> RunView:
        """A view that later events do not change."""
        return replace(
            self,
            curves=self.curves.copy(),
            validations=self.validations.copy(),
            samples=self.samples.copy(),
            checkpoints=self.checkpoints.copy(),
            warnings=self.warnings.copy(),
            notes=self.notes.copy(),
        )


class RunReader:
    """Follows one run; all pages of a window may share one reader and poll it from any thread."""

    def __init__(self, folder: Path) -> None:
        self._follower = Follower(folder / EVENTS_FILE)
        self._guard = threading.Lock()
        self._view = RunView(folder)
        self._shown = self._view.copy()

    def poll(self) -> RunView:
        """A copy of what is known after reading what is new. `version` grows exactly when events were added.

        Raises OSError when the disk cannot be read.
        """
        with self._guard:
            # The state first: events written before the end are then never missed at the end.
            state = judge(self._view.folder)
            before = self._follower.offset
            events = self._follower.read()
            if self._follower.offset < before:
                self._view = RunView(self._view.folder, version=self._view.version)
            for event in events:
                _absorb(self._view, event)
            self._view.version += len(events)
            if self._view.version != self._shown.version:
                self._shown = self._view.copy()
            self._shown = replace(self._shown, state=state, broken_lines=self._follower.broken)
            return self._shown

    def log(self, lines: int = 200) -> list[str]:
        """The last lines of the console as a terminal would show them."""
        return tail(self._view.folder / CONSOLE_FILE, lines)


class Readers:
    """The readers of a window, one per run, shared by all its pages; the least used are forgotten."""

    def __init__(self) -> None:
        self._readers: dict[Path, RunReader] = {}
        self._guard = threading.Lock()

    def of(self, folder: Path) -> RunReader:
        with self._guard:
            reader = self._readers.pop(folder, None) or RunReader(folder)
            self._readers[folder] = reader
            while len(self._readers) > _MOST_READERS:
                del self._readers[next(iter(self._readers))]
            return reader


def _begin_with(view: RunView, resumed: Resumed) -> None:
    """Put what the earlier run learned before this one's curves; nothing when its folder is gone."""
    name = Path(resumed.run).name
    # names begin with their time: an earlier one cannot lead back here
    if not name or name.startswith(".") or name >= view.folder.name or len(view.curves.steps):
        return
    earlier = RunView(view.folder.parent / name)
    follower = Follower(earlier.folder / EVENTS_FILE)
    try:
        while events := follower.read():
            for event in events:
                _absorb(earlier, event)
    except OSError:
        return
    view.curves = earlier.curves.until(resumed.step)
    view.validations = [one for one in earlier.validations if one.step <= resumed.step]


def _absorb(view: RunView, event: Event) -> None:
    match event:
        case Step():
            view.step = event
            view.curves.add(event)
            if event.vram_gb is not None:
                view.peak_vram_gb = max(event.vram_gb, view.peak_vram_gb or 0.0)
        case Resumed():
            _begin_with(view, event)
        case Validation():  # one of a resumed run takes the place of those from its step on
            view.validations = [one for one in view.validations if one.step < event.step] + [event]
        case Stage():
            view.stage, view.progress = event, None
        case Progress():
            view.progress = event
        case Sample():
            view.samples.append(event)
        case Checkpoint():
            view.checkpoints.append(event)
        case Warning():
            view.warnings.append(event.text)
            del view.warnings[:-MOST_WARNINGS]
        case Note():
            view.notes.append(event.text)
            del view.notes[:-MOST_WARNINGS]
        case Failed():
            view.failed = event
        case Finished():
            view.finished = event
