"""Knows which run comes next: one GPU job at a time, in an order that lives in the run folders themselves.

A waiting run has a `queue.json`; nothing about the queue is kept in memory, so a restarted or a second
window goes on with the same one. Knows nothing of what the runs do.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zimage_gui.errors import UserError
from zimage_gui.events import STOP_FILE
from zimage_gui.jobs.launch import command_line, start
from zimage_gui.jobs.lock import Busy, exclusive
from zimage_gui.jobs.state import QUEUE_FILE, RunList, RunState, judge, marked
from zimage_gui.jobs.status import read_json, read_status, write_json, write_status

LOCK_FILE = ".queue.lock"
LOOK_EVERY = 1.0
_LOCK_WAIT = 5.0

ArgvOf = Callable[[Path, str], Sequence[str]]


class Queue:
    """The waiting runs of one `runs_dir`. Every method may be called from any process at any time."""

    def __init__(self, runs_dir: Path, argv_of: ArgvOf = command_line) -> None:
        self.runs_dir = runs_dir
        self._argv_of = argv_of
        self._runs = RunList(runs_dir)
        self._guard = threading.Lock()

    def add(self, folder: Path) -> None:
        """Put a run that was created but not started at the end of the queue. Raises UserError for any
        other.
        """
        state = judge(folder)
        if state is None or state.state != "queued" or folder.parent.resolve() != self.runs_dir.resolve():
            raise UserError.one(
                "run_folder", folder, "must be a new run of this runs folder", "Start a new run"
            )
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(self.runs_dir / LOCK_FILE, _LOCK_WAIT):
            orders = [order for waiting in self.waiting() if math.isfinite(order := _order(waiting))]
            write_json(folder / QUEUE_FILE, {"order": max(orders, default=0.0) + 1.0, "time": time.time()})

    def waiting(self) -> list[Path]:
        """Folders of the waiting runs, the next one first."""
        return sorted(marked(self.runs_dir, QUEUE_FILE), key=lambda folder: (_order(folder), folder.name))

    def move(self, folder: Path, position: int) -> None:
        """Let a waiting run be the `position`-th (0: next). One that has begun meanwhile stays as it is."""
        with exclusive(self.runs_dir / LOCK_FILE, _LOCK_WAIT):
            line = self.waiting()
            if folder in line:
                line.remove(folder)
                line.insert(max(0, position), folder)
                for order, waiting in enumerate(line, start=1):
                    write_json(waiting / QUEUE_FILE, {"order": float(order), "time": time.time()})

    def remove(self, folder: Path) -> bool:
        """Take a run out of the queue for good; its folder stays. False when it was not (or no longer)
        waiting.
        """
        with exclusive(self.runs_dir / LOCK_FILE, _LOCK_WAIT):
            if not (folder / QUEUE_FILE).is_file():
                return False
            withdraw(folder, QUEUE_FILE, "Removed from the queue.")
            return True

    def running(self) -> list[RunState]:
        """Runs that hold the GPU now, those started in a terminal too."""
        with self._guard:
            return self._runs.states(
                lambda state: state.state in ("running", "stopping") and state.status.gpu
            )

    def start_next(self) -> Path | None:
        """Start the first waiting run when none runs; its folder, or None when nothing was to be started.

        Of several processes asking at once one does it. Raises OSError when the process cannot be started.
        """
        if not self.waiting():
            return None
        try:
            with exclusive(self.runs_dir / LOCK_FILE):
                line = self.waiting()
                while line and (line[0] / STOP_FILE).exists():
                    withdraw(line.pop(0), QUEUE_FILE, "Stopped before it began.")
                if not line or self.running():
                    return None
                return self._start(line[0])
        except Busy:
            return None

    def _start(self, folder: Path) -> Path | None:
        state = judge(folder)
        if state is None or state.state != "queued":
            # Begun by hand in a terminal, or damaged: no longer ours to start.
            (folder / QUEUE_FILE).unlink(missing_ok=True)
            return None
        # In this order a death in between leaves a mark on a run that is no longer waiting: harmless.
        start(folder, self._argv_of(folder, state.status.command))
        (folder / QUEUE_FILE).unlink()
        return folder


class QueueRunner:
    """A thread that starts the next run whenever the GPU is free, as long as the window lives.

    `also` is done at every look too, for example `ResidentWorker.tend`; `report` gets what goes wrong, once.
    """

    def __init__(
        self,
        queue: Queue,
        also: Sequence[Callable[[], object]] = (),
        report: Callable[[str], None] = print,
    ) -> None:
        self.queue = queue
        self._chores = (queue.start_next, *also)
        self._report = report
        self._said: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="queue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop looking; what runs goes on, what waits stays in the queue."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_EVERY):
            for chore in self._chores:
                try:
                    chore()
                except Busy:
                    continue  # another window is at it
                except Exception as error:  # a thread that ends here would leave the queue standing unnoticed
                    self._say(f"The queue cannot go on: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._report(text)


def withdraw(folder: Path, mark: str, message: str) -> None:
    """End a run that has not begun: record it as stopped, then remove the file that marks it as waiting."""
    status = read_status(folder)
    if status is not None and status.pid is None:
        changes = {"outcome": "stopped", "ended": time.time(), "message": message}
        write_status(folder, status.model_copy(update=changes), durable=True)
    (folder / mark).unlink(missing_ok=True)


def _order(folder: Path) -> float:
    order = read_json(folder / QUEUE_FILE).get("order")
    return float(order) if isinstance(order, float | int) else math.inf
