"""Large files written, and read back, by a thread of their own while what comes next is still being made.

Knows bytes and one open file. Must not know formats, nor import torch. Reading, turning and casting release
the interpreter, and so do writing and reading back: with two processors the sides run beside each other.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

_WAITING = 64 << 20
"""Bytes that wait for the disk. A matrix that must be turned (79 MB in the largest model) is made in one go:
so much keeps the disk at work until the next one is there."""

Chunk = bytes | memoryview
Put = Callable[[Chunk], None]


@contextlib.contextmanager
def writing_behind(file: BinaryIO) -> Iterator[Put]:
    """A function that appends a chunk to `file`, opened by its name, and returns before it is written.

    Every chunk is read back and compared with the bytes it was made of: they must not change before the
    block ends. Then all is written, or, when the block or the writing fails, what still waits is thrown away.
    Raises the OSError of the disk, at a later chunk or at the end; another if a chunk reads back differently.
    """
    file.flush()
    with open(file.name, "rb", buffering=0) as back:
        back.seek(file.tell())
        thread = _Thread(file, back)
        thread.start()
        try:
            yield thread.put
        except BaseException:
            thread.finish(throw_away=True)
            raise
        thread.finish(throw_away=False)
    if thread.error is not None:
        raise thread.error


class _Thread(threading.Thread):
    """Two SimpleQueues join it to the one who makes the chunks: an exception out of a signal handler (Ctrl-C)
    can end a call of theirs but never come in its midst, where a `Queue` may be left locked for ever."""

    def __init__(self, file: BinaryIO, back: Any) -> None:
        super().__init__(name="writing-behind", daemon=True)
        self._file, self._back = file, back
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ahead = 0
        self._throw_away = False
        self._buffer = bytearray()
        self.error: BaseException | None = None

    def put(self, chunk: Chunk) -> None:
        if self.error is not None:
            raise self.error
        self._chunks.put(chunk)
        self._ahead += memoryview(chunk).nbytes
        while self._ahead > _WAITING:
            self._ahead -= self._done.get()

    def finish(self, throw_away: bool) -> None:
        self._throw_away = throw_away
        self._chunks.put(None)
        self.join()

    def run(self) -> None:
        """Takes chunks to the last, even after an error: nobody may wait for ever for what is done."""
        while (chunk := self._chunks.get()) is not None:
            if self.error is None and not self._throw_away:
                try:
                    self._write(chunk)
                except BaseException as error:
                    self.error = error
            self._done.put(memoryview(chunk).nbytes)

    def _write(self, chunk: Any) -> None:
        self._file.write(chunk)
        self._file.flush()
        size = memoryview(chunk).nbytes
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        # A bytearray is compared at the speed of memory, a memoryview a hundred times slower.
        if self._back.readinto(self._buffer) != size or self._buffer != chunk:
            raise OSError(errno.EIO, "what was written reads back differently; check the disk")
