"""Knows how to start a process that outlives its starter, and how to end it. Knows no command and no queue.

A run's process is its own session (POSIX) or process group without a console window (Windows), with its
console in a file: closing the window, or Ctrl-C in the window's terminal, does not reach it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import zimage_gui
from zimage_gui.config.app import AUTH_VARIABLE
from zimage_gui.events import STOP_FILE
from zimage_gui.jobs.console import CONSOLE_FILE, CRASH_VARIABLE
from zimage_gui.jobs.folder import CONFIG_FILE
from zimage_gui.jobs.processes import Identity, created_of, host_name, identity_of, is_alive
from zimage_gui.jobs.state import EXIT_FILE, KILL_FILE, LAUNCH_FILE, judge
from zimage_gui.jobs.status import read_status, write_json

_KILL_TAKES = 2.0


def command_line(folder: Path, command: str) -> list[str]:
    """The argument list that runs a command in its run folder."""
    config = folder / CONFIG_FILE
    return [
        sys.executable, "-m", "zimage_gui", command,
        "--config_file", str(config.absolute()), "--run_folder", str(folder.absolute()),
    ]  # fmt: skip


def start(folder: Path, argv: Sequence[str]) -> Identity:
    """Start the run of this folder, detached, and note it in launch.json. Raises OSError when it cannot be
    started.
    """
    record: dict[str, object] = {"time": time.time(), "argv": list(argv), "starter": os.getpid()}
    # First the intention: dying right after it can leave a run unstarted, never start it twice.
    write_json(folder / LAUNCH_FILE, record)
    process = spawn(argv, folder / CONSOLE_FILE)
    found = identity_of(process.pid)
    record |= {"pid": found.pid, "process_created": found.created, "host": host_name()}
    write_json(folder / LAUNCH_FILE, record)
    threading.Thread(target=_bury, args=(process, folder), name=f"wait-{process.pid}", daemon=True).start()
    return found


def spawn(argv: Sequence[str], console: Path) -> subprocess.Popen[bytes]:
    """Start a detached process whose output is appended to the file `console`."""
    detached: dict[str, Any]
    if sys.platform == "win32":
        # Not DETACHED_PROCESS: helpers of the process would each open a console window of their own.
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        detached = {"creationflags": flags}
    else:
        detached = {"start_new_session": True}
    with open(console, "ab") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            **detached,
        )


def environment() -> dict[str, str]:
    """The environment of a detached process: ours, in UTF-8 and unbuffered, this very package importable.

    The window's password stays with the window.
    """
    inherited = {name: value for name, value in os.environ.items() if name != AUTH_VARIABLE}
    changed = inherited | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", CRASH_VARIABLE: "1"}
    root = Path(zimage_gui.__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        # Run from a checkout, `python /else/where/app.py` finds the package; `python -m` from there would
        # not.
        paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        changed["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return changed


def ask_to_stop(folder: Path) -> None:
    """First grade: the run finishes its step, saves and ends. The same on every system."""
    (folder / STOP_FILE).touch()


def terminate(folder: Path) -> bool:
    """Second grade: the process leaves now, clearing up but not saving. False when none is running.

    Windows knows no such request for a process without a console: there this is `kill`.
    """
    ask_to_stop(folder)
    process = living_process(folder)
    if process is None:
        return False
    if sys.platform == "win32":
        return kill(folder)
    (folder / KILL_FILE).touch()
    # The first SIGTERM means "save and stop" to a run that has not noticed the stop file yet; the second
    # means now.
    status = read_status(folder)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        if status is not None and status.outcome is None:
            time.sleep(0.2)
            process.terminate()
    return True


def kill(folder: Path) -> bool:
    """Third grade: the process and its children are gone, whatever they were doing. False when none is
    running.
    """
    process = living_process(folder)
    if process is None:
        return False
    (folder / KILL_FILE).touch()
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    # Not psutil's wait: it would take the exit code away from the one who started the process.
    end = time.monotonic() + _KILL_TAKES
    while created_of(process.pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    return True


def living_process(folder: Path) -> psutil.Process | None:
    """The process at work in a run folder on this machine, checked to be that one and not a later
    namesake.
    """
    state = judge(folder)
    if state is None or state.pid is None or state.ended:
        return None
    identity = state.status.process or identity_of(state.pid)
    if identity.host != host_name() or not is_alive(identity, state.status.heartbeat):
        return None
    try:
        return psutil.Process(identity.pid)
    except psutil.NoSuchProcess:
        return None


def _bury(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a child, so that it does not stay a zombie, and note its exit code, which no one else can
    learn.
    """
    code = process.wait()
    with contextlib.suppress(OSError):
        write_json(folder / EXIT_FILE, {"returncode": code, "time": time.time()})
