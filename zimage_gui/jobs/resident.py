"""Knows the window's side of the resident generate worker: asking for pictures, cancelling, giving the GPU
back.

Every request is a run folder like any other, marked with a `request.json`; the worker takes the oldest
mark, becomes the run's process and removes it. Nothing else connects the two, so either may die and the
other goes on. Knows nothing of models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.config.schema import Options
from zimage_gui.errors import Interrupted, UserError
from zimage_gui.events import Stage, Warning
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.launch import ask_to_stop, start
from zimage_gui.jobs.lock import exclusive
from zimage_gui.jobs.processes import Identity, identity_in, is_alive, myself
from zimage_gui.jobs.queue import Queue, withdraw
from zimage_gui.jobs.state import LAUNCH_FILE, REQUEST_FILE, judge, marked
from zimage_gui.jobs.status import read_json, write_json

WORKER_FOLDER = ".worker"
WORKER_FILE = "worker.json"
BELL_FILE = "bell"
RELEASE_FILE = "release"
OWNER_FILE = "owner.json"
LOCK_FILE = "lock"
COMMAND = "generate"

IDLE_SECONDS = 600.0
LOCK_WAIT = 15.0
_OLD_ONE_LEAVES = 10.0
_REST_BEFORE_LEAVING = 60.0


@dataclass(frozen=True)
class WorkerState:
    """`busy` is the name of the run folder being worked on; `loaded` says that a model is held in memory."""

    alive: bool
    busy: str = ""
    loaded: bool = False
    pid: int | None = None


class ResidentWorker:
    """The generate worker of one runs folder, started when first needed."""

    def __init__(
        self, runs_dir: Path, idle_seconds: float = IDLE_SECONDS, extra_arguments: Sequence[str] = ()
    ) -> None:
        self.runs_dir = runs_dir
        self.folder = runs_dir / WORKER_FOLDER
        self._arguments = ["--idle_seconds", str(idle_seconds), *extra_arguments]
        self._queue = Queue(runs_dir)

    def submit(self, config: Options, name: str = "", *, beside_training: bool = False) -> Path:
        """Ask for pictures; the run folder in which they are reported.

        Raises UserError while another run holds the GPU, unless `beside_training`.
        """
        holder = None if beside_training else self._holder()
        if holder is not None:
            raise UserError.one(
                holder,
                "",
                "is running, and runs compute one after the other",
                "Wait for it or stop it; with memory to spare, choose to generate even while a training runs",
            )
        # Not marked as holding the GPU: a training run need not wait for it, the worker makes room.
        run = RunFolder.create(self.runs_dir, COMMAND, name, config)
        self.folder.mkdir(exist_ok=True)
        with exclusive(self.folder / LOCK_FILE, LOCK_WAIT):
            write_json(run.folder / REQUEST_FILE, {"time": time.time(), "beside": beside_training})
        self.tend()
        return run.folder

    def cancel(self, folder: Path) -> None:
        """Stop the making of a picture within one step; a request still waiting is withdrawn."""
        ask_to_stop(folder)
        self.folder.mkdir(exist_ok=True)
        with exclusive(self.folder / LOCK_FILE, LOCK_WAIT):
            if (folder / REQUEST_FILE).exists():
                withdraw(folder, REQUEST_FILE, "Cancelled before it began.")

    def tend(self) -> None:
        """See to it that waiting requests have a worker: call it every second or so. Raises OSError."""
        waiting = pending(self.runs_dir)
        if not waiting:
            return
        if self._holder() is not None and not any(
            read_json(run / REQUEST_FILE).get("beside") for run in waiting
        ):
            return
        self.folder.mkdir(exist_ok=True)
        with exclusive(self.folder / LOCK_FILE, LOCK_WAIT):
            self.adopt()
            if not self.state().alive:
                self._wait_for_the_old_one()
                (self.folder / RELEASE_FILE).unlink(missing_ok=True)
                argv = [
                    sys.executable,
                    "-m",
                    "zimage_gui.jobs.worker",
                    "--runs_dir",
                    str(self.runs_dir.absolute()),
                ]
                start(self.folder, [*argv, *self._arguments])
            (self.folder / BELL_FILE).write_text(str(time.time_ns()), encoding="utf-8")

    def adopt(self) -> None:
        """Tell the worker which window it serves: when that one is gone it leaves after a minute of rest."""
        me = myself()
        if self.folder.is_dir():
            write_json(
                self.folder / OWNER_FILE, {"pid": me.pid, "process_created": me.created, "host": me.host}
            )

    def release(self) -> None:
        """Ask the worker to give the GPU back; it finishes the picture in hand first."""
        if self.folder.is_dir():
            (self.folder / RELEASE_FILE).touch()

    def state(self) -> WorkerState:
        """What the worker is doing. A worker on its way out counts as gone."""
        record = read_json(self.folder / WORKER_FILE)
        worker = living_worker(self.folder)
        if worker is None or (record.get("leaving") and record.get("pid") == worker.pid):
            return WorkerState(alive=False)
        if record.get("pid") != worker.pid:
            return WorkerState(alive=True, pid=worker.pid)
        return WorkerState(True, str(record.get("busy") or ""), bool(record.get("loaded")), worker.pid)

    def _holder(self) -> str | None:
        """Name of a run that holds the GPU."""
        return next((state.folder.name for state in self._queue.running()), None)

    def _wait_for_the_old_one(self) -> None:
        end = time.monotonic() + _OLD_ONE_LEAVES
        while living_worker(self.folder) is not None and time.monotonic() < end:
            time.sleep(0.05)


def pending(runs_dir: Path) -> list[Path]:
    """Run folders that wait for the worker, oldest first."""
    return sorted(marked(runs_dir, REQUEST_FILE), key=lambda folder: (_asked_at(folder), folder.name))


def free_the_gpu(runs_dir: Path, run: RunFolder) -> None:
    """Have the resident worker give the GPU back before a run that needs it, and wait for that.

    The worker finishes the request in hand. Raises Interrupted when the run is asked to stop meanwhile. A
    worker that rests for a minute without leaving hangs: that is a warning, and it is no longer waited for.
    """
    worker = ResidentWorker(runs_dir)
    if living_worker(worker.folder) is None:
        return
    worker.release()
    run.emit(Stage(name="waiting", text="Waiting for the generate worker to give the graphics card back"))
    end = time.monotonic() + _REST_BEFORE_LEAVING
    while living_worker(worker.folder) is not None:
        if run.stop_requested():
            raise Interrupted("stopped before it began")
        if worker.state().busy:
            end = time.monotonic() + _REST_BEFORE_LEAVING
        if time.monotonic() > end:
            run.emit(Warning(text="The generate worker still holds the graphics card; memory may run short."))
            return
        time.sleep(0.1)


def living_worker(folder: Path) -> Identity | None:
    """The worker's process, also while it is starting or leaving."""
    for name in (WORKER_FILE, LAUNCH_FILE):
        found = identity_in(read_json(folder / name))
        if found is not None and is_alive(found):
            return found
    return None


def waits(folder: Path) -> bool:
    """Whether a marked run still waits: not begun, not ended, not being stopped."""
    state = judge(folder)
    return state is not None and state.state == "queued"


def _asked_at(folder: Path) -> float:
    asked = read_json(folder / REQUEST_FILE).get("time")
    return float(asked) if isinstance(asked, float | int) else 0.0
