"""Knows how to put the run folders in order when a window or a run starts: none stays "running" that is not.

Living runs, whoever started them, are left alone and shown. Knows nothing of the window.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.files import sweep_temp_files
from zimage_gui.jobs.folder import SUBFOLDERS
from zimage_gui.jobs.lock import Busy, exclusive
from zimage_gui.jobs.processes import host_name
from zimage_gui.jobs.queue import LOCK_FILE
from zimage_gui.jobs.resident import WORKER_FOLDER
from zimage_gui.jobs.state import RunList, RunState, judge
from zimage_gui.jobs.status import write_status


@dataclass(frozen=True)
class Reconciled:
    """What was found: runs alive, runs waiting, and runs found dead and now recorded as such."""

    alive: tuple[RunState, ...]
    queued: tuple[RunState, ...]
    died: tuple[RunState, ...]


def reconcile(runs_dir: Path) -> Reconciled:
    """Judge every run, record the end of the dead ones, sweep what killed processes left behind."""
    for place in (runs_dir, runs_dir / WORKER_FOLDER):
        sweep_temp_files(place)
    states = RunList(runs_dir).states()
    died = [state for state in states if state.ended and state.status.outcome is None]
    if died:
        try:
            with exclusive(runs_dir / LOCK_FILE, wait=5.0):
                died = [state for state in died if _record(state)]
        except Busy:
            # Another window is starting a run; the dead are judged dead anyway, only not yet written down.
            pass
    return Reconciled(
        alive=tuple(state for state in states if state.state in ("running", "stopping")),
        queued=tuple(state for state in states if state.state == "queued"),
        died=tuple(died),
    )


def _record(state: RunState) -> bool:
    """Write the judgement into the run's status; False when the run turned out to have an end or a life of
    its own.
    """
    latest = judge(state.folder)
    if state.status.host not in ("", host_name()):
        # Another machine's run may only have slept; that machine's window will know.
        return False
    if latest is None or not latest.ended or latest.status.outcome is not None:
        return False
    for place in (state.folder, *(state.folder / name for name in SUBFOLDERS)):
        sweep_temp_files(place)
    outcomes = {"stopped": "stopped", "failed": "failed", "finished": "done"}
    changes = {
        "outcome": outcomes[latest.state],
        "ended": latest.status.heartbeat or time.time(),
        "error_kind": latest.error_kind,
        "message": latest.message,
        "hint": latest.hint,
    }
    write_status(state.folder, latest.status.model_copy(update=changes), durable=True)
    return True
