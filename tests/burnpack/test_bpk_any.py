"""Whatever can stand in a burnpack file is written, read back the same and written again to the same bytes."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zimage_gui.burnpack import (
    BpkEntry,
    bpk_size,
    byte_size,
    copied_entries,
    fresh_param_id,
    read_bpk_header,
    write_bpk,
)
from zimage_gui.cbor import CborError, decode, encode
from zimage_gui.errors import UserError

_TEXT = st.text(max_size=30) | st.integers(22, 300).map(lambda count: "n" * count)
_PLAIN = ("F64", "F32", "Flex32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "Bool")
_DTYPES = st.sampled_from((*_PLAIN, {"Bool": "Native"}, {"Bool": "U8"}, {"Bool": "U32"}))
_SCHEMES = st.fixed_dictionaries(
    {"value": st.sampled_from(("Q8S", "Q4F", "E4M3"))},
    optional={
        "block": st.none() | st.lists(st.integers(0, 255), max_size=5),
        "store": _TEXT | st.dictionaries(_TEXT, st.integers(0, 3), max_size=1),
    },
)
_IDS = (
    st.none()
    | st.integers(0, 2**64 - 1)
    | st.sampled_from((23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32))
)
_SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda value: ("Int", value)),
    st.integers(0, 2**64 - 1).map(lambda value: ("UInt", value)),
    st.floats(allow_nan=False).map(lambda value: ("Float", value)),
    st.booleans().map(lambda value: ("Bool", value)),
)
_SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def _entries(draw):
    """Tensors with random names; their bytes come from a counter, in one or more chunks."""
    entries = []
    for name in draw(st.lists(_TEXT, max_size=6, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=6)))
        if draw(st.integers(0, 4)) == 0:
            dtype, size = {"QFloat": draw(_SCHEMES)}, draw(st.integers(0, 700))
        else:
            dtype = draw(_DTYPES)
            size = byte_size(dtype, shape)
        data = bytes((len(entries) * 37 + index) % 251 for index in range(size))
        cut = draw(st.integers(0, size))
        entries.append(BpkEntry(name, dtype, shape, [data[:cut], data[cut:]], draw(_IDS), size))
    return entries


@_SETTINGS
@given(_entries(), st.dictionaries(_TEXT, _TEXT, max_size=4), st.dictionaries(_TEXT, _SCALARS, max_size=4))
def test_anything_written_reads_back_the_same_and_again_to_the_same_bytes(
    tmp_path, entries, metadata, scalars
):
    path = write_bpk(tmp_path / "a.bpk", entries, metadata, scalars)
    header, content = read_bpk_header(path), path.read_bytes()
    assert bpk_size(entries, metadata, scalars) == len(content)
    assert (header.metadata, header.scalars, header.alignment) == (metadata, scalars, "aligned")
    assert {name: (t.dtype, t.shape, t.param_id) for name, t in header.tensors.items()} == {
        entry.name: (entry.dtype, entry.shape, entry.param_id) for entry in entries
    }
    for entry in entries:
        tensor = header.tensors[entry.name]
        assert content[tensor.start : tensor.end] == b"".join(entry.chunks)
        assert tensor.start % 256 == 0
    filled = [entry.name for entry in entries if entry.bytes]
    assert [name for name, tensor in header.tensors.items() if tensor.end > tensor.start] == filled
    again = write_bpk(tmp_path / "b.bpk", copied_entries(path, header), header.metadata, header.scalars)
    assert again.read_bytes() == content


@_SETTINGS
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | _TEXT | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
))  # fmt: skip
def test_any_value_of_cbor_comes_back(value):
    assert repr(decode(encode(value))) == repr(value)


@_SETTINGS
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data):
    try:
        value = decode(data)
    except CborError:
        return
    assert repr(decode(encode(value))) == repr(value)


def test_floats_are_as_short_as_keeps_them():
    assert [encode(value).hex() for value in (0.5, 0.001, 1e5, 3.4e38, float("inf"))] == [
        "f93800", "fb3f50624dd2f1a9fc", "fa47c35000", "fb47eff933c78cdfad", "f97c00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 9**6,
        b"\x9f" * 9**6,
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x7b" + b"\xff" * 8,
        b"\x9f" + b"\x60" * 3_000_000,
    ],
    ids=["lists in lists", "open lists in lists", "long list", "long map", "long text", "many texts"],
)
def test_a_hostile_table_is_refused_before_it_takes_time_or_memory(data, tmp_path):
    path = tmp_path / "hostile.bpk"
    table = encode({"x": 0})[:-1] + data
    path.write_bytes(struct.pack("<4sHI", b"NRUB", 1, len(table)) + table)
    with pytest.raises(UserError, match=r"nested too deep|a list that is too long|ends too soon"):
        read_bpk_header(path)


def test_a_tensor_given_twice_in_the_table_is_refused(tmp_path):
    path = write_bpk(tmp_path / "a.bpk", [BpkEntry(name, "U8", (1,), [b"1"]) for name in "ab"], {})
    path.write_bytes(path.read_bytes().replace(b"\x61b", b"\x61a"))
    with pytest.raises(UserError, match="'a' twice"):
        read_bpk_header(path)


def test_what_would_be_a_broken_file_is_never_left_behind(tmp_path):
    for entries in (
        [BpkEntry("a", "U8", (2,), [b"1"])],
        [BpkEntry("a", "U8", (1,), [b"12"])],
        [BpkEntry("a", "U8", (1,), [b"1"]), BpkEntry("a", "U8", (1,), [b"1"])],
        [BpkEntry("a", "F8", (1,), [b"1"])],
        [BpkEntry("\ud800", "U8", (1,), [b"1"])],
    ):
        with pytest.raises(ValueError):
            write_bpk(tmp_path / "a.bpk", entries, {})
    assert list(tmp_path.iterdir()) == []


def test_ids_made_here_are_the_same_for_the_same_name():
    assert fresh_param_id("layers.0.attention.qkv.weight") == fresh_param_id("layers.0.attention.qkv.weight")
    assert len({fresh_param_id(f"layers.{number}.w") >> 32 for number in range(100)}) == 100


def test_a_file_that_shrinks_while_it_is_copied_is_named(tmp_path):
    path = write_bpk(tmp_path / "a.bpk", [BpkEntry("a", "U8", (300,), [bytes(300)])], {})
    entries = copied_entries(path, read_bpk_header(path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="became shorter"):
        write_bpk(tmp_path / "b.bpk", entries, {})
