"""Knows the resident worker's own loop: take a request, have it done, wait; leave when asked, idle or
orphaned.

The model is held by the maker, an object named by an entry and imported here, in a process of its own.
Started as `python -m zimage_gui.jobs.worker --runs_dir DIR`; it speaks through files only, see `resident`.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from zimage_gui.config.idle import tell_idle
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.toml_io import load
from zimage_gui.errors import EXIT_DONE, EXIT_FAILED
from zimage_gui.jobs.console import recorded
from zimage_gui.jobs.folder import CONFIG_FILE, RunFolder
from zimage_gui.jobs.here import execute, heading
from zimage_gui.jobs.lock import Busy, exclusive
from zimage_gui.jobs.processes import identity_in, is_alive, leave_a_core_free, myself
from zimage_gui.jobs.queue import withdraw
from zimage_gui.jobs.resident import (
    BELL_FILE,
    COMMAND,
    IDLE_SECONDS,
    LOCK_FILE,
    LOCK_WAIT,
    OWNER_FILE,
    RELEASE_FILE,
    WORKER_FILE,
    WORKER_FOLDER,
    pending,
    waits,
)
from zimage_gui.jobs.state import REQUEST_FILE
from zimage_gui.jobs.status import read_json, write_json

MAKER = "zimage_gui.engine.generate:Resident"

LOOK_EVERY = 0.1
# Without a ring of the bell the folder itself is looked through this often, in seconds.
SEARCH_EVERY = 5.0
ORPHAN_SECONDS = 60.0


class Maker(Protocol):
    """What does the requests: loads what the config names unless it already holds it, and reports into the
    run.
    """

    def run(self, config: Any, run: RunFolder) -> Sequence[Path]: ...


class Worker:
    """One resident worker. `serve` returns when it should leave; the process's end is what frees the GPU."""

    def __init__(self, runs_dir: Path, maker_entry: str, idle_seconds: float) -> None:
        self.runs_dir = runs_dir
        self.folder = runs_dir / WORKER_FOLDER
        self._entry = maker_entry
        self._idle_seconds = idle_seconds
        self._maker: Maker | None = None
        self._me = myself()
        self._rest_since = time.monotonic()
        self._bell = ""
        self._searched = float("-inf")

    def serve(self) -> None:
        """Do requests until there is a reason to leave and none is left that this worker should do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._say()
        while True:
            if self._leaving():
                return
            request = self._next()
            if request is None:
                time.sleep(LOOK_EVERY)
                continue
            code = self._do(request)
            self._rest_since = time.monotonic()
            if code == EXIT_FAILED:
                # A failed GPU call can poison the process; a fresh one loads again and is sound.
                self._say(leaving=True)
                return
            self._say()

    def _next(self) -> Path | None:
        now = time.monotonic()
        bell = _bell(self.folder)
        if bell == self._bell and now - self._searched < SEARCH_EVERY:
            return None
        waiting = pending(self.runs_dir)
        if not waiting:
            self._bell, self._searched = bell, now
            return None
        return waiting[0]

    def _do(self, folder: Path) -> int:
        try:
            with exclusive(self.folder / LOCK_FILE, LOCK_WAIT):
                run = RunFolder.open(folder) if waits(folder) else None
                if run is not None:
                    run.begin()
                withdraw(folder, REQUEST_FILE, "Stopped before it began.")
        except Busy:
            return EXIT_DONE
        if run is None:
            return EXIT_DONE
        self._say(busy=folder.name)
        with recorded(folder, heading(COMMAND)):
            return execute(run, lambda: self._make(run))

    def _make(self, run: RunFolder) -> Sequence[Path]:
        config = load(COMMANDS[COMMAND], run.folder / CONFIG_FILE)
        tell_idle(config, run)
        if self._maker is None:
            module, _, factory = self._entry.partition(":")
            self._maker = getattr(importlib.import_module(module), factory)()
        return self._maker.run(config, run)

    def _leaving(self) -> bool:
        """Whether to go now. Said under the lock, so that no request is handed to a worker that has decided
        to go.
        """
        rest = time.monotonic() - self._rest_since
        released = (self.folder / RELEASE_FILE).exists()
        idle = 0 < self._idle_seconds < rest
        if not (released or idle or (rest > ORPHAN_SECONDS and self._orphaned())):
            return False
        try:
            with exclusive(self.folder / LOCK_FILE, LOCK_WAIT):
                if not released and pending(self.runs_dir):
                    return False
                self._say(leaving=True)
                return True
        except Busy:
            return False

    def _orphaned(self) -> bool:
        owner = identity_in(read_json(self.folder / OWNER_FILE))
        return owner is not None and not is_alive(owner)

    def _say(self, busy: str = "", leaving: bool = False) -> None:
        record = {
            "pid": self._me.pid,
            "process_created": self._me.created,
            "host": self._me.host,
            "busy": busy,
            "loaded": self._maker is not None,
            "leaving": leaving,
            "time": time.time(),
        }
        write_json(self.folder / WORKER_FILE, record)


def _bell(folder: Path) -> str:
    try:
        return (folder / BELL_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until there is a reason to leave."""
    parser = argparse.ArgumentParser(prog="zimage_gui.jobs.worker", allow_abbrev=False)
    parser.add_argument("--runs_dir", type=Path, required=True)
    parser.add_argument(
        "--idle_seconds", type=float, default=IDLE_SECONDS, help="0: never leave for being idle"
    )
    parser.add_argument(
        "--maker", default=MAKER, help="package.module:factory of the object that does requests"
    )
    options = parser.parse_args(arguments)
    leave_a_core_free()
    threading.current_thread().name = "worker"
    Worker(options.runs_dir, options.maker, options.idle_seconds).serve()


if __name__ == "__main__":
    main()
