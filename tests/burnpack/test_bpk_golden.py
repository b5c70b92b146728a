"""Files that burn itself wrote are read to the byte and written again to the byte; odd ones never mislead."""

import hashlib
import json

import pytest
from making import GOLDEN

from zimage_gui.burnpack import copied_entries, read_bpk_header, write_bpk
from zimage_gui.errors import UserError
from zimage_gui.model.checkpoint import open_checkpoint
from zimage_gui.model.recognise import recognise

MANIFEST = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))

# Meant otherwise than the format's, but with one meaning only, the one every reader of burn finds.
ODD_BUT_CLEAR = {
    "bool_unit_string": ["m", "Bool", [4], None, "01000101"],
    "descriptor_keys_reordered": ["weight", "F32", [2, 2], 7, "0000803f000000400000404000008040"],
    "indefinite_length_map": ["weight", "F32", [2, 2], None, "0000803f000000400000404000008040"],
    "nonzero_padding": ["weight", "F32", [2, 2], None, "0000803f000000400000404000008040"],
    "param_id_null": ["weight", "F32", [2, 2], None, "0000803f000000400000404000008040"],
    "shape_zero_rank_empty": ["s", "F32", [], None, "00006040"],
    "unknown_top_key": ["weight", "F32", [2, 2], None, "0000803f000000400000404000008040"],
    "version_0": ["weight", "F32", [2, 2], None, "0000803f000000400000404000008040"],
}
REFUSED = {
    "bad_magic_BURN_order": "not a burnpack file",
    "cbor_root_array": "without tensors",
    "dtype_lowercase_f32": "unknown dtype, f32",
    "dtype_unknown": "unknown dtype, F8E4M3",
    "empty_file": "too short",
    "metadata_non_string_value": "not text",
    "metadata_size_past_eof": "cut off",
    "missing_offsets": "entry 'weight'",
    "missing_tensors_key": "without tensors",
    "offset_huge": "entry 'weight'",
    "offsets_three_elements": "entry 'weight'",
    "overlapping_tensors": "overlaps",
    "too_short_9_bytes": "too short",
    "trailing_bytes_in_cbor": "bytes follow the table",
    "truncated_data_by_1_no_slack": "cut off",
    "unaligned_offsets": "multiples of 256",
}


def rows(path):
    content, header = path.read_bytes(), read_bpk_header(path)
    return [
        [name, tensor.dtype, list(tensor.shape), tensor.param_id, content[tensor.start : tensor.end]]
        for name, tensor in header.tensors.items()
    ]


def test_no_golden_file_is_forgotten():
    found = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*.bpk")}
    assert found == set(MANIFEST) | {f"edge/{name}.bpk" for name in (*ODD_BUT_CLEAR, *REFUSED)}


@pytest.mark.parametrize("name", MANIFEST)
def test_a_file_of_burn_reads_as_its_writer_meant_it(name):
    header, wanted = read_bpk_header(GOLDEN / name), MANIFEST[name]
    assert header.alignment == ("aligned" if wanted["aligned"] else "legacy")
    assert header.metadata == wanted["metadata"]
    assert {key: dict([scalar]) for key, scalar in header.scalars.items()} == wanted["scalars"]
    found = [[*row[:4], hashlib.sha256(row[4]).hexdigest()[:16]] for row in rows(GOLDEN / name)]
    assert found == wanted["tensors"]


@pytest.mark.parametrize("name", MANIFEST)
def test_a_file_of_burn_is_written_again_byte_for_byte_and_one_of_0_19_aligned(name, tmp_path):
    path = GOLDEN / name
    header = read_bpk_header(path)
    again = write_bpk(tmp_path / "again.bpk", copied_entries(path, header), header.metadata, header.scalars)
    if MANIFEST[name]["aligned"]:
        assert again.read_bytes() == path.read_bytes()
    else:
        assert rows(again) == rows(path)
        assert read_bpk_header(again).alignment == "aligned"


def test_burn_0_19_and_later_wrote_the_same_tensors():
    assert rows(GOLDEN / "v0.19.1/one_f32_2x2.bpk") == rows(GOLDEN / "v0.21.0-pre.1/one_f32_2x2.bpk")


@pytest.mark.parametrize("name", ODD_BUT_CLEAR)
def test_an_odd_file_with_one_meaning_is_read(name):
    ((*row, data),) = rows(GOLDEN / "edge" / f"{name}.bpk")
    assert [*row, data.hex()] == ODD_BUT_CLEAR[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_file_is_refused_in_one_sentence(name):
    for read in (read_bpk_header, recognise):
        with pytest.raises(UserError, match=REFUSED[name]) as caught:
            read(GOLDEN / "edge" / f"{name}.bpk", "input")
        assert str(caught.value).startswith("input = ")
        assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = (GOLDEN / "v0.21.0-pre.1/one_f32_2x2_id_meta.bpk").read_bytes()
    path = tmp_path / "cut.bpk"
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_bpk_header(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="bytes after its last tensor"):
        read_bpk_header(path)


def test_quantised_tensors_are_named_by_their_scheme():
    assert open_checkpoint(GOLDEN / "v0.21.0-pre.1/qfloat.bpk").dtypes == {"QFloat Q8F"}
