"""The most memory a run really holds, phase by phase.

Knows torch's counters and the C library's. Must not know phases by name, or what was expected.

On a CPU the growth of the process says little about a small run: glibc keeps freed pieces below 32 MiB for
later ones, whose sizes rarely fit the holes (a fifth to the whole of what was in use, on the demo), and code
comes in from files when it first runs. What the library has handed out is what tensors and objects take.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

_INTERVAL = 0.01
"""Seconds between two looks: the turn from the forward to the backward pass of the demo takes longer."""
_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Handed(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def handed_out() -> Callable[[], int] | None:
    """Gives the bytes that the C library has handed out; None where it tells nothing (glibc < 2.33)."""
    if sys.platform != "linux":
        return None
    try:
        ask: Any = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    ask.restype = _Handed

    def bytes_now() -> int:
        found = ask()
        return int(found.uordblks + found.hblkhd)

    return bytes_now


class PeakMeter:
    """`peaks`: bytes at the fullest of each phase that `begin` named; on a CPU beyond what was held when the
    meter was made. Measures inside `running` only."""

    def __init__(self, device: torch.device) -> None:
        self.peaks: dict[str, float] = {}
        self._device, self._phase = device, ""
        process = psutil.Process()
        counter = handed_out()
        self.in_use = counter is not None or device.type == "cuda"
        """Whether pieces in use are counted, not all that the process keeps."""
        self._now = counter or (lambda: int(process.memory_info().rss))
        self._resting = self._now()
        self._grown_from = process.memory_info().rss
        self._ended = threading.Event()

    def begin(self, phase: str) -> None:
        """What comes from now on belongs to a phase, which may have been there before."""
        self._look()
        self._phase = phase
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        looking = threading.Thread(target=self._keep_looking, name="memory", daemon=True)
        if self._device.type == "cpu":
            looking.start()
        try:
            yield
        finally:
            self._look()
            self._ended.set()
            if looking.is_alive():
                looking.join()

    @property
    def grown(self) -> int:
        """By how much the process was larger at its largest than when the meter was made."""
        return _peak_rss() - self._grown_from

    def _keep_looking(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        if not self._phase:
            return
        if self._device.type == "cuda":
            now = torch.cuda.max_memory_reserved(self._device)
        else:
            now = self._now() - self._resting
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0.0), float(now))


def _peak_rss() -> int:
    """The most RAM this process ever had, bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
