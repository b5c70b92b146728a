"""`inspect` is given anything: it answers with a report or one sentence, at once, and never plays with the
terminal.
"""

import contextlib
import json
import os
import socket
import struct
import time
from pathlib import Path

import pytest
from headers import gguf, sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zimage_gui.config.convert import InspectConfig
from zimage_gui.engine.inspect_file import check, inspect
from zimage_gui.engine.inspect_file import run as inspect_command
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.files import read_header

DIALECTS = Path(__file__).parents[1] / "data" / "lora_dialects"
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.elif\u2066\r\nRun: rm -rf\x00\ud800"
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def harmless(text):
    return all(char.isprintable() or char == "\n" for char in text)


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("as_json", [False, True])
def test_names_and_metadata_of_a_hostile_file_cannot_write_to_the_terminal(tmp_path, capsys, as_json):
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    path = raw(tmp_path / "x\x1b[31m\u202ey.safetensors", {EVIL: entry, "__metadata__": {EVIL: EVIL}}, b"\0")
    inspect_command(InspectConfig(input=path, as_json=as_json), NullRun(tmp_path))
    out = capsys.readouterr().out
    assert harmless(out)
    if as_json:
        assert json.loads(out)["path"] == str(path)
    else:
        assert sum(line.startswith("  [") for line in out.splitlines()) == 1


def test_hostile_loras_gguf_files_and_folders_are_as_harmless(tmp_path):
    lora = {
        f"lora_unet_{EVIL}.lora_down.weight": (1,),
        "diffusion_model.layers.0.attention.to_q.lora_A.weight": (1,),
    }
    sparse(tmp_path / "a.safetensors", lora, metadata={"modelspec.title": EVIL, "trigger_word": EVIL})
    evil = EVIL.encode("utf-8", "replace")
    (tmp_path / "b.gguf").write_bytes(gguf({}, [("general.architecture", 8, evil), ("a", 8, evil)]))
    (tmp_path / "c\x1b[2J.toml").write_text("x = 1")
    for path in (*tmp_path.iterdir(), tmp_path):
        assert harmless(inspect(path).text(0)) and harmless(inspect(path).text(0, 60))


def test_enormous_metadata_is_cut_in_the_text(tmp_path):
    metadata = {f"key{index}": "x" * 1000 for index in range(500)} | {
        "modelspec.description": "word " * 400_000
    }
    path = sparse(tmp_path / "x.safetensors", {"a": (1,)}, metadata=metadata)
    begun = time.process_time()
    text = inspect(path).text(0, 80)
    assert time.process_time() - begun < 3
    assert len(text) < 100_000 and "... (401 more entries, --json shows all)" in text


def test_a_name_of_megabytes_takes_no_time(tmp_path):
    names = (
        "layers.0." * 200_000,
        "a" * 1_000_000,
        "." * 500_000,
        "1" * 500_000,
        "lora_unet_" + "layers_" * 100_000,
    )
    for name in names:
        path = sparse(tmp_path / "x.safetensors", {name: (1,), f"{name}.lora_down.weight": (1,)})
        begun = time.process_time()
        assert len(inspect(path).text(0, 80)) < 10_000
        assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[" * 100_000,
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9000000000]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"a":1}}',
        b"\xff\xfe",
    ],
)
def test_headers_that_lie_are_one_sentence(tmp_path, header):
    with pytest.raises(UserError) as caught:
        inspect(raw(tmp_path / "x.safetensors", header, bytes(4)))
    assert len(caught.value.problems) == 1 and harmless(str(caught.value))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_file_cut_off_anywhere_is_one_sentence(tmp_path, share):
    whole = (DIALECTS / "main_kohya_split.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut off|too short"):
        inspect(tmp_path / "x.safetensors")


def _fifo(folder):
    os.mkfifo(folder / "x")
    return folder / "x"


def _socket(folder):
    place = folder / "x"
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):
        made.bind("x")
    return place


def _loop(folder):
    (folder / "x").symlink_to(folder / "y")
    (folder / "y").symlink_to(folder / "x")
    return folder / "x"


def _nowhere(folder):
    (folder / "x").symlink_to(folder / "none")
    return folder / "x"


