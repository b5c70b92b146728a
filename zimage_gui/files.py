"""Files on disk: whole or absent, and safetensors headers read without trust. This module knows bytes and
names; it must not know what the tensors mean, nor import torch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import stat
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zimage_gui.errors import Problem, UserError

TEMP_SUFFIX = ".zimage-tmp"
LONGEST_HEADER = 25_000_000
"""Bytes. Headers in the wild stay below 1 MB; parsing more than this would cost gigabytes of memory."""
MOST_ENTRIES = 100_000
"""Tensors of one file, as in burnpack's bounds; a header with more is not parsed."""

BITS_OF_DTYPE = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "BOOL": 8, "U8": 8, "I8": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors)$")
_TEMP = re.compile(r"\.(?P<pid>\d+)-(?P<start>[0-9a-f]{8})(?:[0-9a-f]{8})?" + re.escape(TEMP_SUFFIX) + "$")
_THIS_START = os.urandom(4).hex()
"""Tells this process from an earlier one with its number: in a container every run may have the same."""
_CLOCK_SLACK = 2.0
"""Seconds by which a process's start and a file's time may disagree."""
_MOST_DIMENSIONS = 16


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file whole or not at all: temp file in the same folder, fsync, rename over `path`.

    content: the bytes, or a function that writes them to the open binary file. A missing folder is made.
    The temp file is removed when writing fails; one left by a killed process is swept by `sweep_temp_files`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(path)
    try:
        with io.BufferedWriter(_EagerFile(temp, "xb")) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace_file(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise
    return path


class _EagerFile(io.FileIO):
    """A file whose bytes the system begins to carry to the disk as they come, not first when some gigabytes
    wait: the final fsync of a large file then has little left to do."""

    _STEP = 128 << 20
    _started = _written = 0

    def write(self, data: Any, /) -> int:
        count = super().write(data)
        self._written += count
        if self._written - self._started >= self._STEP and hasattr(os, "posix_fadvise"):
            # On Linux this advice starts the writing; pages that still wait for the disk stay in memory.
            with contextlib.suppress(OSError):
                os.posix_fadvise(
                    self.fileno(), self._started, self._written - self._started, os.POSIX_FADV_DONTNEED
                )
            self._started = self._written
        return count


def unwritten(error: OSError, path: Path, option: str = "output") -> UserError:
    """What a failed writing of `path` means to the user; for `raise … from error`."""
    rule = f"cannot be written ({error.strerror})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        rule = "cannot be written: the disk is full"
    elif error.errno == errno.EFBIG:
        rule = "cannot be written: the drive takes no file of this size (on FAT32 at most 4 GB)"
    return UserError.one(option, str(path), rule, "Choose another folder or drive")


def temp_path(path: Path) -> Path:
    """A fresh name beside `path` that `sweep_temp_files` knows; carries our process id."""
    # 120 characters of the name keep the whole below the 255 bytes of common file systems, in UTF-8 too.
    short = path.name.encode("utf-8", "surrogateescape")[:120].decode("utf-8", "ignore")
    return path.with_name(f".{short}.{os.getpid()}-{_THIS_START}{os.urandom(4).hex()}{TEMP_SUFFIX}")


def replace_file(temp: Path, path: Path) -> None:
    """Rename over `path` and make the rename last. Windows refuses while a virus scanner reads: try again."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0.8, None):
        try:
            os.replace(temp, path)
            break
        except PermissionError:
            if wait is None or sys.platform != "win32":
                raise
            time.sleep(wait)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError:  # some network file systems cannot sync a folder; the rename itself has happened
            pass
        finally:
            os.close(folder)


def replace_folder(temp: Path, folder: Path) -> None:
    """Put a folder made under a temp name in its place. No system renames one over another: an old one steps
    aside under a name that is swept, comes back when the new one cannot be moved, and is removed last."""
    import shutil

    if not folder.is_dir():
        replace_file(temp, folder)
        return
    aside = temp_path(folder)
    replace_file(folder, aside)
    try:
        replace_file(temp, folder)
    except BaseException:
        replace_file(aside, folder)
        raise
    # Windows keeps what someone has open: that is left to the next sweep.
    shutil.rmtree(aside, ignore_errors=True)


def is_file(entry: os.DirEntry[str]) -> bool:
    """`entry.is_file()`, false for a link that leads to itself, where that one raises OSError."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """`entry.is_dir()`, false for a link that leads to itself, where that one raises OSError."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def sweep_temp_files(folder: Path) -> list[Path]:
    """Remove temp files and folders of dead processes directly inside `folder`; return what was removed."""
    import shutil

    swept: list[Path] = []
    if not folder.is_dir():
        return swept
    for path in folder.iterdir():
        match = _TEMP.search(path.name)
        if match is None or _maker_lives(path, int(match["pid"]), match["start"]):
            continue
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            swept.append(path)
    return swept


def _maker_lives(temp: Path, pid: int, start: str) -> bool:
    """Whether the process that made a temp file still runs, and not another that was given its number."""
    import psutil

    if pid == os.getpid():
        return start == _THIS_START
    try:
        changed = temp.stat().st_mtime
        began = psutil.Process(pid).create_time()
    except (OSError, psutil.NoSuchProcess):
        return False
    except psutil.Error:  # not ours to look at
        return True
    return began <= changed + _CLOCK_SLACK


def free_name(path: Path) -> Path:
    """`path` itself while nothing is there, else the first free of `name-2.ext`, `name-3.ext` …"""
    if not os.path.lexists(path):
        return path
    number = 2
    while os.path.lexists(candidate := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    return candidate


@dataclass(frozen=True)
class TensorInfo:
    """dtype as safetensors spells it ("BF16"); start and end: byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def refuse_pipe(path: Path, option: str = "file") -> None:
    """Raises UserError for a pipe, socket or device: opening one waits for ever, reading one never ends."""
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            rule = "is a pipe, socket or device, not a file"
            raise UserError.one(option, path, rule, "Give the path of a file")


def read_header(path: Path, option: str = "file") -> Header:
    """The header of a safetensors file, checked against the file's size, in bounded time and memory.

    Raises UserError (naming `option`) when the file is missing, cut off, not safetensors or inconsistent.
    """
    refuse_pipe(path, option)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(8)
            if len(head) < 8:
                raise _bad(option, path, "is too short to be a safetensors file")
            length = struct.unpack("<Q", head)[0]
            if length > size - 8:
                raise _bad(option, path, "is cut off, or not a safetensors file: its header passes its end")
            if length > LONGEST_HEADER:
                raise _bad(option, path, f"has a header of {length} bytes; at most {LONGEST_HEADER} are read")
            text = file.read(length)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        rule = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise UserError.one(option, path, rule, "Check the path") from error
    return _parse(text, 8 + length, size, option, path)


def _bad(option: str, path: Path, rule: str) -> UserError:
    return UserError.one(option, path, rule, "Download or make the file again, or choose another one")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _parse(text: bytes, data_start: int, size: int, option: str, path: Path) -> Header:
    if text.count(b'"data_offsets"') > MOST_ENTRIES:
        raise _bad(option, path, f"holds more than {MOST_ENTRIES} tensors")
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad(option, path, f"has an unreadable safetensors header ({error})") from error
    if not isinstance(entries, dict):
        raise _bad(option, path, "has a safetensors header that is not a table")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(option, path, "has safetensors metadata that is not text")
    tensors = {}
    for name, entry in entries.items():
        info = _tensor(entry, data_start)
        if info is None:
            raise _bad(option, path, f"has a broken safetensors header: see the entry {name[:100]!r}")
        tensors[name] = info
    expected = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != expected:
            raise _bad(option, path, "has a broken safetensors header: tensors overlap or leave holes")
        expected = info.end
    if expected != size:
        word = "is cut off" if expected > size else "has bytes after its last tensor"
        raise _bad(option, path, f"{word}: {expected} bytes expected, {size} found")
    return Header(tensors, {_whole(name): _whole(value) for name, value in metadata.items()})


def _whole(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no file and no terminal takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tensor(entry: object, data_start: int) -> TensorInfo | None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        return None
    if not _counts(shape) or len(shape) > _MOST_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        return None
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * BITS_OF_DTYPE[dtype]:
        return None
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


class MissingFiles(UserError):
    """A set of files of which some are not there. `present` are those that are."""

    def __init__(self, problem: Problem, present: tuple[Path, ...]) -> None:
        super().__init__([problem])
        self.present = present


def expand_shards(path: Path, option: str = "file") -> list[Path]:
    """All files of a model given by one path: a file, any shard of a `-00001-of-0000N` set, its index, or a
    folder.

    A folder is read by its `*.safetensors.index.json`, else by its only set or file, else by its only .bpk.
    Raises UserError naming the missing files; never leaves the folder the user chose.
    """
    if path.is_dir():
        return _files_of_folder(path, option)
    match = _SHARD.match(path.name)
    if match is None:
        if not path.is_file():
            refuse_pipe(path, option)
            raise UserError.one(option, path, "does not exist", "Check the path")
        return _files_of_index(path, option) if path.name.endswith(_INDEX) else [path]
    start, end = f"{match['stem']}-", f"-of-{match['count']}{match['suffix']}"
    numbers = range(1, int(match["count"]) + 1)
    shards = [path.with_name(f"{start}{number:05d}{end}") for number in numbers]
    return _all_there(shards, option, path)


def _files_of_folder(folder: Path, option: str) -> list[Path]:
    indexes = sorted(folder.glob(f"*{_INDEX}"))
    if len(indexes) == 1:
        return _files_of_index(indexes[0], option)
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    files = files or sorted(file for file in folder.glob("*.bpk") if file.is_file())
    if len(files) == 1:
        return expand_shards(files[0], option)
    match = _SHARD.match(files[0].name) if files else None
    if match and all((other := _SHARD.match(file.name)) and other["stem"] == match["stem"] for file in files):
        return expand_shards(files[0], option)
    rule = "holds several models" if files else "holds no .safetensors or .bpk file"
    raise UserError.one(option, folder, rule, "Give the path of the file that is meant")


def _files_of_index(index: Path, option: str) -> list[Path]:
    try:
        if index.stat().st_size > LONGEST_HEADER:
            raise ValueError("too large")
        table = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(table["weight_map"].values()))
        if not names or not all(isinstance(name, str) and _plain_name(name) for name in names):
            raise ValueError("file names must lie in the same folder")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _bad(option, index, f"is not a readable index of shards ({error})") from error
    sets = {(match["stem"], int(match["count"])) for name in names if (match := _SHARD.match(name))}
    if len(sets) == 1 and (count := next(iter(sets))[1]) > len(names):
        rule = f"names only {len(names)} of the {count} files of its set"
        raise UserError.one(option, index, rule, "Download the index again, or give one of the files")
    return _all_there([index.with_name(name) for name in names], option, index)


def _plain_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\:\x00]", name)


def _all_there(files: list[Path], option: str, asked: Path) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        names = ", ".join(file.name for file in missing[:5]) + (" …" if len(missing) > 5 else "")
        lost = "1 is" if len(missing) == 1 else f"{len(missing)} are"
        rule = f"is a set of {len(files)} files of which {lost} missing: {names}"
        if len(files) == 1:
            rule = f"is the index of one file, which is missing: {names}"
        problem = Problem(option, str(asked), rule, "Download the missing files into the same folder")
        raise MissingFiles(problem, tuple(file for file in files if file not in missing))
    return files
