"""Knows what the machine is doing: graphics card, memory, disk, processor. Knows nothing of runs; never
fails.

A reading that cannot be had is None. All are taken at most once a second, however many pages ask.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

KEPT_FOR = 1.0
_GB = 2.0**30


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card. Memory in GB of 2**30 bytes, use in percent, temperature in degrees Celsius."""

    index: int
    name: str
    used_gb: float
    total_gb: float
    use_percent: int | None
    temperature: int | None

    @property
    def free_gb(self) -> float:
        return self.total_gb - self.used_gb


@dataclass(frozen=True)
class Readings:
    """The machine at one moment; `disk_free_gb` is that of the asked folder's disk."""

    gpus: tuple[Gpu, ...]
    ram_used_gb: float
    ram_total_gb: float
    cpu_percent: float
    disk_free_gb: float | None


class Meter:
    """Takes readings for a window; one instance is enough for all its pages and may be used from any
    thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._nvml: Any = None
        self._nvml_tried = False
        self._taken = -KEPT_FOR
        self._last: Readings | None = None
        psutil.cpu_percent()  # the first call only starts the measurement

    def read(self) -> Readings:
        """The readings, at most a second old."""
        with self._guard:
            now = time.monotonic()
            if self._last is None or now - self._taken >= KEPT_FOR:
                self._last, self._taken = self._take(), now
            return self._last

    def _take(self) -> Readings:
        memory = psutil.virtual_memory()
        return Readings(
            gpus=self._gpus(),
            ram_used_gb=(memory.total - memory.available) / _GB,
            ram_total_gb=memory.total / _GB,
            cpu_percent=psutil.cpu_percent(),
            disk_free_gb=disk_free_gb(self._folder),
        )

    def _gpus(self) -> tuple[Gpu, ...]:
        if not self._nvml_tried:
            self._nvml_tried = True
            self._nvml = _open_nvml()
        if self._nvml is None:
            return ()
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError:
            # The driver was restarted or updated under us: open it anew next time.
            self._nvml_tried = False
            return ()
        cards = (self._gpu(index) for index in range(count))
        return tuple(card for card in cards if card is not None)

    def _gpu(self, index: int) -> Gpu | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError:
            return None
        return Gpu(
            index=index,
            name=name if isinstance(name, str) else name.decode("utf-8", "replace"),
            used_gb=int(memory.used) / _GB,
            total_gb=int(memory.total) / _GB,
            use_percent=self._maybe(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            temperature=self._maybe(
                lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
        )

    def _maybe(self, reading: Any) -> int | None:
        """A reading that not every card gives."""
        try:
            value: int = reading()
            return value
        except self._nvml.NVMLError:
            return None


def disk_free_gb(folder: Path) -> float | None:
    """Free space on the disk of a folder (or of the nearest parent that exists), in GB of 2**30 bytes."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free / _GB
        except OSError:
            continue
    return None


def _open_nvml() -> Any:
    """NVIDIA's library when the package and a driver are there, else None."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return None
    return pynvml
