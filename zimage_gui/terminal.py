"""Events as lines of text: in place on a terminal, one after the other in a file.

This module knows how events read; it must not know what causes them, nor where they are kept.
"""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from zimage_gui.events import (
    Checkpoint,
    Event,
    Failed,
    Finished,
    Note,
    Progress,
    Resumed,
    Sample,
    Stage,
    Started,
    Step,
    Validation,
    Warning,
)

_EVERY_ON_SCREEN = 0.1
_EVERY_IN_FILE = 15.0
"""Seconds between two lines of progress."""
_MOST_RESULTS = 20


class TerminalView:
    """Prints events. `out` gets the course of the run, `err` warnings and failures."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._in_place = out.isatty()
        self._shown = 0
        self._last = -_EVERY_IN_FILE
        self._seconds = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress | Step):
            self._progress(event)
        elif isinstance(event, Warning):
            self._line(f"Warning: {event.text}", self._err)
        elif isinstance(event, Failed):
            hint = f"\n{event.hint}" if event.hint else ""
            self._line(f"Failed: {event.message}{hint}", self._err)
        elif not isinstance(event, Started):
            self._line(sentence(event), self._out)

    def _progress(self, event: Progress | Step) -> None:
        if isinstance(event, Step):
            # One slow step (a save, a picture) must not make the time left jump.
            self._seconds = 0.9 * self._seconds + 0.1 * event.seconds if self._seconds else event.seconds
            text, last = _step(event, self._seconds), event.step >= event.total_steps
        else:
            text, last = _share(event), 0 < event.total <= event.done
        now = time.monotonic()
        wait = _EVERY_ON_SCREEN if self._in_place else _EVERY_IN_FILE
        begun = isinstance(event, Step) or event.done or self._in_place
        if not last and (now - self._last < wait or not begun):
            return
        self._last = now
        if not self._in_place:
            self._line(text, self._out)
            return
        width = max(20, shutil.get_terminal_size().columns - 1)
        text = text if len(text) <= width else text[: width - 1] + "…"
        # Blanks instead of an escape sequence: older Windows consoles show those as rubbish.
        self._write(self._out, "\r" + text + " " * (self._shown - len(text)) + ("\n" if last else ""))
        self._shown = 0 if last else len(text)

    def _line(self, text: str, to: TextIO) -> None:
        if self._shown:
            self._write(self._out, "\r" + " " * self._shown + "\r")
            self._shown = 0
        self._write(to, text + "\n")

    @staticmethod
    def _write(to: TextIO, text: str) -> None:
        to.write(text)
        to.flush()


def sentence(event: Event) -> str:
    """One line for a person."""
    if isinstance(event, Stage | Note | Warning):
        return event.text
    if isinstance(event, Sample):
        adapter = f" (training adapter {event.adapter})" if event.adapter else ""
        step = f" at step {event.step}" if event.step else ""
        return f"Picture{step}: {event.path}{adapter}"
    if isinstance(event, Validation):
        return f"Held-out pictures at step {event.step}: loss {event.loss:.4f}"
    if isinstance(event, Checkpoint):
        return f"Saved {event.what} at step {event.step}: {event.path}"
    if isinstance(event, Resumed):
        return f"Going on behind step {event.step} of {event.run}"
    if isinstance(event, Finished):
        words = {"done": "Done.", "stopped": "Stopped; everything is saved."}
        shown, more = event.results[:_MOST_RESULTS], len(event.results) - _MOST_RESULTS
        lines = [words[event.outcome], *(f"  {result}" for result in shown)]
        return "\n".join([*lines, f"  … and {more} more"] if more > 0 else lines)
    if isinstance(event, Failed):
        return f"{event.message} {event.hint}".strip()
    if isinstance(event, Started):
        return f"{event.command} started"
    return _step(event, event.seconds) if isinstance(event, Step) else _share(event)


def _share(event: Progress) -> str:
    parts = [f"{event.done}/{event.total} {event.unit}" if event.total else f"{event.done} {event.unit}"]
    if event.total:
        parts[0] = f"{event.done / event.total:4.0%}  " + parts[0]
    if event.rate:
        parts.append(speed(event.rate, event.unit))
    if event.eta is not None and event.done < event.total:
        parts.append(f"{duration(event.eta)} left")
    return "  ".join(parts)


def _step(event: Step, seconds: float) -> str:
    """seconds: of a usual step."""
    left = (event.total_steps - event.step) * seconds
    parts = [f"step {event.step}/{event.total_steps}"]  # what matters most comes first: terminals are narrow
    if event.step < event.total_steps:
        parts.append(f"{duration(left)} left")
    parts += [
        f"{seconds:.2f} s/it" if seconds >= 1 else f"{1 / max(seconds, 1e-9):.2f} it/s",
        f"loss {event.loss:.4f} (average {event.loss_average:.4f})",
        f"epoch {event.epoch}/{event.total_epochs}",
        f"lr {event.lr:.2e}",
    ]
    if event.vram_gb is not None:
        parts.append(f"VRAM {event.vram_gb:.1f} GB")
    return "  ".join(parts)


def speed(rate: float, unit: str) -> str:
    """Units per second, or seconds per unit when they are slow."""
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def duration(seconds: float) -> str:
    """45 s, 3:07 min, 1:02:10 h, 3 days."""
    if not seconds < 1e9:  # also NaN
        return "very long"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 3 * 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"
    return f"{whole // 86400} days"
