"""Knows how to judge a run from its folder alone: queued, running, stopping, stopped, finished or failed.

The process decides, not what a file claims: a run is running only while the very process that wrote its
status lives. Only reads; knows nothing of the window, of starting or of the queue's order.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zimage_gui.errors import EXIT_USER
from zimage_gui.events import STOP_FILE, Event, Failed, Finished, from_line
from zimage_gui.jobs.console import CONSOLE_FILE, tail
from zimage_gui.jobs.folder import CONFIG_FILE, EVENTS_FILE
from zimage_gui.jobs.hints import RESUME
from zimage_gui.jobs.processes import Identity, boot_time, identity_in, is_alive
from zimage_gui.jobs.status import Status, read_json, read_status

LAUNCH_FILE = "launch.json"
EXIT_FILE = "exit.json"
QUEUE_FILE = "queue.json"
REQUEST_FILE = "request.json"
KILL_FILE = "killed"

State = Literal["queued", "running", "stopping", "stopped", "finished", "failed"]
ENDED: frozenset[State] = frozenset({"stopped", "finished", "failed"})

# A starter that dies between "I start it" and the child's first status leaves no process number behind.
START_GRACE = 15.0
SILENT_AFTER = 30.0
LAST_LINES = 40
_LAST_EVENT_BYTES = 16 * 1024
# Below this part of free memory at the last sign of life, the system's out-of-memory killer is the likely
# cause.
_MEMORY_TIGHT = 0.08


@dataclass(frozen=True)
class RunState:
    """What there is to show of a run without reading its events. Times in seconds since 1970.

    `silent` is the seconds since the last sign of life of a process that exists but does not report (None
    when it does); `console` holds the last lines printed by a failed run.
    """

    folder: Path
    state: State
    status: Status
    pid: int | None = None
    error_kind: str = ""
    message: str = ""
    hint: str = ""
    console: tuple[str, ...] = ()
    silent: float | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def judge(folder: Path) -> RunState | None:
    """The run's state now, None when the folder is no run folder (or is gone)."""
    status = read_status(folder)
    if status is None and not os.path.isfile(folder / CONFIG_FILE):  # false where one may not look
        return None
    if status is not None and status.outcome is not None:
        return _ended(folder, status)
    launch = read_json(folder / LAUNCH_FILE)
    process = status.process if status is not None and status.process is not None else identity_in(launch)
    if process is not None:
        return _of_process(folder, status, process)
    if status is None:
        return _dead(folder, _from_name(folder), "damaged", "The run's status.json cannot be read.")
    if launch and not _starter_gone(launch):
        return RunState(folder, "running", status)
    if not launch and (
        any((folder / mark).exists() for mark in (QUEUE_FILE, REQUEST_FILE))
        or time.time() - status.created < START_GRACE
    ):
        return RunState(folder, "stopped" if (folder / STOP_FILE).exists() else "queued", status)
    return _dead(
        folder, status, "never_started", "The run was never started: the program that should start it ended."
    )


def _of_process(folder: Path, status: Status | None, process: Identity) -> RunState:
    if is_alive(process, status.heartbeat if status else None):
        known = status or _from_name(folder)
        state: State = "stopping" if (folder / STOP_FILE).exists() else "running"
        age = time.time() - known.heartbeat if known.heartbeat is not None else 0.0
        return RunState(folder, state, known, pid=process.pid, silent=age if age > SILENT_AFTER else None)
    # It may have written its last words, or first ones, between our two looks.
    latest = read_status(folder) or status or _from_name(folder)
    if latest.outcome is not None:
        return _ended(folder, latest)
    if latest.process is not None and latest.process != process:
        return _of_process(folder, latest, latest.process)
    return _dead(folder, latest, "killed", "")


def _ended(folder: Path, status: Status) -> RunState:
    states: dict[str, State] = {"done": "finished", "stopped": "stopped", "failed": "failed"}
    state = states[status.outcome or "failed"]
    console = tuple(tail(folder / CONSOLE_FILE, LAST_LINES)) if state == "failed" else ()
    return RunState(
        folder, state, status, status.pid, status.error_kind, status.message, status.hint, console=console
    )


