"""What a run reports while it works. This module knows the events and the file they are kept in;
it must not know what work is done, nor who shows it.

The file (`events.jsonl`) holds one JSON object per line and is only ever appended to, so that a reader
that keeps a byte offset follows it across restarts of either side.
"""

from __future__ import annotations

import functools
import time as clock
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

STEP_PICTURE = "step.png"
"""In a run's folder: the picture in the making, replaced at each step."""
STOP_FILE = "stop"
"""Created in a run's folder to ask that it finishes its step, saves and ends."""
SKIP_FILE = "skip"
"""Created in a run's folder to ask that the picture in the making is left and the next one begun."""

_LONGEST_READ = 16 * 1024 * 1024


class _Event(BaseModel):
    # Unknown fields are dropped, not refused: an older window may follow a newer run.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", defer_build=True)

    v: int = 1
    time: float = Field(default_factory=clock.time, description="seconds since 1970, UTC")


class Started(_Event):
    kind: Literal["started"] = "started"
    command: str
    config_path: str = ""
    pid: int


class Stage(_Event):
    """A new phase has begun. `name` is a fixed word for programs, `text` a sentence for people."""

    kind: Literal["stage"] = "stage"
    name: str
    text: str


class Progress(_Event):
    """done of total `unit`s (total 0: unknown); rate in units per second; eta in seconds."""

    kind: Literal["progress"] = "progress"
    done: int
    total: int
    unit: str = "items"
    rate: float | None = None
    eta: float | None = None


class Step(_Event):
    """One optimiser update. seconds: wall time of this step; memory in GiB; layers_held: how many a bound on
    their norm scaled down."""

    kind: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    loss_average: float
    lr: float
    grad_norm: float | None = None
    seconds: float
    samples_per_second: float
    vram_gb: float | None = None
    ram_gb: float | None = None
    layers_held: int | None = None


class Resumed(_Event):
    """The run goes on behind `step` of another one. run: the name of that one's folder, which may be gone."""

    kind: Literal["resumed"] = "resumed"
    run: str
    step: int


class Validation(_Event):
    """The mean loss of the held-out pictures, without weights, at fixed noise levels and noise."""

    kind: Literal["validation"] = "validation"
    step: int
    epoch: int
    loss: float
    pictures: int


class Sample(_Event):
    """A picture was written. adapter: whether a training adapter was "on" or "off", None without one."""

    kind: Literal["sample"] = "sample"
    path: str
    step: int
    prompt: str
    seed: int
    index: int = 0
    adapter: str | None = None


class Checkpoint(_Event):
    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    step: int
    epoch: int
    what: Literal["lora", "model", "state"]


class Note(_Event):
    """Plain information."""

    kind: Literal["note"] = "note"
    text: str


class Warning(_Event):
    """Something the user should know though the run goes on."""

    kind: Literal["warning"] = "warning"
    text: str


class Failed(_Event):
    """The run ended by an error. error_kind: "user" or the exception's class; hint: the way out; settings:
    options with values that are worth a try."""

    kind: Literal["failed"] = "failed"
    error_kind: str
    message: str
    hint: str = ""
    settings: dict[str, str] = {}


class Finished(_Event):
    kind: Literal["finished"] = "finished"
    outcome: Literal["done", "stopped"]
    results: list[str] = []


Event = Annotated[
    Started
    | Stage
    | Progress
    | Resumed
    | Step
    | Validation
    | Sample
    | Checkpoint
    | Note
    | Warning
    | Failed
    | Finished,
    Field(discriminator="kind"),
]


@functools.cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def to_line(event: Event) -> bytes:
    """One JSON line, newline included. What UTF-8 cannot hold (half a surrogate pair, a file name that is no
    text) is written as its escape."""
    try:
        text = event.model_dump_json()
    except PydanticSerializationError:
        text = type(event).model_validate(_encodable(event.model_dump())).model_dump_json()
    return text.encode("utf-8") + b"\n"


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return {key: _encodable(item) for key, item in value.items()} if isinstance(value, dict) else value


def from_line(line: bytes) -> Event:
    """Raises ValueError for anything that is not one of our events."""
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        raise ValueError(str(error)) from error


class Run(Protocol):
    """What engine code sees of its run: a folder to write in, a place to report to, and whether to stop."""

    @property
    def folder(self) -> Path: ...

    def emit(self, event: Event) -> None: ...

    def stop_requested(self) -> bool: ...


class NullRun:
    """A run for library use and tests: keeps its events in a list and writes nothing by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.stop = False

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def stop_requested(self) -> bool:
        return self.stop


class EventLog:
    """Appends events to a file, each line flushed: a reader sees it at once and a kill loses at most one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        if self._file.tell() and not _ends_with_newline(path):
            # A killed process left half a line; the next event must not be glued to it.
            self._file.write(b"\n")

    def append(self, event: Event) -> None:
        self._file.write(to_line(event))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


class Follower:
    """Reads what was appended since the last call. Broken lines are skipped and counted in `broken`."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.broken = 0

    def read(self) -> list[Event]:
        """All whole lines after `offset`; empty while the file does not exist."""
        events: list[Event] = []
        for line in self._new_lines():
            if not line.strip():
                continue
            try:
                events.append(from_line(line))
            except ValueError:
                self.broken += 1
        return events

    def _new_lines(self) -> Sequence[bytes]:
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, 2)
                if self.offset > size:  # the file was replaced by a shorter one
                    self.offset = 0
                file.seek(self.offset)
                chunk = file.read(_LONGEST_READ)
        except FileNotFoundError:
            return ()
        end = chunk.rfind(b"\n") + 1
        if end == 0 and len(chunk) == _LONGEST_READ:
            # No event of ours is that long: step over the rubbish instead of reading it for ever.
            self.offset += len(chunk)
            self.broken += 1
            return ()
        self.offset += end
        return chunk[:end].split(b"\n")


def follow(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events of the whole lines after the byte `offset`, and the offset to ask with next time."""
    follower = Follower(path, offset)
    events = follower.read()
    return events, follower.offset
