"""Knows console.log: what a program printed, kept for the panel and for a bug report. Knows nothing of runs.

In a detached process the console is the file itself; in a terminal a tee keeps a copy of every finished line.
"""

from __future__ import annotations

import faulthandler
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from zimage_gui.jobs.redact import redact

CONSOLE_FILE = "console.log"
CRASH_VARIABLE = "PYTHONFAULTHANDLER"
TAIL_BYTES = 64 * 1024

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Tee(io.TextIOBase):
    """A text stream that hides secrets, passes on to `screen` and copies finished lines to `log`."""

    def __init__(self, screen: TextIO | None, log: TextIO | None) -> None:
        super().__init__()
        self._screen = screen
        self._log = log
        self._pending = ""
        self._guard = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the base class
        return getattr(self._screen, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        safe = redact(text)
        with self._guard:
            self._show(safe)
            if self._log is not None:
                lines = (self._pending + safe).split("\n")
                # Only what stands after the last return of an unfinished progress line can still matter.
                self._pending = lines.pop().rsplit("\r", 1)[-1]
                self._keep(lines)
        return len(text)

    def _show(self, text: str) -> None:
        if self._screen is None:
            return
        try:
            self._screen.write(text)
        except (OSError, ValueError):
            # The terminal was closed, or a pipe's reader has left: no reason for the run to end.
            self._screen = None

    def _keep(self, lines: list[str]) -> None:
        if lines and self._log is not None:
            self._log.write("".join(f"{visible(line)}\n" for line in lines))
            self._log.flush()

    def flush(self) -> None:
        try:
            if self._screen is not None:
                self._screen.flush()
        except (OSError, ValueError):
            self._screen = None

    def finish(self) -> None:
        """Write the unfinished last line to the log."""
        with self._guard:
            pending, self._pending = self._pending, ""
            if pending:
                self._keep([pending])

    def isatty(self) -> bool:
        return self._screen is not None and self._screen.isatty()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._screen is None:
            raise OSError("this console has no file descriptor")
        return self._screen.fileno()


@contextmanager
def recorded(folder: Path, heading: str) -> Iterator[None]:
    """Within it, all that is printed stands in the folder's console.log, without secrets; C crashes too.

    `heading` becomes the log's first line and is not shown in a terminal.
    """
    path = folder / CONSOLE_FILE
    with ExitStack() as stack:
        log: TextIO | None = None
        if not is_console(path):
            log = stack.enter_context(
                open(path, "a", encoding="utf-8", errors="backslashreplace", newline="\n")
            )
        print(heading, file=log, flush=True)
        tees = Tee(sys.stdout, log), Tee(sys.stderr, log)
        stack.enter_context(redirect_stdout(tees[0]))
        stack.enter_context(redirect_stderr(tees[1]))
        crashes = log or sys.__stderr__
        if crashes is not None and not faulthandler.is_enabled():
            faulthandler.enable(file=crashes)
            stack.callback(faulthandler.disable)
        elif crashes is not None and os.environ.get(CRASH_VARIABLE):
            # A detached process reports its crashes from its start on; within a run they belong to the run.
            faulthandler.enable(file=crashes)
            stack.callback(faulthandler.enable, sys.__stderr__ or crashes)
        try:
            yield
        finally:
            for tee in tees:
                tee.finish()
                tee.flush()


def is_console(path: Path) -> bool:
    """Whether this process's standard output is that very file."""
    try:
        return os.path.samestat(os.fstat(1), os.stat(path))
    except OSError:
        return False


def visible(line: str) -> str:
    """What a terminal would show of one line: the last state of a progress bar, without colours."""
    states = [state for state in _ANSI.sub("", line).split("\r") if state.strip()]
    return _CONTROL.sub("", states[-1]) if states else ""


def tail(path: Path, lines: int = 200, limit: int = TAIL_BYTES) -> list[str]:
    """The last lines of a log as a terminal would show them, reading at most `limit` bytes from its end."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - limit))
            content = file.read(limit)
    except OSError:
        return []
    if start > 0:
        # The first line is cut, and with it perhaps a character; a single endless line is kept.
        content = content.split(b"\n", 1)[-1]
    text = content.decode("utf-8", errors="replace").replace("\r\n", "\n")
    shown = [visible(line) for line in text.split("\n")]
    if shown and not shown[-1]:
        shown.pop()
    return shown[-lines:]
