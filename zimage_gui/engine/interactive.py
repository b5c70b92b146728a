"""Prompts that a person types: the lines of a stream, without keeping a stop waiting.

Knows a text stream and the syntax of prompt lines. Must not know what is made of them.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

from zimage_gui.engine.prompt_lines import PromptLine, parse_line

_LOOK_EVERY = 0.2
"""Seconds between two looks at a stop request while nobody types."""


def typed_prompts(
    stream: TextIO, stopping: Callable[[], bool], complain: Callable[[str], None]
) -> Iterator[PromptLine]:
    """Each prompt as it is typed, until the stream ends or a stop is asked for.

    A line that cannot be used is told to `complain`, and the next one is waited for. A stream that cannot be
    read on (bytes that are no UTF-8) ends there, and that is told too.
    """
    lines: queue.Queue[str | Exception | None] = queue.Queue()

    def read() -> None:
        # In a thread: a read of a terminal cannot be cut short the same way on every system.
        try:
            for line in stream:
                lines.put(line)
            lines.put(None)
        except (OSError, ValueError) as error:
            lines.put(error)

    threading.Thread(target=read, name="prompts", daemon=True).start()
    while not stopping():
        try:
            line = lines.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            continue
        if isinstance(line, Exception):
            complain(f"The prompts end here: what follows cannot be read ({line})")
            return
        if line is None:
            return
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            yield parse_line(line)
        except ValueError as error:
            complain(f"This line {error}")
