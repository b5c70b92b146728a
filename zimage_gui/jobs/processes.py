"""Knows whether a process named in a file is still the same living process. Knows nothing of runs or
files.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psutil

# psutil derives the create time from the boot time, which clock corrections move by a fraction of a second.
CREATE_TIME_TOLERANCE = 2.0
# A process on another machine or in another container cannot be looked up: its heartbeat alone speaks.
FOREIGN_HEARTBEAT_LIMIT = 60.0
# A clock set during a run moves every create time; a heartbeat this fresh outweighs the mismatch.
FRESH_HEARTBEAT = 4.0


def leave_a_core_free(processes: int = 1) -> None:
    """Let torch's CPU kernels use all cores but one, unless the user said otherwise. Call before torch is
    imported. processes: how many like this one share them.

    A thread of torch that finds its core busy keeps all the others waiting: with as many threads as cores, an
    open browser made a step of the demo 25 times slower on two cores. One thread less costs a seventh there.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores - 1) // processes)))


@dataclass(frozen=True)
class Identity:
    """A process told apart from a later one with the same number.

    `created` is the operating system's start time in seconds since 1970; `host` names the machine or
    container.
    """

    pid: int
    created: float
    host: str


@lru_cache(maxsize=1)
def host_name() -> str:
    """This machine's name, in a container with the container's own, so that numbers are never compared
    across.
    """
    name = socket.gethostname()
    try:
        return f"{name}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return name


def created_of(pid: int) -> float | None:
    """Start time of a living process in seconds since 1970, None when there is none (a zombie counts as
    none).
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return float(process.create_time())
    except psutil.AccessDenied:
        return 0.0 if psutil.pid_exists(pid) else None
    except (psutil.Error, OSError, ValueError, OverflowError):
        return None


def identity_of(pid: int) -> Identity:
    """Identity of a process just started; `created` is 0 when it has ended before it could be asked."""
    return Identity(pid, created_of(pid) or 0.0, host_name())


def myself() -> Identity:
    """Identity of the calling process."""
    return identity_of(os.getpid())


def identity_in(record: dict[str, Any]) -> Identity | None:
    """The process named in one of our JSON files, None when it names none."""
    pid, created, host = record.get("pid"), record.get("process_created"), record.get("host")
    if isinstance(pid, int) and isinstance(created, float | int) and isinstance(host, str):
        return Identity(pid, float(created), host)
    return None


def is_alive(identity: Identity, heartbeat: float | None = None) -> bool:
    """Whether exactly this process runs now; `heartbeat` is its last sign of life in seconds since 1970."""
    age = time.time() - heartbeat if heartbeat is not None else None
    if identity.host and identity.host != host_name():
        return age is not None and age < FOREIGN_HEARTBEAT_LIMIT
    if identity.pid <= 0:
        return False
    created = created_of(identity.pid)
    if created is None:
        return False
    if abs(created - identity.created) <= CREATE_TIME_TOLERANCE:
        return True
    return age is not None and 0 <= age < FRESH_HEARTBEAT


def boot_time() -> float:
    """When this machine was started, in seconds since 1970."""
    return float(psutil.boot_time())
