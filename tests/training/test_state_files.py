"""A state on disk: exact, whole or absent, and suspicious of everything it reads."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_gui.engine.checkpoints import Mark, OutputNames, drop
from zimage_gui.engine.state import (
    MANIFEST,
    StateError,
    load_or_previous,
    load_state,
    pack,
    random_states,
    restore_random_states,
    save_state,
    states_in,
    unpack,
)
from zimage_gui.files import TEMP_SUFFIX

VALUES = {
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
    "trainer": {
        "state": {0: {"step": torch.tensor(3.0), "name": "x"}},
        "list": [1, None, (2.5, True)],
        "empty": {},
    },
}


def save(folder: Path, name: str, values=VALUES) -> Path:
    return save_state(folder / name, values, folder / "cats-latest-state.json")


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return (type(one), repr(one)) == (type(other), repr(other))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(NESTED)
def test_any_nested_value_comes_back_as_it_was(value) -> None:
    packed = json.loads(json.dumps(pack(value, {}, "x"), allow_nan=False))
    assert same(unpack(packed, {}), value)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    loaded = load_state(save(tmp_path, "cats-state"))
    assert same(loaded.values, VALUES)


def test_two_names_for_one_memory_are_saved_twice(tmp_path: Path) -> None:
    table = torch.arange(4.0)
    loaded = load_state(save(tmp_path, "cats-state", {"o": {"one": table, "two": table}}))
    assert torch.equal(loaded.values["o"]["one"], loaded.values["o"]["two"])


def test_values_that_need_pickling_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"o\.thing is a function"):
        save(tmp_path, "cats-state", {"o": {"thing": save}})
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_state_and_leaves_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, "cats-state")
    save(tmp_path, "cats-state", {"weights": {"a": torch.zeros(1)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats-latest-state.json", "cats-state"]
    assert list(load_state(tmp_path / "cats-state").values) == ["weights"]


def damage_truncate(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def damage_flip(folder: Path) -> None:
    file = folder / "trainer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def damage_remove(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{", encoding="utf-8")


def damage_escape(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"]["../evil.safetensors"] = {"size": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def damage_version(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | {"version": 99}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def damage_nesting(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000, encoding="utf-8")


DAMAGES = [
    damage_truncate, damage_flip, damage_remove, damage_manifest, damage_escape, damage_version, damage_nesting,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_gives_way_to_the_one_before_and_says_so(tmp_path: Path, damage) -> None:
    save(tmp_path, "cats-step00000002-state")
    save(tmp_path, "dogs-step00000003-state")
    newest = save(tmp_path, "cats-step00000004-state")
    damage(newest)
    with pytest.raises(StateError):
        load_state(newest)
    state, passed = load_or_previous(newest)
    assert state.folder.name == "cats-step00000002-state"
    assert len(passed) == 1 and passed[0].startswith("cats-step00000004-state is not usable")


def test_a_later_state_is_never_taken_for_an_earlier_one(tmp_path: Path) -> None:
    older = save(tmp_path, "cats-step00000002-state")
    save(tmp_path, "cats-step00000004-state")
    damage_flip(older)
    with pytest.raises(StateError, match="checksum"):
        load_or_previous(older)


def test_a_folder_of_states_means_its_newest(tmp_path: Path) -> None:
    save(tmp_path, "cats-step00000002-state")
    save(tmp_path, "cats-step00000004-state")
    assert [path.name for path in states_in(tmp_path)] == [
        "cats-step00000004-state",
        "cats-step00000002-state",
    ]
    assert load_or_previous(tmp_path)[0].folder.name == "cats-step00000004-state"
    with pytest.raises(StateError, match="no training state"):
        load_or_previous(tmp_path / "nowhere")


def test_a_state_whose_deletion_is_cut_short_lies_under_a_name_that_is_swept(
    tmp_path: Path, monkeypatch
) -> None:
    names = OutputNames(tmp_path, "cats")
    save_state(names.state(Mark(step=1)), {"a": {"b": torch.ones(2)}}, names.pointer)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    assert drop(names, Mark(step=1), state=True) == names.state(Mark(step=1))
    assert [path.name.endswith(TEMP_SUFFIX) for path in tmp_path.iterdir() if path.is_dir()] == [True]


def test_all_random_generators_continue_where_they_were() -> None:
    saved = json.loads(json.dumps(pack(random_states(), tensors := {}, "r")))
    first = (random.random(), np.random.rand(), float(torch.rand(())))
    restore_random_states(unpack(saved, tensors))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == first
