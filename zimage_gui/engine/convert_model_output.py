"""Results that appear whole or not at all: what may be replaced, room on the disk, temp names, read back.

Knows paths and bytes. Must not know torch or what the tensors mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from zimage_gui.errors import Problem, UserError
from zimage_gui.files import replace_file, temp_path
from zimage_gui.model.checkpoint import header_of
from zimage_gui.model.keymaps import Shape

_SPARE = 64 << 20
"""Bytes that stay free beside the result."""
_OURS = re.compile(r"config\.json|.+\.safetensors|.+\.safetensors\.index\.json")
_WORDS = 512
"""Numbers of eight bytes that are added up before they enter the checksum."""


def output_problems(
    output: Path, sources: Sequence[Path], overwrite: bool, needed: int, *, free: int | None = None
) -> list[Problem]:
    """All that keeps `needed` bytes from being written to `output`. free: bytes, instead of looking."""
    same = [source for source in sources if output.exists() and source.exists() and source.samefile(output)]
    inside = [
        source for source in sources if output.is_dir() and output.resolve() in source.resolve().parents
    ]
    if same or inside:
        rule = "is the input itself" if same else "is the folder in which the input lies"
        return [Problem("output", str(output), rule, "Choose another name")]
    problems = [] if not os.path.lexists(output) else _taken(output, overwrite)
    parent = _existing(output.absolute().parent)
    if not os.access(parent, os.W_OK):
        problems.append(
            Problem("output", str(output), f"{parent} cannot be written to", "Choose another folder")
        )
        return problems
    found = shutil.disk_usage(parent).free if free is None else free
    if found < needed + _SPARE:
        rule = f"needs {_gigabytes(needed + _SPARE)} of free space and {parent} has {_gigabytes(found)}"
        problems.append(Problem("output", str(output), rule, "Make room or choose another drive"))
    return problems


def _taken(output: Path, overwrite: bool) -> list[Problem]:
    if output.is_dir():
        names = sorted(entry.name for entry in output.iterdir())
        foreign = [name for name in names if not _OURS.fullmatch(name) or (output / name).is_dir()]
        if not names:
            return []
        if foreign and overwrite:
            rule = f"holds other things too ({', '.join(foreign[:3])}), and a folder is replaced as a whole"
            return [Problem("output", str(output), rule, "Choose an empty or a new folder")]
    if overwrite:
        return []
    return [Problem("output", str(output), "exists already", "Choose another name, or set overwrite")]


def _existing(folder: Path) -> Path:
    return next((one for one in (folder, *folder.parents) if one.exists()), folder)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


@contextlib.contextmanager
def whole(output: Path, folder: bool) -> Iterator[Path]:
    """A temp path beside `output`, renamed to it when the block succeeds and removed when it does not.

    What the disk refuses becomes a UserError naming `output`.
    """
    temp = temp_path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            temp.mkdir()
        yield temp
        if folder and output.is_dir():
            _replace_folder(temp, output)
        else:
            replace_file(temp, output)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        rule = "cannot be written: the disk is full" if full else f"cannot be written ({error.strerror})"
        raise UserError.one("output", output, rule, "Choose another folder or drive") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temp) if temp.is_dir() else temp.unlink(missing_ok=True)


def _replace_folder(temp: Path, output: Path) -> None:
    """A folder cannot be renamed over another: the old one steps aside first and is removed last."""
    aside = temp_path(output)
    os.replace(output, aside)
    try:
        replace_file(temp, output)
    except BaseException:
        os.replace(aside, output)
        raise
    shutil.rmtree(aside)


class Ledger:
    """What was handed to the file, chunk by chunk, so that the file can be compared with it afterwards."""

    def __init__(self, on_bytes: Callable[[int], object]) -> None:
        self._chunks: dict[str, list[tuple[int, int]]] = {}
        self._on_bytes = on_bytes

    def kept(
        self, name: str, chunks: Callable[[], Iterable[bytes | memoryview]]
    ) -> Callable[[], Iterator[bytes | memoryview]]:
        """The same chunks, noted as they pass."""

        def passing() -> Iterator[bytes | memoryview]:
            noted = self._chunks[name] = []
            for chunk in chunks():
                noted.append((len(chunk), checksum(chunk)))
                yield chunk
                self._on_bytes(len(chunk))

        return passing

    def verify(
        self, path: Path, expected: Mapping[str, tuple[str, Shape]], on_bytes: Callable[[int], object]
    ) -> None:
        """Reads a file back: its header, and every byte of every tensor. Raises OSError for any difference.

        expected: {name: (dtype as safetensors spells it, shape)}.
        """
        found = header_of(path).tensors
        if {name: (info.dtype, info.shape) for name, info in found.items()} != dict(expected):
            raise OSError(errno.EIO, "the header reads back differently")
        with open(path, "rb", buffering=0) as file:
            for name, info in sorted(found.items(), key=lambda pair: pair[1].start):
                file.seek(info.start)
                for size, noted in self._chunks[name]:
                    buffer = memoryview(bytearray(size))
                    if file.readinto(buffer) != size or checksum(buffer) != noted:
                        raise OSError(errno.EIO, f"{name} reads back differently; check the disk")
                    on_bytes(size)


def checksum(chunk: bytes | memoryview) -> int:
    """crc32 over sums of 4 KiB each: at the speed of memory; crc32 of every byte takes ten times that."""
    view = memoryview(chunk)
    length = len(view) // (8 * _WORDS) * (8 * _WORDS)
    sums = np.frombuffer(view[:length], np.uint64).reshape(-1, _WORDS).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(view[length:], zlib.crc32(sums.tobytes()))
