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
    thread = _Thread(file)
    thread.start()
    try:
        yield thread.put
    except BaseException:
        thread.finish(throw_away=True)
        raise
    thread.finish(throw_away=False)
    if thread.error is not None:
        raise thread.error


class _Waiting(queue.Queue[Chunk | None]):
    """Is full when its chunks have so many bytes, however many they are."""

    def __init__(self) -> None:
        super().__init__(_WAITING)
        self._bytes = 0

    def _qsize(self) -> int:
        return self._bytes

    def _put(self, item: Chunk | None) -> None:
        self._bytes += _size(item)
        super()._put(item)

    def _get(self) -> Chunk | None:
        item = super()._get()
        self._bytes -= _size(item)
        return item


def _size(item: Chunk | None) -> int:
    """Never 0: a queue of that size is empty."""
    return 1 + (memoryview(item).nbytes if item is not None else 0)


class _Thread(threading.Thread):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(name="writing-behind", daemon=True)
        self._file = file
        self._queue = _Waiting()
        self._throw_away = False
        self._buffer = bytearray()
        self.error: BaseException | None = None

    def put(self, chunk: Chunk) -> None:
        if self.error is not None:
            raise self.error
        self._queue.put(chunk)

    def finish(self, throw_away: bool) -> None:
        self._throw_away = throw_away
        self._queue.put(None)
        self.join()

    def run(self) -> None:
        """Takes chunks to the last, even after an error: nobody may wait for a full queue for ever."""
        try:
            self._file.flush()
            with open(self._file.name, "rb", buffering=0) as back:
                back.seek(self._file.tell())
                while (chunk := self._queue.get()) is not None:
                    if not self._throw_away:
                        self._write(chunk, back)
        except BaseException as error:
            self.error = error
            while self._queue.get() is not None:
                pass

    def _write(self, chunk: Any, back: Any) -> None:
        self._file.write(chunk)
        self._file.flush()
        size = memoryview(chunk).nbytes
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        # A bytearray is compared at the speed of memory, a memoryview a hundred times slower.
        if back.readinto(self._buffer) != size or self._buffer != chunk:
            raise OSError(errno.EIO, "what was written reads back differently; check the disk")
