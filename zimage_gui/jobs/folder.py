"""Knows the folder that a run is: its name, its files, its heartbeat, and how it is asked to stop.

Knows nothing of what the run does, of other runs, or of how its process was started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from zimage_gui.config.schema import Options
from zimage_gui.config.toml_io import dump
from zimage_gui.errors import UserError
from zimage_gui.events import (
    STOP_FILE,
    Checkpoint,
    Event,
    EventLog,
    Failed,
    Finished,
    Note,
    Progress,
    Stage,
    Started,
    Step,
)
from zimage_gui.files import temp_path
from zimage_gui.jobs.processes import is_alive, myself
from zimage_gui.jobs.redact import redact
from zimage_gui.jobs.status import Outcome, Status, patiently, read_status, write_json, write_status

CONFIG_FILE = "config.toml"
EVENTS_FILE = "events.jsonl"
RESULTS_FILE = "results.json"
SUBFOLDERS = ("samples", "checkpoints", "state")

HEARTBEAT_EVERY = 1.0
LONGEST_NAME = 64
_GB = 2.0**30
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

Listener = Callable[[Event], None]


class RunFolder:
    """One run on disk. `create` or `open` it; `begin` makes the calling process its owner; `end` closes it.

    Implements `zimage_gui.events.Run`. Its methods may be called from any thread.
    """

    def __init__(self, folder: Path, status: Status) -> None:
        self.folder = folder
        self._status = status
        self._guard = threading.RLock()
        self._log: EventLog | None = None
        self._recording = False
        self._listeners: tuple[Listener, ...] = ()
        self._asked_elsewhere: Callable[[], bool] = bool
        self._stop_said = False
        self._checkpoints: list[str] = []
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None
        self._write_failed = False

    @classmethod
    def create(
        cls, runs_dir: Path, command: str, name: str, config: Options | str, *, gpu: bool = False
    ) -> RunFolder:
        """Make `runs_dir/2026-11-21_153012_command_name/` with its resolved config, whole or not at all.

        `config` is the frozen config or its TOML text. Raises UserError when the folder cannot be made.
        """
        text = config if isinstance(config, str) else dump(config)
        created = time.time()
        stem = "_".join(filter(None, (time.strftime("%Y-%m-%d_%H%M%S"), slug(command), slug(name))))
        status = Status(command=command, name=name, created=created, gpu=gpu)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            folder = _place(runs_dir, stem, text, status)
        except OSError as error:
            rule = f"must be a folder that can be written to ({error.strerror or error})"
            raise UserError.one(
                "runs_dir", runs_dir, rule, "Choose another folder with --runs_dir"
            ) from error
        return cls(folder, status)

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """An existing run folder. Raises UserError when it is none, or when a living process works in it."""
        status = read_status(folder)
        if status is None or not (folder / CONFIG_FILE).is_file():
            raise UserError.one(
                "run_folder",
                folder,
                "must be a run folder (with config.toml and status.json)",
                "Start a new run",
            )
        if status.outcome is not None:
            raise UserError.one("run_folder", folder, "is that of a run that has ended", "Start a new run")
        owner = status.process
        if owner is not None and owner.pid != os.getpid() and is_alive(owner, status.heartbeat):
            raise UserError.one(
                "run_folder", folder, f"is in use by process {owner.pid}", "Wait for it, or start a new run"
            )
        return cls(folder, status)

    @property
    def status(self) -> Status:
        """What the folder's status.json says or is about to say."""
        return self._status

    def begin(self, listeners: Sequence[Listener] = (), asked_elsewhere: Callable[[], bool] = bool) -> None:
        """Become the run's process: heartbeat, event log, the Started event.

        `asked_elsewhere()` is one more way to ask for a stop, for example a signal.
        """
        me = myself()
        with self._guard:
            self._listeners, self._asked_elsewhere = tuple(listeners), asked_elsewhere
            self._recording = True
            self._update(
                pid=me.pid, process_created=me.created, host=me.host, phase="starting", phase_text="Starting",
                outcome=None, ended=None, error_kind="", message="", hint="", results=(),
            )  # fmt: skip
            self._beat()
        self._heart = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._heart.start()
        self.emit(
            Started(command=self._status.command, config_path=str(self.folder / CONFIG_FILE), pid=os.getpid())
        )

    def emit(self, event: Event) -> None:
        """Append the event to events.jsonl, without secrets, and pass it on to the listeners.

        A full disk loses events, never the run: that is said once on the console.
        """
        event = _without_secrets(event)
        with self._guard:
            self._absorb(event)
            if self._recording:
                self._record(event)
        for listener in self._listeners:
            listener(event)

    def _record(self, event: Event) -> None:
        try:
            if self._log is None:
                self._log = EventLog(self.folder / EVENTS_FILE)
            self._log.append(event)
        except (OSError, ValueError) as error:
            # Opened anew next time: half a line may stand there, and Python would write its rest again.
            self._close_log()
            self._complain(f"events are not being recorded: {error}")

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            with contextlib.suppress(OSError):
                log.close()

    def stop_requested(self) -> bool:
        """Whether to finish the step, save and end: a `stop` file, a signal or another asked for it."""
        asked = self._asked_elsewhere() or (self.folder / STOP_FILE).exists()
        if asked and not self._stop_said:
            self._stop_said = True
            self.emit(Note(text="A stop was asked for: finishing the step and saving"))
        return asked

    @property
    def stop_noticed(self) -> bool:
        """Whether the run has seen that it should stop."""
        return self._stop_said

    def end(self, outcome: Outcome, results: Sequence[Path] = (), failed: Failed | None = None) -> None:
        """Write how it ended, durably and once: the last event, results.json (absolute paths), status."""
        with self._guard:
            if self._closing.is_set():
                return
            self._closing.set()
        paths = [str(Path(result).absolute()) for result in results] or list(dict.fromkeys(self._checkpoints))
        if failed is not None:
            self.emit(failed)
        elif outcome != "failed":
            self.emit(Finished(outcome=outcome, results=paths))
        if self._heart is not None:
            self._heart.join()
        with self._guard:
            self._update(outcome=outcome, results=tuple(paths), ended=time.time(), heartbeat=time.time())
            try:
                write_json(self.folder / RESULTS_FILE, {"results": paths})
                write_status(self.folder, self._status, durable=True)
            except OSError as error:
                self._complain(f"how the run ended could not be written: {error}")
            self._recording = False
            self._close_log()

    def _keep_beating(self) -> None:
        while not self._closing.wait(HEARTBEAT_EVERY):
            with self._guard:
                if not self._closing.is_set():
                    self._beat()

    def _beat(self) -> None:
        memory = psutil.virtual_memory()
        self._update(
            heartbeat=time.time(), ram_free_gb=memory.available / _GB, ram_total_gb=memory.total / _GB
        )
        try:
            write_status(self.folder, self._status)
        except OSError as error:
            self._complain(f"status.json cannot be written: {error}")

    def _absorb(self, event: Event) -> None:
        """Keep in the status what the list of runs shows of an event."""
        match event:
            case Stage():
                self._update(phase=event.name, phase_text=event.text, done=0, total=0, eta=None)
            case Progress():
                self._update(done=event.done, total=event.total, eta=event.eta)
            case Step():
                self._update(step=event.step, total_steps=event.total_steps)
            case Failed():
                self._update(error_kind=event.error_kind, message=event.message, hint=event.hint)
            case Checkpoint():
                self._checkpoints.append(str(Path(event.path).absolute()))

    def _update(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)

    def _complain(self, text: str) -> None:
        if not self._write_failed:
            self._write_failed = True
            print(f"Warning: {self.folder}: {text}", file=sys.stderr)