def _dead(folder: Path, status: Status, kind: str, message: str) -> RunState:
    """A run that ended without writing how: its last event may tell, else the cause is guessed."""
    last = last_event(folder / EVENTS_FILE)
    if isinstance(last, Finished):
        update = {"outcome": last.outcome, "results": tuple(last.results), "ended": last.time}
        return _ended(folder, status.model_copy(update=update))
    if isinstance(last, Failed):
        failure = {
            "outcome": "failed",
            "error_kind": last.error_kind,
            "message": last.message,
            "hint": last.hint,
        }
        return _ended(folder, status.model_copy(update=failure))
    console = tuple(tail(folder / CONSOLE_FILE, LAST_LINES))
    if (folder / KILL_FILE).exists():
        return RunState(folder, "stopped", status, message="Ended at once, without saving the last steps.")
    hint = RESUME
    if not message:
        record = read_json(folder / EXIT_FILE)
        message, hint = cause_of_death(status, record)
        if record.get("returncode") == EXIT_USER and console:
            # Refused before the run could begin: what was printed is the reason.
            kind, message, hint = "user", "\n".join(console), ""
    return RunState(folder, "failed", status, status.pid, kind, message, hint, console)


def cause_of_death(status: Status, exit_record: dict[str, Any]) -> tuple[str, str]:
    """A guess (message, hint) at why a process ended without a word."""
    code = exit_record.get("returncode")
    seen = status.heartbeat or status.created
    tight = bool(
        status.ram_free_gb is not None
        and status.ram_total_gb
        and status.ram_free_gb < _MEMORY_TIGHT * status.ram_total_gb
    )
    if tight and (code is None or code == -9):
        free, total = status.ram_free_gb or 0.0, status.ram_total_gb or 0.0
        return (
            f"The process was killed, most likely by the system because memory ran out: {free:.1f} of "
            f"{total:.0f} GB were free shortly before.",
            f"Close other programs, lower the loader workers, or make the swap or page file larger. {RESUME}",
        )
    if isinstance(code, int) and code < 0:
        return f"The process was ended by the signal {_signal_name(-code)}.", _signal_hint(-code)
    if isinstance(code, int) and code != 0:
        shown = f"{code}" if code < 256 else f"0x{code & 0xFFFFFFFF:08X}"
        return (
            f"The process ended with code {shown} before it could say why.",
            f"See the last lines. {RESUME}",
        )
    if 0 < seen < boot_time():
        return "The computer was restarted or lost power during the run.", RESUME
    return (
        "The process ended without a word: killed by hand, by the system for lack of memory, or by a "
        "crash of "
        "a driver.",
        f"See the last lines. {RESUME}",
    )


def last_event(path: Path) -> Event | None:
    """The last whole event of a log, read from its end, None when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LAST_EVENT_BYTES))
            lines = file.read(_LAST_EVENT_BYTES).split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return from_line(line)
        except ValueError:
            continue
    return None


class RunList:
    """All runs of a folder, newest first; what has ended is read from the disk once."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._ended: dict[str, RunState] = {}

    def states(self, wanted: Callable[[RunState], bool] = lambda state: True) -> list[RunState]:
        """The states of all runs for which `wanted` holds. A missing folder has none."""
        found: dict[str, RunState] = {}
        for folder in _folders(self.runs_dir):
            state = self._ended.get(folder.name) or judge(folder)
            if state is not None:
                found[folder.name] = state
        self._ended = {name: state for name, state in found.items() if state.status.outcome is not None}
        newest = sorted(
            found.values(), key=lambda state: (state.status.created, state.folder.name), reverse=True
        )
        return [state for state in newest if wanted(state)]


def marked(runs_dir: Path, mark: str) -> list[Path]:
    """Folders inside `runs_dir` that hold a file named `mark`, in no order. One that may not be read has
    none."""
    try:
        return [folder for folder in runs_dir.iterdir() if os.path.isfile(folder / mark)]
    except OSError:
        return []


def _folders(runs_dir: Path) -> list[Path]:
    try:
        return [path for path in runs_dir.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:
        return []


def _starter_gone(launch: dict[str, Any]) -> bool:
    began = launch.get("time")
    return not isinstance(began, float | int) or time.time() - began > START_GRACE


def _from_name(folder: Path) -> Status:
    """What the folder's own name says, for a run whose status is damaged."""
    date, _, rest = folder.name.partition("_")
    clock, _, rest = rest.partition("_")
    command, _, name = rest.partition("_")
    try:
        created = time.mktime(time.strptime(f"{date}_{clock}", "%Y-%m-%d_%H%M%S"))
    except ValueError:
        created = 0.0
    return Status(command=command, name=name, created=created)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _signal_hint(number: int) -> str:
    match _signal_name(number):
        case "SIGKILL":
            return f"By hand (kill -9), or by the system because memory ran out. {RESUME}"
        case "SIGSEGV" | "SIGBUS" | "SIGABRT" | "SIGILL" | "SIGFPE":
            return f"A crash inside a native library or driver; the last lines may name it. {RESUME}"
        case _:
            return RESUME
