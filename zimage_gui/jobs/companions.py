"""Knows the further processes of a run that trains with several: starting them, noticing when one dies, and
ending with the run. Knows no command and nothing of what the processes tell each other.

The run's own process is the first of them and their parent; each gets the same command, config and run
folder, and its place in the variables that torchrun would set.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from zimage_gui.config.parallel_parts import COUNT, LOCAL_RANK, RANK, launched_place
from zimage_gui.errors import EXIT_FAILED, ProcessLost
from zimage_gui.events import Failed
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.hints import RESUME
from zimage_gui.jobs.launch import command_line, environment

_LOOK_EVERY = 0.2
# What the first process is doing without the others (saving) may yet end well before it notices.
_GRACE = 30.0
_DYING_TAKES = 5.0
_LEAVING_TAKES = 60.0


@contextlib.contextmanager
def companions(run: RunFolder, count: int) -> Iterator[None]:
    """Within it, `count` processes work at the run, this one being the first; without a launcher only."""
    if count < 2 or launched_place() is not None:
        yield
        return
    shared = {COUNT: str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    with _environment(shared | {RANK: "0", LOCAL_RANK: "0"}):
        team = _Team(run, count, shared)
        try:
            yield
            team.leave()
        except ProcessLost as error:
            raise ProcessLost(team.why() or str(error)) from error
        finally:
            team.kill()


class _Team:
    def __init__(self, run: RunFolder, count: int, shared: dict[str, str]) -> None:
        self._run, self._count, self._ending = run, count, threading.Event()
        argv = command_line(run.folder, run.status.command)
        inherited = environment()
        self._processes = [
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                env=inherited | shared | {RANK: str(rank), LOCAL_RANK: str(rank)},
            )
            for rank in range(1, count)
        ]
        threading.Thread(target=self._watch, name="companions", daemon=True).start()

    def leave(self) -> None:
        """All is done: each ends by itself."""
        self._ending.set()
        end = time.monotonic() + _LEAVING_TAKES
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))

    def kill(self) -> None:
        """They own nothing that could be lost."""
        self._ending.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def why(self) -> str:
        """Which of them died, and how, as a sentence; empty when none did within a few seconds."""
        end = time.monotonic() + _DYING_TAKES
        while time.monotonic() < end:
            if sentence := self._dead():
                return sentence
            time.sleep(_LOOK_EVERY)
        return ""

    def _dead(self) -> str:
        for rank, process in enumerate(self._processes, 1):
            code = process.poll()
            if code:
                said = f"ended with exit code {code}; what it said stands above"
                how = f"was killed (signal {-code})" if code < 0 else said
                return f"Process {rank + 1} of {self._count} {how}."
        return ""

    def _watch(self) -> None:
        while not self._ending.wait(_LOOK_EVERY):
            sentence = self._dead()
            if sentence and not self._ending.wait(_GRACE):
                # The first process hangs in a call to a graphics card that will never come back.
                self.kill()
                self._run.end(
                    "failed", failed=Failed(error_kind="ProcessLost", message=sentence, hint=RESUME)
                )
                os._exit(EXIT_FAILED)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _environment(values: dict[str, Any]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
