"""What all tabs of one window share: the runs folder, the queue, the readers, the drafts and the picture
cache.

Knows jobs and folders. Knows nothing of gradio: a tab asks the desk, a test can ask it too. Holds no state of
a page; two browsers see the same desk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.config.app import GuiConfig
from zimage_gui.config.schema import Options
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.launch import ask_to_stop, command_line, start
from zimage_gui.jobs.queue import Queue, QueueRunner
from zimage_gui.jobs.reader import Readers
from zimage_gui.jobs.readings import Meter
from zimage_gui.jobs.reconcile import Reconciled, reconcile
from zimage_gui.jobs.resident import COMMAND, ResidentWorker
from zimage_gui.jobs.state import RunList, RunState
from zimage_gui.ui.drafts import Drafts
from zimage_gui.ui.folders import default_roots
from zimage_gui.ui.pictures import PictureCache

TEND_SECONDS = 1.0
STATES_KEPT = 0.4
WINDOW_FOLDER = (
    ".window"  # under the runs folder: drafts, thumbnails; the dot keeps it out of the list of runs
)


@dataclass(frozen=True)
class Project:
    """The built-in demo project that the window opened on, with the field contents it suggests per form."""

    folder: Path
    fields: dict[str, dict[str, str | bool | None]]


class Desk:
    """One per window process. `close` ends the window's own threads; runs go on."""

    def __init__(self, config: GuiConfig, working: Path | None = None) -> None:
        self.config = config
        self.working = (working or Path.cwd()).resolve()
        self.runs_dir = (self.working / config.runs_dir).resolve()
        self.presets_dir = (self.working / config.presets_dir).resolve()
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        self.found: Reconciled = reconcile(self.runs_dir)
        self.drafts = Drafts(self.runs_dir / WINDOW_FOLDER / "drafts")
        self.pictures = PictureCache(self.runs_dir / WINDOW_FOLDER / "pictures")
        self.pictures.sweep()
        self.queue = Queue(self.runs_dir)
        self.runner = QueueRunner(self.queue)
        self.worker = ResidentWorker(self.runs_dir)
        self._closing = threading.Event()
        self._guard = threading.Lock()
        self._states: list[RunState] = []
        self._judged = float("-inf")
        self._tender = threading.Thread(target=self._tend, name="generate-worker", daemon=True)
        self.readers = Readers()
        self.runs = RunList(self.runs_dir)
        self.meter = Meter(self.runs_dir)
        self.roots = default_roots(self.working)
        self.project: Project | None = None

    def start(self) -> None:
        """Begin to start waiting runs, and to see that waiting pictures have a worker."""
        self.worker.adopt()
        self.runner.start()
        self._tender.start()

    def close(self) -> None:
        self._closing.set()
        if self._tender.is_alive():
            self._tender.join()
            self.runner.close()

    def _tend(self) -> None:
        said = ""
        while not self._closing.wait(TEND_SECONDS):
            try:
                self.worker.tend()
                said = ""
            except OSError as error:
                if str(error) != said:
                    said = str(error)
                    print(f"The generate worker cannot be started: {error}")

    def submit(self, config: Options, name: str) -> Path:
        """Make a run of a validated config and put it into the queue; it begins at once when the GPU
        is free."""
        run = RunFolder.create(self.runs_dir, config.command, name, config, gpu=True)
        self.queue.add(run.folder)
        self.queue.start_next()
        return run.folder

    def run_beside(self, config: Options, name: str) -> Path:
        """Start a run that needs no GPU at once, beside whatever else is running. Raises OSError."""
        run = RunFolder.create(self.runs_dir, config.command, name, config)
        start(run.folder, command_line(run.folder, config.command))
        return run.folder

    def generate(self, config: Options, *, beside_training: bool) -> Path:
        """Ask the resident worker for pictures. Raises UserError while a training holds the GPU."""
        return self.worker.submit(config, beside_training=beside_training)

    def stop(self, folder: Path) -> None:
        """Ask a run to save and stop; a picture that is being made is cancelled."""
        state = next((one for one in self.states() if one.folder == folder), None)
        if state is not None and state.status.command == COMMAND:
            self.worker.cancel(folder)
        else:
            ask_to_stop(folder)

    def dequeue(self, folder: Path) -> None:
        """Take a waiting run out of the queue, or withdraw a waiting picture."""
        if not self.queue.remove(folder):
            self.stop(folder)

    def states(self, wanted: Callable[[RunState], bool] = lambda state: True) -> list[RunState]:
        """Runs, newest first; judged at most twice a second, however many panels of however many pages
        ask."""
        with self._guard:
            now = time.monotonic()
            if now - self._judged > STATES_KEPT:
                self._states, self._judged = self.runs.states(), now
            return [state for state in self._states if wanted(state)]

    def of_command(self, *commands: str) -> list[RunState]:
        return self.states(lambda state: state.status.command in commands)

    def folder_of(self, name: str) -> Path | None:
        """The run folder of a name that came from a page; None unless it is a direct child of the runs
        folder."""
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            return None
        folder = self.runs_dir / name
        return folder if folder.is_dir() and folder.resolve().parent == self.runs_dir else None
