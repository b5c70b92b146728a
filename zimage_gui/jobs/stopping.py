"""Knows the signals that ask a process to stop. Knows nothing of what is being stopped or of how it is saved.

The first Ctrl-C (or SIGTERM, a closed terminal, Ctrl-Break on Windows) asks for "finish the step and save".
The next one leaves at once: KeyboardInterrupt, so that temporary files are removed, and a hard exit when that
takes too long.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from zimage_gui.errors import EXIT_INTERRUPTED

HARD_EXIT_AFTER = 3.0

_FIRST = b"\nStopping: the step is finished and everything is saved. Again: leave at once, without saving.\n"
_SECOND = b"\nLeaving at once, without saving.\n"


class StopSignals:
    """Context manager that turns signals into a question; outside the main thread it does nothing.

    `stopping()` says whether a stop was already asked for in another way: then the first signal leaves at
    once. `last_words()` is called right before a hard exit.
    """

    def __init__(self, stopping: Callable[[], bool], last_words: Callable[[], None]) -> None:
        self.asked = False
        self._going = False
        self._stopping = stopping
        self._last_words = last_words
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
                number = getattr(signal, name, None)
                # A run under nohup is meant to outlive its terminal.
                if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if self.asked:
                # The process only has to end now; an impatient Ctrl-C must not turn 130 into a traceback.
                signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked data worker inherits this handler; swallowing the signal would leave it hanging.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        if not self.asked and not self._stopping():
            self.asked = True
            _say(_FIRST)
            return
        if self._going:
            # A second interrupt would break into the clearing up; the watchdog sees to the rest.
            return
        self.asked = self._going = True
        _say(_SECOND)
        watchdog = threading.Timer(HARD_EXIT_AFTER, self._leave)
        watchdog.daemon = True
        watchdog.start()
        raise KeyboardInterrupt

    def _leave(self) -> None:
        try:
            self._last_words()
        finally:
            os._exit(EXIT_INTERRUPTED)


def _say(message: bytes) -> None:
    """Write to the console below Python's buffers, which a signal handler must not enter again."""
    try:
        os.write(2, message)
    except OSError:
        return
