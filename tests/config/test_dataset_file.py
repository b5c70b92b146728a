"""The dataset TOML of the first seed."""

import json
from pathlib import Path

import pytest

from zimage_gui.config.dataset import load_dataset, read_dataset
from zimage_gui.errors import UserError

SEED = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "pictures"
cache_directory = "cache"
num_repeats = 2
control_directory = "control"
fp_1f_no_post = true
multiple_target = false
flux_kontext_no_resize_control = true

[[datasets]]
image_jsonl_file = "list.jsonl"
cache_directory = "cache2"
resolution = 512
"""


def refusal(tables):
    with pytest.raises(UserError) as error:
        read_dataset(tables)
    return str(error.value)


def test_every_key_for_pictures_is_read(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "dataset.toml"
    path.write_text(SEED, encoding="utf-8")
    found = load_dataset(path)
    assert found.general.resolution == (960, 544) and found.general.num_repeats is None
    first, second = found.datasets
    assert first.image_directory == tmp_path / "pictures" and first.num_repeats == 2
    assert (
        first.cache_directory == tmp_path / "elsewhere" / "cache"
    )  # not there yet: counts from the working directory
    assert second.resolution == (512, 512) and second.image_directory is None
    notes = [note for note in found.notes if "does nothing" in note]
    assert f"datasets 1: image_directory: {first.image_directory}" in found.notes
    assert [note.split()[0] for note in notes] == [
        "control_directory",
        "fp_1f_no_post",
        "flux_kontext_no_resize_control",
    ]


def test_json_says_the_same(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(
        json.dumps({"datasets": [{"image_directory": "図 1", "resolution": 256}]}), encoding="utf-8"
    )
    (entry,) = load_dataset(path).datasets
    assert entry.image_directory == Path("図 1").absolute()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_dataset(path)


def test_all_problems_are_told_with_their_place():
    text = refusal(
        {
            "general": {"resolution": "big", "image_directory": "x"},
            "extra": 1,
            "datasets": [
                {"video_directory": "v", "target_frames": [1, 25]},
                {"image_directory": "a", "batch_siz": 3},
                {"image_directory": "a", "batch_size": 0},
                {"multiple_target": True},
                {"image_directory": "b", "image_jsonl_file": "c"},
                {"image_directory": "a\0b"},
            ],
        }
    )
    for part in (
        "general: resolution = big",
        "image_directory: may not stand in [general]",
        "not part of a dataset file: extra;",
        "datasets 1: video_directory: belongs to videos",
        "datasets 1: target_frames: belongs to videos",
        "datasets 2: batch_siz: is not a key of a dataset file. Did you mean batch_size?",
        "datasets 3: batch_size = 0",
        "datasets 3: cache_directory: has the same cache folder as entry 2",
        "datasets 4: multiple_target",
        "datasets 4: image_directory: is missing",
        "datasets 5: image_directory = ",
        "datasets 6: image_directory = 'a\\x00b': must not contain",
    ):
        assert part in text, part


def test_one_cache_folder_is_known_under_two_spellings(tmp_path):
    (tmp_path / "a").mkdir()
    entries = [{"image_directory": str(tmp_path / "a")}, {"image_directory": f"{tmp_path}/a/../a"}]
    assert "datasets 2: cache_directory: has the same cache folder" in refusal({"datasets": entries})


@pytest.mark.parametrize("tables", [[], "x", {"datasets": {}}, {"datasets": [1]}, {"general": 1}, {}])
def test_something_else_is_refused(tables):
    with pytest.raises(UserError):
        read_dataset(tables)
