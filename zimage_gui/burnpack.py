"""Burnpack files (.bpk) of the Rust framework burn: headers read without trust, files written as burn writes
them. This module knows bytes and names; it must not know what the tensors mean, nor import torch.

A file is ten bytes (magic, version, length of the table), the table in CBOR, and the tensors' bytes, row by
row and little-endian. Since burn 0.20 the data and every tensor in it begin at a multiple of 256 bytes;
burn 0.19 wrote the same magic and version and no padding at all. Only the file's exact size tells them apart.
"""

from __future__ import annotations

import errno
import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeGuard, TypeVar

from zimage_gui.behind import writing_behind
from zimage_gui.cbor import CborError, decode, encode
from zimage_gui.errors import UserError
from zimage_gui.files import TensorInfo, atomic_write, refuse_pipe

MAGIC = b"NRUB"
VERSION = 1
STEP = 256
"""Bytes; data and tensors of an aligned file begin at multiples of this."""
LONGEST_TABLE = 100 * 1024**2
LONGEST_FILE = 100 * 1024**3
LONGEST_TENSOR = 10 * 1024**3
MOST_TENSORS = 100_000
"""The four bounds are those of burn's own reader."""
MOST_DIMENSIONS = 16

_HEAD = struct.Struct("<4sHI")
_T = TypeVar("_T")
_CHUNK = 8 * 1024**2

# burn's spelling: bits and the spelling of safetensors. Flex32 is kept as F32; it may be rounded in memory.
_PLAIN = {
    "F64": (64, "F64"), "F32": (32, "F32"), "Flex32": (32, "F32"), "F16": (16, "F16"), "BF16": (16, "BF16"),
    "I64": (64, "I64"), "I32": (32, "I32"), "I16": (16, "I16"), "I8": (8, "I8"),
    "U64": (64, "U64"), "U32": (32, "U32"), "U16": (16, "U16"), "U8": (8, "U8"), "Bool": (8, "BOOL"),
}  # fmt: skip
# Since burn 0.21 a bool says how it is stored.
_BOOLS = {"Native": (8, "BOOL"), "U8": (8, "BOOL"), "U32": (32, "U32")}
_SCALARS: dict[str, tuple[type, ...]] = {"Int": (int,), "UInt": (int,), "Float": (float,), "Bool": (bool,)}
_REMEDY = "Download or make the file again, or choose another one"

Dtype = str | Mapping[str, object]
"""As burn spells it: "F32", "Bool" (until 0.21), {"Bool": "Native"} (since), {"QFloat": {...}}."""
Scalar = tuple[str, int | float | bool]
"""("Int" | "UInt" | "Float" | "Bool", value)."""


@dataclass(frozen=True)
class BpkTensor:
    """start, end: byte offsets from the beginning of the file; param_id: burn's 64-bit id of it, or None."""

    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int
    param_id: int | None = None

    @property
    def quantised(self) -> bool:
        return quantisation(self.dtype) is not None

    @property
    def info(self) -> TensorInfo:
        """The same with the dtype as safetensors spells it; "QFloat Q8S" and the like for quantised ones."""
        scheme = quantisation(self.dtype)
        dtype = f"QFloat {scheme}" if scheme is not None else _layout(self.dtype)[1]
        return TensorInfo(dtype, self.shape, self.start, self.end)


@dataclass(frozen=True)
class BpkHeader:
    """tensors: by name, in the order in which their bytes lie in the file."""

    version: int
    alignment: Literal["aligned", "legacy"]
    tensors: dict[str, BpkTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)


def quantisation(dtype: Dtype) -> str | None:
    """The name of the packed values ("Q8S", "Q4F", "E4M3" …) of a quantised dtype, None for any other."""
    scheme = dtype.get("QFloat") if isinstance(dtype, Mapping) else None
    return str(scheme["value"]) if isinstance(scheme, Mapping) else None


def byte_size(dtype: Dtype, shape: Sequence[int]) -> int:
    """Bytes of a tensor that is not quantised; for those only the file tells."""
    return math.prod(shape) * _layout(dtype)[0] // 8


def _layout(dtype: Dtype) -> tuple[int, str]:
    """Bits per value and the spelling of safetensors. Raises ValueError for an unknown or quantised dtype."""
    if isinstance(dtype, str) and dtype in _PLAIN:
        return _PLAIN[dtype]
    store = dtype.get("Bool") if isinstance(dtype, Mapping) and len(dtype) == 1 else None
    if isinstance(store, str) and store in _BOOLS:
        return _BOOLS[store]
    raise ValueError(f"{str(dtype)[:100]} is no dtype of burn")


