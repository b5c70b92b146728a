"""Knows how to run one command in a process that is not its run's first: it has a console and nothing else.

The run folder, the events and the results are the first process's. Knows no command by name.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zimage_gui.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER,
    Interrupted,
    ProcessLost,
    UserError,
)
from zimage_gui.events import Event, Warning
from zimage_gui.jobs.processes import identity_of, is_alive
from zimage_gui.jobs.stopping import StopSignals

_LOOK_EVERY = 1.0


class BesideRun:
    """Implements `zimage_gui.events.Run` for a process that owns nothing: `folder` is only where it would
    look, and of the events only warnings are shown."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.asked: Callable[[], bool] = bool
        self._rank = rank

    def emit(self, event: Event) -> None:
        if isinstance(event, Warning):
            self.say(event.text)

    def say(self, text: str) -> None:
        print(f"Process {self._rank + 1}: {text}", file=sys.stderr, flush=True)

    def stop_requested(self) -> bool:
        return self.asked()


def run_beside(work: Callable[[Any, Any], object], config: Any, folder: Path, rank: int) -> int:
    """Do a command's work as process number `rank` of its run; returns the exit code."""
    run = BesideRun(folder, rank)
    signals = StopSignals(stopping=bool, last_words=lambda: None)
    run.asked = lambda: signals.asked
    _end_with_parent()
    with signals:
        try:
            work(config, run)
        except Interrupted:
            return EXIT_DONE
        except UserError as error:
            run.say(str(error))
            return EXIT_USER
        except ProcessLost as error:
            run.say(str(error))
            return EXIT_FAILED
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return EXIT_FAILED
    return EXIT_DONE


def _end_with_parent() -> None:
    """Whoever started this process may be killed without a word; a call to a graphics card that waits for
    another process would then wait for ever."""
    parent = identity_of(os.getppid())

    def watch() -> None:
        while is_alive(parent):
            time.sleep(_LOOK_EVERY)
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, name="parent", daemon=True).start()
