"""A bounded fuzzer over the two header readers: mutated files are refused in words or read as they are.

Three questions per file: does a reader end in anything but an answer or a UserError, does it take long, and does it
say something else than an independent reader does? Equal seeds give equal files.
"""

import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from zimage_gui.burnpack import copied_entries, read_bpk_header, write_bpk
from zimage_gui.cbor import CborError, decode, encode
from zimage_gui.errors import UserError
from zimage_gui.files import read_header
from zimage_gui.model.recognise import recognise

GOLDEN = Path(__file__).parents[1] / "data" / "burnpack"
KEPT = Path(__file__).parent / "seeds"
SLOWEST = 10.0
"""Processor seconds for one small file; a thousand times what the slowest takes."""
_SMALL = 20_000
_NUMBERS = (0, 1, 2, 4, 23, 24, 127, 128, 255, 256, 257, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (
    "tensors",
    "metadata",
    "scalars",
    "dtype",
    "shape",
    "data_offsets",
    "param_id",
    "F32",
    "Bool",
    "QFloat",
    "Native",
    "",
    "é",
    "a.b.weight",
    "norm.gamma",
)
_SAFETENSORS_WORDS = (
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "F32",
    "BF16",
    "F8_E4M3",
    "",
    "norm.gamma",
)


def seeds() -> list[bytes]:
    """Small files of burn, safetensors files, and the kept files."""
    found = [path.read_bytes() for path in sorted(GOLDEN.rglob("*.bpk")) if path.stat().st_size <= _SMALL]
    for count in (0, 1, 4):
        table = {
            f"layers.{n}.w": {
                "dtype": "F32",
                "shape": [2, n + 1],
                "data_offsets": [4 * n * (n + 1), 4 * (n + 1) * (n + 2)],
            }
            for n in range(count)
        }
        text = json.dumps({"__metadata__": {"format": "pt"}} | table).encode()
        found.append(struct.pack("<Q", len(text)) + text + bytes(range(4 * count * (count + 1))))
    return found + kept()


def kept() -> list[bytes]:
    """One mutated file for each sentence a reader has, and every file an earlier run has stumbled over."""
    return [path.read_bytes() for path in sorted(KEPT.glob("*")) if path.is_file()]


def mutations(seed: int) -> Iterator[bytes]:
    """Endless mutated files, each of them a seed file changed one to three times."""
    rng, start = random.Random(seed), seeds()
    while True:
        data = rng.choice(start)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = (_mutate_table if rng.random() < 0.6 else _mutate_bytes)(rng, data)
        yield data


def _mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    at, other = rng.randint(0, len(data)), rng.randint(0, len(data))
    low, high = sorted((at, other))
    kind = rng.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return (
            data[:at]
            + bytes([rng.choice((0, 1, 0x1B, 0x5F, 0x7F, 0x80, 0x9F, 0xA1, 0xBF, 0xFF))])
            + data[at + 1 :]
        )
    if kind == 2:
        return data[:low] + data[high:]
    if kind == 3:
        return data[:high] + data[low:high] + data[high:]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data + bytes(rng.choice((1, 4, 246, 256)))
    number = struct.pack("<I", rng.choice(_NUMBERS) & 0xFFFFFFFF)
    return data[:6] + number + data[10:]


def _mutate_table(rng: random.Random, data: bytes) -> bytes:
    """Changes the meaning of a header and keeps its form: the mistakes a checksum of bytes would not show."""
    if data[:4] == b"NRUB" and len(data) >= 10:
        length = int.from_bytes(data[6:10], "little")
        try:
            root = decode(data[10 : 10 + length])
        except CborError:
            return _mutate_bytes(rng, data)
        try:
            table = encode((_mild if rng.random() < 0.5 else _mutate_value)(rng, root, _WORDS))
        except ValueError:  # a number beyond 64 bits
            return data
        body = data[-(-(10 + length) // 256) * 256 :]
        head = data[:6] + struct.pack("<I", len(table)) + table
        return head + (bytes(-len(head) % 256) if rng.random() < 0.8 else b"") + body
    length = int.from_bytes(data[:8], "little")
    try:
        root = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return _mutate_bytes(rng, data)
    text = json.dumps(_mutate_value(rng, root, _SAFETENSORS_WORDS)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _mild(rng: random.Random, root: Any, words: tuple[str, ...]) -> Any:
    """A change that most often leaves the file whole, so that wrong answers can be seen and not only refusals."""
    if not isinstance(root, dict) or not isinstance(root.get("tensors"), dict):
        return root
    kind, tensors = rng.randrange(6), dict(root["tensors"])
    if kind == 0:
        return root | {"metadata": {rng.choice(words): rng.choice(words) * rng.randint(1, 40)}}
    if kind == 1:
        return root | {"scalars": {rng.choice(words): {"UInt": rng.choice(_NUMBERS)}}}
    if kind == 2 or not tensors:
        return dict(reversed(root.items())) | {rng.choice(words): _mutate_value(rng, None, words)}
    name = rng.choice(list(tensors))
    entry = tensors.pop(name)
    if kind == 3:
        return root | {"tensors": {rng.choice(words) + name: entry} | tensors}
    if isinstance(entry, dict) and kind == 4:
        entry = dict(reversed(entry.items())) | {"param_id": rng.choice(_NUMBERS)}
    elif isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        entry = entry | {
            "shape": [*entry["shape"][::-1], 1],
            "dtype": rng.choice(("U8", "F32", entry.get("dtype"))),
        }
    return root | {"tensors": tensors | {name: entry}}


def _mutate_value(rng: random.Random, value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(10)
        if kind == 0:
            return {name: inner for name, inner in value.items() if name != key}
        if kind == 1:
            return value | {rng.choice(words): value[key]}
        if kind == 2:
            return {(rng.choice(words) if name == key else name): inner for name, inner in value.items()}
        return value | {key: _mutate_value(rng, value[key], words)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        kind = rng.randrange(8)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return [*value[:at], _mutate_value(rng, value[at], words), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.7:
        return max(0, value + rng.choice((-256, -4, -1, 1, 4, 256)))
    return rng.choice(
        (
            rng.choice(_NUMBERS),
            rng.choice(words),
            None,
            True,
            -1,
            0.5,
            [],
            {},
            {rng.choice(words): rng.choice(words)},
        )
    )


def check(content: bytes, folder: Path) -> bool:
    """Puts one file before both readers; True when one of them took it. Raises for a crash, a hang, or an answer
    that an independent reader contradicts."""
    path = folder / "fuzzed.bin"
    path.write_bytes(content)
    began = time.process_time()
    taken = _check_bpk(path, content) if content[:4] == b"NRUB" else _check_safetensors(path, content)
    _ask(lambda: recognise(path))
    if time.process_time() - began > SLOWEST:
        raise AssertionError("a reader took too long")
    return taken


def _ask(question: Any) -> Any:
    """The answer, or None for a refusal, which must be one sentence."""
    try:
        return question()
    except UserError as error:
        assert "\n" not in str(error), str(error)
        return None


def _check_bpk(path: Path, content: bytes) -> bool:
    header = _ask(lambda: read_bpk_header(path))
    if header is None:
        return False
    found = {
        name: (t.dtype, list(t.shape), t.param_id, content[t.start : t.end])
        for name, t in header.tensors.items()
    }
    assert found == naive_bpk(content)
    again = write_bpk(
        path.with_name("again.bpk"), copied_entries(path, header), header.metadata, header.scalars
    )
    second, rewritten = read_bpk_header(again), again.read_bytes()
    assert found == naive_bpk(rewritten)
    assert second.metadata == header.metadata
    # As text, for NaN is not equal to itself.
    assert repr(sorted(second.scalars.items())) == repr(sorted(header.scalars.items()))
    third = write_bpk(
        path.with_name("third.bpk"), copied_entries(again, second), second.metadata, second.scalars
    )
    assert third.read_bytes() == rewritten
    return True


def _check_safetensors(path: Path, content: bytes) -> bool:
    header = _ask(lambda: read_header(path))
    if header is None:
        return False
    found = {
        name: (info.dtype, list(info.shape), content[info.start : info.end])
        for name, info in header.tensors.items()
    }
    try:
        theirs = safetensors.deserialize(content)
    except safetensors.SafetensorError:  # the library refuses a metadata table of null, for one
        return True
    assert found == {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in theirs}
    return True


_SIZES = {
    "F64": 8,
    "F32": 4,
    "Flex32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "Bool": 1,
}


def naive_bpk(content: bytes) -> dict[str, tuple[Any, list[int], int | None, bytes]]:
    """An independent reader that trusts: what a table says, cut out of the file."""
    length = int.from_bytes(content[6:10], "little")
    root, _ = _naive_value(content, 10)
    entries = root["tensors"]
    last = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    aligned = (10 + length + 255) // 256 * 256
    data = aligned if len(content) == aligned + last else 10 + length
    found = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        raw = content[data + start : data + end]
        assert len(raw) == end - start
        if isinstance(entry["dtype"], str):
            count = 1
            for size in entry["shape"]:
                count *= size
            assert len(raw) == count * _SIZES[entry["dtype"]]
        found[name] = (entry["dtype"], entry["shape"], entry.get("param_id"), raw)
    return found


def _naive_value(data: bytes, at: int) -> tuple[Any, int]:
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        width = {25: 2, 26: 4, 27: 8}.get(info, 0)
        plain = {20: False, 21: True, 22: None, 23: None}
        return (
            struct.unpack({2: ">e", 4: ">f", 8: ">d"}[width], data[at : at + width])[0]
            if width
            else plain[info]
        ), at + width
    width = 1 << info - 24 if 24 <= info <= 27 else 0
    number = int.from_bytes(data[at : at + width], "big") if width else info
    at += width
    opened = info == 31
    if major in (0, 1):
        return (number if major == 0 else -1 - number), at
    if major in (2, 3):
        parts = []
        while opened and data[at] != 0xFF:
            part, at = _naive_value(data, at)
            parts.append(part)
        if opened:
            return (b"" if major == 2 else "").join(parts), at + 1
        raw = data[at : at + number]
        return (raw if major == 2 else raw.decode()), at + number
    items = []
    while (data[at] != 0xFF) if opened else (len(items) < number * (major - 3)):
        item, at = _naive_value(data, at)
        items.append(item)
    whole = items if major == 4 else dict(zip(items[::2], items[1::2], strict=True))
    return whole, at + opened