def is_bpk(path: Path) -> bool:
    """Whether a file is, or by its name wants to be, a burnpack file."""
    if path.suffix.lower() == ".bpk" or not path.is_file():
        return path.is_file()
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_bpk_header(path: Path, option: str = "file") -> BpkHeader:
    """The header of a burnpack file, checked against the file's size, in bounded time and memory.

    Takes every version of the format. Stricter than burn where a file could not mean what it says: names
    given twice, overlaps, lengths that are not those of shape and dtype, bytes after the last tensor. Raises
    UserError (naming `option`) when the file is missing, cut off, no burnpack file or inconsistent.
    """
    refuse_pipe(path, option)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise _Broken("is too short to be a burnpack file")
            magic, version, length = _HEAD.unpack(head)
            _check_head(magic, version, length, size)
            table = file.read(length)
        return _parse(decode(table), version, _HEAD.size + length, size)
    except CborError as error:
        raise _bad(option, path, f"has an unreadable burnpack table ({error})") from error
    except _Broken as error:
        raise _bad(option, path, str(error)) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        rule = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise UserError.one(option, path, rule, "Check the path") from error


class _Broken(ValueError):
    """What is wrong with a file, as the rest of a sentence."""


def _bad(option: str, path: Path, rule: str) -> UserError:
    return UserError.one(option, path, rule, _REMEDY)


def _check_head(magic: bytes, version: int, length: int, size: int) -> None:
    if magic != MAGIC:
        raise _Broken("is not a burnpack file: it does not begin with its four letters")
    if version > VERSION:
        raise _Broken(f"is of version {version} of the burnpack format; at most {VERSION} is known")
    if length > LONGEST_TABLE or size > LONGEST_FILE:
        raise _Broken("is larger than the burnpack format allows")
    if _HEAD.size + length > size:
        raise _Broken("is cut off: its table passes its end")


def _parse(root: object, version: int, after_table: int, size: int) -> BpkHeader:
    if not isinstance(root, dict) or not isinstance(root.get("tensors"), dict):
        raise _Broken("has a burnpack table without tensors")
    if len(root["tensors"]) > MOST_TENSORS:
        raise _Broken(f"holds more than {MOST_TENSORS} tensors")
    found = {name: _tensor(name, entry) for name, entry in root["tensors"].items()}
    order = sorted(found, key=lambda name: (found[name].start, found[name].end))
    last = 0
    for name in order:
        if found[name].start < last:
            raise _Broken(f"has a broken burnpack table: {name[:100]!r} overlaps another tensor")
        last = found[name].end
    alignment, data = _data_start(found, last, after_table, size)
    tensors = {
        name: BpkTensor(one.dtype, one.shape, data + one.start, data + one.end, one.param_id)
        for name, one in ((name, found[name]) for name in order)
    }
    return BpkHeader(version, alignment, tensors, _metadata(root), _scalars(root))


def _data_start(
    found: Mapping[str, BpkTensor], last: int, after_table: int, size: int
) -> tuple[Literal["aligned", "legacy"], int]:
    aligned = _aligned(after_table)
    if size == aligned + last and all(one.start % STEP == 0 for one in found.values()):
        return "aligned", aligned
    if size == after_table + last and sum(one.end - one.start for one in found.values()) == last:
        return "legacy", after_table
    if size == aligned + last:
        raise _Broken("has a broken burnpack table: its tensors do not begin at multiples of 256 bytes")
    word = "is cut off" if size < aligned + last else "has bytes after its last tensor"
    counts = f"{aligned + last} bytes expected, or {after_table + last} in a file of burn 0.19; {size} found"
    raise _Broken(f"{word}: {counts}")


