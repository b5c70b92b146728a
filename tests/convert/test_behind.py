"""Writing behind: in order and whole, and every error comes out at the one who writes."""

import errno
import io
import threading

import pytest

from zimage_gui.behind import writing_behind


class _Torn(io.FileIO):
    """A disk that loses a bit."""

    def write(self, data):
        return super().write(data if len(data) < 1000 else bytes([data[0] ^ 1]) + bytes(data[1:]))


class _Full(io.FileIO):
    def write(self, data):
        if self.tell() > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_chunks_of_any_length_arrive_in_their_order(tmp_path):
    chunks = [bytes([number]) * size for number, size in enumerate([3, 0, 70_000, 1, 9000, 9000, 2])]
    with (tmp_path / "f").open("wb") as file:
        file.write(b"head")
        with writing_behind(file) as put:
            for chunk in chunks:
                put(memoryview(chunk))
    assert (tmp_path / "f").read_bytes() == b"head" + b"".join(chunks)


def test_a_chunk_that_reads_back_differently_is_found(tmp_path):
    with (
        _Torn(tmp_path / "f", "wb") as file,
        pytest.raises(OSError, match="reads back differently"),
        writing_behind(file) as put,
    ):
        put(b"1" * 10)
        put(b"1" * 1000)


def test_a_full_disk_stops_the_one_who_makes_the_chunks(tmp_path):
    made = 0
    with (
        _Full(tmp_path / "f", "wb") as file,
        pytest.raises(OSError, match="No space left"),
        writing_behind(file) as put,
    ):
        chunk = bytes(1 << 20)
        for _ in range(1000):
            put(chunk)
            made += 1
    assert made < 100


def test_what_fails_while_chunks_are_made_ends_the_thread(tmp_path):
    with (
        (tmp_path / "f").open("wb") as file,
        pytest.raises(KeyboardInterrupt),
        writing_behind(file) as put,
    ):
        put(b"1")
        raise KeyboardInterrupt
    assert threading.active_count() == 1 or all(t.name != "writing-behind" for t in threading.enumerate())
