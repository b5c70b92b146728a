"""The part of CBOR (RFC 8949) that a burnpack header uses, read without trust. This module knows bytes and
plain values; it must not know what they mean, nor import torch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

DEEPEST = 128
MOST_ITEMS = 2_500_000
"""Values in one document. A header of 100,000 tensors, the most the format allows, has 1.7 million."""
LONGEST_LIST = 1000
"""Values in one list, and pieces in one text; a header's longest list is a shape."""

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE = 0, 1, 2, 3, 4, 5, 7
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_INDEFINITE = 31
_BREAK = object()
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_CONSTANTS = {20: False, 21: True, 22: None, 23: None}


class CborError(ValueError):
    """Bytes that are not CBOR, or not the part of it that is read here; the message says where."""


def decode(data: bytes) -> object:
    """The one value that `data` spells: None, bool, int, float, str, bytes, list or dict with text keys.

    Stricter than the standard: a key may stand once in a map, tags are refused, nothing may follow the value.
    Lengths left open and heads longer than needed are read. Raises CborError, in bounded time and memory.
    """
    decoder = _Decoder(data)
    value = decoder.value(0)
    if value is _BREAK:
        raise decoder.wrong("a break without a beginning")
    if decoder.at != len(data):
        raise decoder.wrong("bytes follow the table")
    return value


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.items = data, 0, 0

    def wrong(self, what: str) -> CborError:
        return CborError(f"{what} at byte {self.at}")

    def value(self, depth: int) -> object:
        self.items += 1
        if self.items > MOST_ITEMS:
            raise self.wrong("too many values")
        if depth > DEEPEST:
            raise self.wrong("values nested too deep")
        head = self.take(1)[0]
        major, info = head >> 5, head & 31
        if major == _SIMPLE:
            return self.simple(info)
        length = self.argument(major, info)
        if major in (_TEXT, _BYTES):
            return self.string(major, length)
        if major == _ARRAY:
            return self.array(length, depth)
        if major == _MAP:
            return self.map(length, depth)
        if length is None or major > _MAP:
            raise self.wrong("a tag or an open number")
        return length if major == _UINT else -1 - length

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise self.wrong("the table ends too soon")
        found = self.data[self.at : end]
        self.at = end
        return found

    def argument(self, major: int, info: int) -> int | None:
        """The number in a head; None for a length left open."""
        if info < 24:
            return info
        if info in _WIDTHS:
            return int.from_bytes(self.take(_WIDTHS[info]), "big")
        if info == _INDEFINITE:
            return None
        raise self.wrong("an unknown head")

    def simple(self, info: int) -> object:
        if info in _CONSTANTS:
            return _CONSTANTS[info]
        if info in _FLOATS:
            number: float = struct.unpack(_FLOATS[info], self.take(_WIDTHS[info]))[0]
            return number
        if info == _INDEFINITE:
            return _BREAK
        raise self.wrong("an unknown simple value")

    def string(self, major: int, length: int | None) -> str | bytes:
        raw = self.take(length) if length is not None else b"".join(self.pieces(major))
        if major == _BYTES:
            return raw
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong("text that is not UTF-8") from error

    def pieces(self, major: int) -> list[bytes]:
        found: list[bytes] = []
        while (head := self.take(1)[0]) != 0xFF:
            length = self.argument(major, head & 31)
            if head >> 5 != major or length is None or len(found) >= LONGEST_LIST:
                raise self.wrong("a broken text")
            found.append(self.take(length))
        return found

    def array(self, length: int | None, depth: int) -> list[object]:
        found: list[object] = []
        while length is None or len(found) < length:
            value = self.value(depth + 1)
            if value is _BREAK:
                if length is None:
                    break
                raise self.wrong("a break inside a list")
            if len(found) >= LONGEST_LIST:
                raise self.wrong("a list that is too long")
            found.append(value)
        return found

    def map(self, length: int | None, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        while length is None or len(found) < length:
            key = self.value(depth + 1)
            if key is _BREAK and length is None:
                break
            if not isinstance(key, str):
                raise self.wrong("a key that is not text")
            value = self.value(depth + 1)
            if value is _BREAK:
                raise self.wrong("a key without a value")
            if key in found:
                raise self.wrong(f"{key[:100]!r} twice")
            found[key] = value
        return found


def encode(value: object) -> bytes:
    """Canonical CBOR: known lengths, shortest heads, each float as short as keeps it. Maps keep their order.

    Raises ValueError for what CBOR, or this part of it, cannot hold.
    """
    out = bytearray()
    _put(out, value)
    return bytes(out)


def _put(out: bytearray, value: object) -> None:
    if value is None or isinstance(value, bool):
        out.append(0xF6 if value is None else 0xF5 if value else 0xF4)
    elif isinstance(value, int):
        _head(out, _UINT if value >= 0 else _NEGATIVE, value if value >= 0 else -1 - value)
    elif isinstance(value, float):
        out += _float(value)
    elif isinstance(value, (str, bytes)):
        raw = value.encode("utf-8") if isinstance(value, str) else value
        _head(out, _TEXT if isinstance(value, str) else _BYTES, len(raw))
        out += raw
    elif isinstance(value, Mapping):
        _head(out, _MAP, len(value))
        for key, inner in value.items():
            _put(out, key)
            _put(out, inner)
    elif isinstance(value, Sequence):
        _head(out, _ARRAY, len(value))
        for inner in value:
            _put(out, inner)
    else:
        raise ValueError(f"{type(value).__name__} has no place in a burnpack header")


def _head(out: bytearray, major: int, number: int) -> None:
    if number < 24:
        out.append(major << 5 | number)
        return
    for info, width in _WIDTHS.items():
        if number < 1 << 8 * width:
            out.append(major << 5 | info)
            out += number.to_bytes(width, "big")
            return
    raise ValueError(f"{number} does not fit 64 bits")


def _float(value: float) -> bytes:
    exact = struct.pack(">d", value)
    for info in (25, 26):
        try:
            short = struct.pack(_FLOATS[info], value)
        except OverflowError:
            continue
        if struct.pack(">d", struct.unpack(_FLOATS[info], short)[0]) == exact:
            return bytes([_SIMPLE << 5 | info]) + short
    return bytes([_SIMPLE << 5 | 27]) + exact