@pytest.mark.skipif(os.name == "nt", reason="no pipes and devices as files there")
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (_fifo, "a pipe, socket or device"),
        (_socket, "a pipe, socket or device"),
        (lambda folder: Path("/dev/zero"), "a pipe, socket or device"),
        (_loop, "cannot be looked at"),
        (_nowhere, "leads nowhere"),
        (lambda folder: folder / ("x" * 300), "cannot be looked at"),
        (lambda folder: folder / "a\0b", "cannot be looked at"),
    ],
)
def test_what_is_no_file_is_refused_without_opening_it(tmp_path, make, word):
    path = make(tmp_path)
    with pytest.raises(UserError, match=word):
        inspect(path)
    assert check(InspectConfig(input=path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may read everything")
def test_what_may_not_be_read_is_one_sentence(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"abc")
    (tmp_path / "x.safetensors").chmod(0)
    (tmp_path / "folder").mkdir(mode=0)
    for path in (tmp_path / "x.safetensors", tmp_path / "folder"):
        with pytest.raises(UserError, match="cannot be read"):
            inspect(path)


@pytest.mark.skipif(os.name == "nt", reason="no pipes as files there")
def test_pipes_and_loops_inside_a_folder_do_not_stop_its_report(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path)
    sparse(tmp_path / "c.safetensors", {"a": (1,)})
    sparse(tmp_path / "d.safetensors", {"a": (1,)})
    assert [part.kind for part in inspect(tmp_path).parts] == ["broken", "broken", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"GGUF\x09\0\0\0" + bytes(16), "has version 9"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "claims"),
        (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**40), "claims"),
        (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 5, 0), "cut off"),
        (gguf({"a": ((4, 4), 0, 64)})[:-8], "passes its end"),
        (gguf({}, [("a", 77, b"")]), "unknown type 77"),
        (gguf({}, [("a", 9, struct.pack("<IQ", 8, 2**40))]), "claims"),
        (gguf({"a": ((2**40, 2**40), 0, 64)}), "claims"),
        (gguf({}, [("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
    ],
)
def test_malformed_gguf_files_are_one_sentence(tmp_path, content, word):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        inspect(tmp_path / "x.gguf")
    assert len(caught.value.problems) == 1


WHOLE = {
    "safetensors": (DIALECTS / "lokr_full_kohya.safetensors").read_bytes(),
    "peft.safetensors": (DIALECTS / "dora_peft.safetensors").read_bytes(),
    "gguf": gguf(
        {"cap_embedder.1.weight": ((4, 32), 2, 72), "b": ((4,), 0, 16)},
        [("a.b", 8, "text"), ("n", 4, bytes(4))],
    ),
}


def told(path):
    """A report that can be shown in every form, or one problem."""
    try:
        report = inspect(path)
    except UserError as error:
        assert len(error.problems) == 1 and harmless(str(error).replace("\n", " "))
        return
    assert report.sentence and harmless(report.text(5)) and harmless(report.text(0, 50))
    json.dumps(report.as_dict())


@FEW
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6)), max_size=6),
    st.integers(0, 400),
)
def test_any_damage_gives_a_report_or_one_sentence(tmp_path, kind, changes, cut):
    data = bytearray(WHOLE[kind])
    for place, new in changes:
        start = place % len(data)
        data[start : start + len(new)] = new
    path = tmp_path / f"x.{kind}"
    path.write_bytes(data[: len(data) - cut])
    told(path)


NAMES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(sorted(read_header(DIALECTS / "all_kohya_fused.safetensors").tensors)),
    st.sampled_from(["cap_embedder.1.weight", "encoder.conv_in.weight", "embed_tokens.weight", "decoder.conv_in.weight",
                     "cap_pad_token", "cap_embedder_1.weight", "layers.0.attention.to_q.lora_A.weight", "x.scale_weight"]),
)  # fmt: skip


@FEW
@given(
    st.dictionaries(NAMES, st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=8),
    st.dictionaries(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(
                [
                    "lora_adapter_metadata",
                    "ss_datasets",
                    "software",
                    "training_info",
                    "ss_tag_frequency",
                    "ss_training_finished_at",
                ]
            ),
        ),
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(["[1]", '{"a": [{}]}', "1e999", "null", '{"r": true, "lora_alpha": null}']),
        ),
        max_size=4,
    ),
)
def test_any_names_shapes_and_metadata_give_a_report_or_one_sentence(tmp_path, shapes, metadata):
    shapes.pop("__metadata__", None)
    told(sparse(tmp_path / "x.safetensors", shapes, "F32", metadata))


@FEW
@given(
    st.binary(max_size=300),
    st.sampled_from([".bin", ".safetensors", ".toml", ".json", ".png", ".bpk", ".txt", ""]),
)
def test_any_bytes_give_a_report_or_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    told(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.safetensors", b'{"a":{"data_offsets":0}}' * 100_001, "more than 100000 tensors"),
        ("a.bpk", b"\x9f" + bytes(1001), "a list that is too long"),
        ("b.bpk", b"\x7f" + b"\x61a" * 1001 + b"\xff", "a broken text"),
    ],
)
def test_what_no_header_has_is_refused_before_it_is_read_to_its_end(tmp_path, name, content, reason):
    head = struct.pack("<Q", len(content))
    if name.endswith(".bpk"):
        head = struct.pack("<4sHI", b"NRUB", 1, len(content))
    (tmp_path / name).write_bytes(head + content)
    with pytest.raises(UserError, match=reason):
        inspect(tmp_path / name)