def _aligned(offset: int) -> int:
    return -(-offset // STEP) * STEP


def _tensor(name: str, entry: object) -> BpkTensor:
    """A tensor whose offsets still count from the beginning of the data."""
    broken = _Broken(f"has a broken burnpack table: see the entry {name[:100]!r}")
    if not isinstance(entry, dict):
        raise broken
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    param_id = entry.get("param_id")
    if not _counts(shape, 2**63) or len(shape) > MOST_DIMENSIONS or not _counts(offsets, 2**63):
        raise broken
    if len(offsets) != 2 or not (param_id is None or _counts([param_id], 2**64)):
        raise broken
    start, end = offsets
    if not 0 <= end - start <= LONGEST_TENSOR:
        raise broken
    if not _is_dtype(dtype):
        raise _Broken(f"has a tensor {name[:100]!r} of an unknown dtype, {str(dtype)[:60]}")
    if quantisation(dtype) is None and end - start != byte_size(dtype, shape):
        raise broken
    return BpkTensor(dtype, tuple(shape), start, end, param_id)


def _is_dtype(value: object) -> TypeGuard[Dtype]:
    if isinstance(value, dict) and len(value) == 1 and isinstance(scheme := value.get("QFloat"), dict):
        return isinstance(scheme.get("value"), str)
    return (isinstance(value, str) and value in _PLAIN) or value in [{"Bool": store} for store in _BOOLS]


def _counts(value: object, limit: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < limit for item in value)


def _metadata(root: Mapping[str, object]) -> dict[str, str]:
    found = root.get("metadata", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _Broken("has burnpack metadata that is not text")
    return found


def _scalars(root: Mapping[str, object]) -> dict[str, Scalar]:
    found = root.get("scalars", {})
    if not isinstance(found, dict) or not all(_is_scalar(value) for value in found.values()):
        raise _Broken("has burnpack scalars that are not numbers")
    return {name: next(iter(value.items())) for name, value in found.items()}


def _is_scalar(entry: object) -> bool:
    if not isinstance(entry, dict) or len(entry) != 1:
        return False
    ((kind, value),) = entry.items()
    if kind not in _SCALARS or type(value) not in _SCALARS[kind]:
        return False
    low, high = {"Int": (-(2**63), 2**63), "UInt": (0, 2**64)}.get(kind, (-math.inf, math.inf))
    return kind in ("Float", "Bool") or low <= value < high


@dataclass(frozen=True)
class BpkEntry:
    """A tensor to be written. chunks: its bytes in pieces, or a function that gives them when their turn has
    come; size: bytes in all, needed for a quantised tensor only.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    chunks: Iterable[bytes | memoryview] | Callable[[], Iterable[bytes | memoryview]]
    param_id: int | None = None
    size: int | None = None

    @property
    def bytes(self) -> int:
        return byte_size(self.dtype, self.shape) if self.size is None else self.size


def fresh_param_id(name: str) -> int:
    """A param id for a tensor that has none: burn draws 64 random bits; these come from the name, so that
    equal input gives an equal file.
    """
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "little")


def copied_entries(path: Path, header: BpkHeader) -> list[BpkEntry]:
    """Every tensor of a burnpack file as it is, quantised ones too, in the file's order."""
    return [
        BpkEntry(name, one.dtype, one.shape, partial(_bytes_of, path, one), one.param_id, one.end - one.start)
        for name, one in header.tensors.items()
    ]


def _bytes_of(path: Path, tensor: BpkTensor) -> Iterable[bytes]:
    with open(path, "rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                rule = "became shorter while it was read"
                raise UserError.one("file", path, rule, "Check the disk and start again")
            left -= len(chunk)
            yield chunk


def bpk_size(
    entries: Sequence[BpkEntry], metadata: Mapping[str, str], scalars: Mapping[str, Scalar] | None = None
) -> int:
    """Bytes that `write_bpk` will need on the disk."""
    table, offsets = _table(entries, metadata, scalars or {})
    return _aligned(_HEAD.size + len(table)) + max((end for _, end in offsets), default=0)


def write_bpk(
    path: Path,
    entries: Sequence[BpkEntry],
    metadata: Mapping[str, str],
    scalars: Mapping[str, Scalar] | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Path:
    """Writes an aligned burnpack file atomically, its data in the order of `entries`, and reads it back.

    on_bytes: called with the length of every chunk; what it raises keeps the file from appearing. Equal input
    gives equal bytes, and those of burn's own writer for the same names, ids and metadata. Raises OSError for
    a file that reads back differently, and ValueError for a name twice or an entry whose chunks are not as
    long as its shape and dtype say.
    """
    table, offsets = _table(entries, metadata, scalars or {})
    data = _aligned(_HEAD.size + len(table))

    def write(file: BinaryIO) -> None:
        file.write(_HEAD.pack(MAGIC, VERSION, len(table)) + table)
        file.write(bytes(data - _HEAD.size - len(table)))
        with writing_behind(file) as put:
            written = 0
            for entry, (start, end) in zip(entries, offsets, strict=True):
                put(bytes(start - written))
                written = start
                for chunk in entry.chunks() if callable(entry.chunks) else entry.chunks:
                    size = memoryview(chunk).nbytes
                    written += size
                    put(chunk)
                    on_bytes(size)
                if written != end:
                    raise ValueError(f"{entry.name} has {written - start} bytes instead of {end - start}")
        expected = {
            entry.name: BpkTensor(entry.dtype, tuple(entry.shape), data + start, data + end, entry.param_id)
            for entry, (start, end) in zip(entries, offsets, strict=True)
        }
        if read_bpk_header(Path(file.name)).tensors != expected:
            raise OSError(errno.EIO, "the table reads back differently; check the disk")

    return atomic_write(path, write)


def _table(
    entries: Sequence[BpkEntry], metadata: Mapping[str, str], scalars: Mapping[str, Scalar]
) -> tuple[bytes, list[tuple[int, int]]]:
    """The CBOR table and every entry's offsets from the beginning of the data."""
    descriptors: dict[str, dict[str, object]] = {}
    offsets = []
    end = 0
    for entry in entries:
        if entry.name in descriptors:
            raise ValueError(f"{entry.name} is given twice")
        start = _aligned(end)
        end = start + entry.bytes
        offsets.append((start, end))
        identity = {} if entry.param_id is None else {"param_id": entry.param_id}
        descriptors[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end], **identity,
        }  # fmt: skip
    root: dict[str, object] = {"tensors": _sorted(descriptors)}
    if metadata:
        root["metadata"] = _sorted(metadata)
    if scalars:
        root["scalars"] = {name: dict([scalar]) for name, scalar in _sorted(scalars).items()}
    return encode(root), offsets


def _sorted(table: Mapping[str, _T]) -> dict[str, _T]:
    return {name: table[name] for name in sorted(table, key=lambda name: name.encode("utf-8"))}
