"""Progress events with rate and time left. Knows the clock; must not know what is counted."""

import time

from zimage_gui.events import Progress, Run


class Meter:
    """Emits Progress events: at the start, at most two a second, and at the end."""

    def __init__(self, run: Run, total: int, unit: str) -> None:
        self._run, self._total, self._unit = run, total, unit
        self._begun = self._told = time.monotonic()
        run.emit(Progress(done=0, total=total, unit=unit))

    def at(self, done: int) -> None:
        """`done` of the total are done."""
        now = time.monotonic()
        if done < self._total and now - self._told < 0.5:
            return
        self._told = now
        spent = now - self._begun
        rate = done / spent if done and spent > 0 else None
        eta = (self._total - done) / rate if rate else None
        self._run.emit(Progress(done=done, total=self._total, unit=self._unit, rate=rate, eta=eta))
