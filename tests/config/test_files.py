import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zimage_gui.burnpack import is_bpk, read_bpk_header
from zimage_gui.errors import UserError
from zimage_gui.files import (
    LONGEST_HEADER,
    TEMP_SUFFIX,
    atomic_write,
    expand_shards,
    free_name,
    read_header,
    replace_folder,
    sweep_temp_files,
    temp_path,
)


def tensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "datei 图.bin"
    atomic_write(path, b"old")
    with pytest.raises(RuntimeError):
        atomic_write(path, lambda file: (file.write(b"half"), (_ for _ in ()).throw(RuntimeError()))[1])
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    pipe, named = tmp_path / "a.safetensors", tmp_path / "a.bpk"
    os.mkfifo(pipe)
    os.mkfifo(named)
    for look in (read_header, read_bpk_header, expand_shards):
        for path in (pipe, named):
            with pytest.raises(UserError, match="pipe, socket or device"):
                look(path, "input")
    assert not is_bpk(pipe) and not is_bpk(named)


def test_temp_files_of_dead_processes_are_swept_and_others_left(tmp_path):
    code = "import sys, pathlib, zimage_gui.files as f; p = f.temp_path(pathlib.Path(sys.argv[1])); p.write_bytes(b'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / ("名" * 80))], check=True)
    mine = temp_path(tmp_path / "result")
    mine.write_bytes(b"x")
    other = tmp_path / f"a user's own{TEMP_SUFFIX}"
    other.write_bytes(b"x")
    (swept,) = sweep_temp_files(tmp_path)
    assert swept.name.startswith(".名") and set(tmp_path.iterdir()) == {mine, other}
    assert sweep_temp_files(tmp_path / "nowhere") == []


def test_temp_files_of_an_earlier_process_with_the_same_number_are_swept(tmp_path):
    mine, ours = temp_path(tmp_path / "mine"), f".{os.getpid()}-"
    before = tmp_path / f".before{ours}{'0' * 16}{TEMP_SUFFIX}"  # as after a restart of a container
    parents = tmp_path / mine.name.replace(ours, f".{os.getppid()}-")
    strangers = tmp_path / parents.name.replace(".mine", ".strangers")
    for path in (mine, before, parents, strangers):
        path.write_bytes(b"x")
    os.utime(strangers, (1e9, 1e9))  # older than the process that has its number now
    assert set(sweep_temp_files(tmp_path)) == {before, strangers}
    assert set(tmp_path.iterdir()) == {mine, parents}


def test_the_next_free_name(tmp_path):
    path = tmp_path / "lora.v2.safetensors"
    assert free_name(path) == path
    path.touch()
    (tmp_path / "lora.v2-2.safetensors").touch()
    assert free_name(path) == tmp_path / "lora.v2-3.safetensors"


def test_a_header_tells_names_shapes_and_places(tmp_path):
    header = {"__metadata__": {"a": "b"}, "x": entry(), "empty": entry(8, 8, "BF16", (0, 3))}
    found = read_header(tensors_file(tmp_path / "a.safetensors", header, b"12345678"))
    assert found.metadata == {"a": "b"}
    assert found.tensors["x"].shape == (2,) and found.tensors["x"].dtype == "F32"
    path = tmp_path / "a.safetensors"
    assert path.read_bytes()[found.tensors["x"].start : found.tensors["x"].end] == b"12345678"


def test_half_characters_in_metadata_become_question_marks(tmp_path):
    header = {"__metadata__": {"title \udc00": "x \ud83d"}, "x": entry()}
    found = read_header(tensors_file(tmp_path / "a.safetensors", header, b"12345678"))
    assert found.metadata == {"title ?": "x ?"}