def slug(text: str) -> str:
    """A piece of a folder name that every file system takes: letters of any script, digits and `-._`.

    At most 64 characters, no leading or trailing dot, no name that Windows reserves; empty when nothing is
    left.
    """
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in normal)
    short = (
        kept[:LONGEST_NAME]
        .encode("utf-8", "ignore")[: 2 * LONGEST_NAME]
        .decode("utf-8", "ignore")
        .strip("-._ ")
    )
    return f"{short}-" if short.split(".")[0].casefold() in _RESERVED else short


def _place(runs_dir: Path, stem: str, config: str, status: Status) -> Path:
    """Fill a folder beside its place, then move it there under the first free name."""
    building = temp_path(runs_dir / stem)
    building.mkdir()
    try:
        (building / CONFIG_FILE).write_text(config, encoding="utf-8", newline="\n")
        for name in SUBFOLDERS:
            (building / name).mkdir()
        write_status(building, status, durable=True)
        number = 1
        while True:
            folder = runs_dir / (stem if number == 1 else f"{stem}-{number}")
            if not folder.exists():
                try:
                    return patiently(partial(building.rename, folder))
                except OSError:
                    # Another process took the name between the look and the move: it holds files, so the
                    # move fails.
                    if not folder.exists():
                        raise
            number += 1
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _without_secrets(event: Event) -> Event:
    changes = {
        name: clean
        for name, value in event.__dict__.items()
        if isinstance(value, str) and (clean := redact(value)) != value
    }
    return event.model_copy(update=changes) if changes else event
