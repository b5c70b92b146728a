"""Knows status.json, the one small file in which a run says who runs it and how far it is.

Only the process that runs a run writes it after the start. Knows nothing of engines, of the window or of
judging.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zimage_gui.files import atomic_write, temp_path
from zimage_gui.jobs.processes import Identity

STATUS_FILE = "status.json"
# A status is a few hundred bytes; anything larger than this is not one and is not read.
LARGEST_STATUS = 1 << 20

T = TypeVar("T")
Outcome = Literal["done", "stopped", "failed"]


class Status(BaseModel):
    """What a run says of itself. Times are seconds since 1970, memory is in GB of 2**30 bytes.

    `gpu` marks a run that needs the graphics card for itself: one at a time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    v: int = 1
    command: str = ""
    name: str = ""
    created: float = 0.0
    gpu: bool = False
    host: str = ""
    pid: int | None = None
    process_created: float = 0.0
    heartbeat: float | None = None
    phase: str = ""
    phase_text: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    total_steps: int = 0
    eta: float | None = None
    ram_free_gb: float | None = None
    ram_total_gb: float | None = None
    outcome: Outcome | None = None
    ended: float | None = None
    error_kind: str = ""
    message: str = ""
    hint: str = ""
    results: tuple[str, ...] = ()

    @property
    def begun(self) -> float:
        """When its work began: waiting in the queue is no part of how long it took."""
        return max(self.created, self.process_created)

    @property
    def process(self) -> Identity | None:
        """The process that runs it, None before it has begun."""
        return None if self.pid is None else Identity(self.pid, self.process_created, self.host)


def read_status(folder: Path) -> Status | None:
    """The folder's status, None when it is missing, half-written, foreign or damaged."""
    content = read_small(folder / STATUS_FILE)
    if content is None:
        return None
    try:
        return Status.model_validate_json(content)
    except ValidationError:
        return None


def write_status(folder: Path, status: Status, *, durable: bool = False) -> None:
    """Replace the folder's status in one piece; `durable` waits until it is on the disk."""
    replace_file(folder / STATUS_FILE, status.model_dump_json(indent=1).encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, empty when the file is missing, too large, half-written or no object."""
    content = read_small(path)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a small JSON file in one piece."""
    replace_file(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


def read_small(path: Path) -> bytes | None:
    """The bytes of a small file, None when it cannot be read or is larger than any file of ours."""

    def read() -> bytes | None:
        with open(path, "rb") as file:
            content = file.read(LARGEST_STATUS + 1)
        return content if len(content) <= LARGEST_STATUS else None

    try:
        return patiently(read)
    except OSError:
        return None


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part. Raises OSError."""
    if durable:
        atomic_write(path, content)
        return
    # A heartbeat every second must not wait for the disk; losing one at a power cut loses nothing.
    temporary = temp_path(path)
    try:
        temporary.write_bytes(content)
        patiently(lambda: os.replace(temporary, path))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def patiently(action: Callable[[], T]) -> T:
    """Do a file operation again for half a second while Windows refuses it because another has the file
    open.
    """
    for _attempt in range(10):
        try:
            return action()
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(0.05)
    return action()