@pytest.mark.parametrize(
    ("header", "data", "length", "word"),
    [
        ({"x": entry()}, b"1234", None, "cut off"),
        ({"x": entry()}, b"123456789", None, "after its last tensor"),
        ({"x": entry(), "y": entry()}, b"12345678", None, "overlap"),
        ({"x": entry(4, 12)}, b"123456789012", None, "holes"),
        ({"x": entry(0, 4)}, b"1234", None, "see the entry 'x'"),
        ({"x": entry(dtype="Q4_0")}, b"12345678", None, "see the entry"),
        ({"x": entry(shape=(-2,))}, b"12345678", None, "see the entry"),
        ({"x": entry(shape=(2.0,))}, b"12345678", None, "see the entry"),
        ({"x": entry(8, 0)}, b"12345678", None, "see the entry"),
        ({"x": {**entry(), "more": 1}}, b"12345678", None, "see the entry"),
        ({"x": entry(shape=[1] * 17)}, b"12345678", None, "see the entry"),
        ({"__metadata__": {"a": 1}}, b"", None, "not text"),
        ([1], b"", None, "not a table"),
        (b"not json", b"", None, "unreadable"),
        (b"[" * 100_000, b"", None, "unreadable"),
        (b'{"x": 1, "x": 2}', b"", None, "appears twice"),
        ({}, b"", 2**63, "cut off"),
    ],
)
def test_a_damaged_header_is_refused_with_a_sentence(tmp_path, header, data, length, word):
    path = tensors_file(tmp_path / "a.safetensors", header, data, length)
    with pytest.raises(UserError, match=word):
        read_header(path, "dit")


def test_a_huge_header_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", LONGEST_HEADER + 1))
        file.truncate(LONGEST_HEADER + 100)
    with pytest.raises(UserError, match="at most"):
        read_header(path)


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_what_is_not_a_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match="dit = "):
        read_header(tmp_path / name, "dit")


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        assert read_header(path).tensors == {}
    except UserError as error:
        assert str(path) in str(error)


def shards(folder: Path, stem: str, count: int, missing: tuple[int, ...] = ()) -> list[Path]:
    paths = [folder / f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for number, path in enumerate(paths, start=1):
        if number not in missing:
            path.touch()
    return paths


def test_any_shard_stands_for_its_set(tmp_path):
    paths = shards(tmp_path, "model {x}", 3)
    assert expand_shards(paths[0]) == paths == expand_shards(paths[1]) == expand_shards(tmp_path)


def test_missing_shards_are_named(tmp_path):
    paths = shards(tmp_path, "model", 3, missing=(2,))
    with pytest.raises(UserError, match="model-00002-of-00003"):
        expand_shards(paths[0], "dit")


def test_a_folder_is_read_by_its_index(tmp_path):
    paths = shards(tmp_path, "model", 2)
    (tmp_path / "other.safetensors").touch()
    weights = {"a": paths[0].name, "b": paths[1].name, "c": paths[0].name}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weights}), encoding="utf-8"
    )
    assert expand_shards(tmp_path) == paths


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a\\b", "C:x", "", ".", None, 1])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    (tmp_path / "m.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": name}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="index"):
        expand_shards(tmp_path)


def test_a_folder_with_several_models_or_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.safetensors"):
        expand_shards(tmp_path)
    (tmp_path / "a.safetensors").touch()
    assert expand_shards(tmp_path) == [tmp_path / "a.safetensors"]
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(UserError, match="several models"):
        expand_shards(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        expand_shards(tmp_path / "c.safetensors")


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path):
    code = (
        "import os, sys, pathlib, zimage_gui.files as f\n"
        "f.atomic_write(pathlib.Path(sys.argv[1]), lambda file: (file.write(b'half'), file.flush(), os._exit(9)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "result.bin")], check=False)
    assert done.returncode == 9
    assert [path.name.endswith(TEMP_SUFFIX) for path in tmp_path.iterdir()] == [True]
    sweep_temp_files(tmp_path)
    assert os.listdir(tmp_path) == []


def a_folder(path: Path, name: str) -> Path:
    path.mkdir()
    (path / name).touch()
    return path


def test_a_new_folder_takes_the_place_of_an_old_one(tmp_path):
    for name in ("first", "second"):
        replace_folder(a_folder(temp_path(tmp_path / "state"), name), tmp_path / "state")
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "second"]


def test_an_old_folder_is_back_when_the_new_one_cannot_be_moved(tmp_path):
    folder = a_folder(tmp_path / "state", "old")
    with pytest.raises(OSError):
        replace_folder(temp_path(folder), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "old"]
