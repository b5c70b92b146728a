"""A scan lists every picture with its fate; nothing a folder can hold ends it."""

import json
import os
import sys

import pytest
from PIL import Image

from zimage_gui.config.dataset import DatasetConfig, load_dataset
from zimage_gui.engine.dataset.discover import list_folder, list_jsonl
from zimage_gui.engine.dataset.report import dataset_toml, run, scan_and_tell
from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import check, file_sources, folder_source, sources_of
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun, Progress, Warning


def picture(path, size=(40, 30), caption="a caption"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path):
    folder = tmp_path / "猫 pictures"
    picture(folder / "good.png")
    picture(folder / "GOOD2.JPG")
    picture(folder / "empty.webp", caption=" ")
    picture(folder / "uncaptioned.png", caption=None)
    picture(folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:60])
    picture(folder / "sjis.png", caption=None).with_suffix(".txt").write_bytes("猫".encode("cp932") * 3)
    (folder / "notes.md").write_text("no picture", encoding="utf-8")
    (folder / "folder.png").mkdir()
    picture(folder / "inside" / "deeper.png")
    return folder


def names(entries):
    return [entry.path.name for entry in entries]


def test_every_picture_is_listed_once_with_what_is_wrong(mixed):
    report = scan((folder_source(mixed, resolution=(64, 64)),), decode=True)
    assert names(report.pictures) == ["GOOD2.JPG", "empty.webp", "good.png"]
    assert {entry.path.name: entry.kind for entry in report.refused} == {
        "uncaptioned.png": "missing_caption", "torn.png": "picture", "sjis.png": "caption",
    }  # fmt: skip
    assert names(report.missing_captions) == ["uncaptioned.png"] and names(report.empty_captions) == [
        "empty.webp"
    ]
    assert len(report.upscaled) == 3
    assert "uncaptioned.txt" in report.missing_captions[0].sentence()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_a_picture_that_lost_its_end_is_no_picture_for_the_quick_scan_either(tmp_path, name):
    whole = picture(tmp_path / name, size=(200, 160)).read_bytes()
    sources = (folder_source(tmp_path, resolution=(64, 64)),)
    assert len(scan(sources).pictures) == 1
    (tmp_path / name).write_bytes(whole[: len(whole) - len(whole) // 3])
    assert [entry.kind for entry in scan(sources).refused] == ["picture"]


def test_a_jpeg_with_more_behind_its_end_is_whole(tmp_path):
    file = picture(tmp_path / "a.jpg")
    file.write_bytes(file.read_bytes() + b"a film of the same moment" * 9)
    assert len(scan((folder_source(tmp_path, resolution=(64, 64)),)).pictures) == 1


def test_a_broken_picture_is_called_broken_before_anyone_writes_a_caption_for_it(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not")
    picture(tmp_path / "whole.png", caption=None)
    kinds = {entry.path.name: entry.kind for entry in scan((folder_source(tmp_path),)).refused}
    assert kinds == {"broken.png": "picture", "whole.png": "missing_caption"}


def test_repeats_count_in_the_bucket_table(mixed):
    report = scan((folder_source(mixed, resolution=(64, 64), num_repeats=5),))
    assert report.samples_per_epoch == 5 * len(report.pictures)
    assert [(pictures, samples) for _, pictures, samples in report.buckets()] == [
        (len(report.pictures), 5 * len(report.pictures))
    ]


def test_long_thin_and_tiny_pictures_are_refused_instead_of_filling_the_memory(tmp_path):
    picture(tmp_path / "thread.png", size=(4000, 1))
    picture(tmp_path / "dot.png", size=(9, 9))
    report = scan((folder_source(tmp_path, resolution=(512, 512)),))
    assert names(report.refused) == ["thread.png"] and names(report.pictures) == ["dot.png"]
    report = scan((folder_source(tmp_path, resolution=(512, 512), bucket_no_upscale=True),))
    assert names(report.refused) == ["dot.png", "thread.png"]


def test_a_jsonl_names_pictures_with_captions_and_its_bad_lines_are_named(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    lines = [
        json.dumps({"image_path": "a.png", "caption": "  first "}),
        "",
        json.dumps({"image_path_0": str(tmp_path / "a.png"), "caption": "second", "control_path": "x"}),
        "{broken",
        "[1]",
        json.dumps({"caption": "no picture"}),
        json.dumps({"image_path": "a.png"}),
        json.dumps({"image_path": "gone.png", "caption": "x"}),
        '{"image_path": "a.png", "caption": "half \\ud800"}',
        "[" * 100_000,
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "set.toml").write_text(
        '[[datasets]]\nimage_jsonl_file = "set.jsonl"\nresolution = 64\nenable_bucket = true\n',
        encoding="utf-8",
    )
    report = scan(file_sources(load_dataset(tmp_path / "set.toml")))
    assert [entry.caption for entry in report.pictures] == ["first", "second"]
    assert [entry.kind for entry in report.refused] == ["entry"] * 4 + ["picture", "entry", "entry"]
    assert (
        "line 4" in report.refused[0].sentence()
        and "gone.png: does not exist" in report.refused[4].sentence()
    )
    assert report.sources[0].cache_directory == tmp_path


def test_a_dataset_file_fills_each_value_from_the_entry_then_general_then_the_default(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "set.toml").write_text(
        '[general]\nresolution = [640, 480]\nnum_repeats = 3\nenable_bucket = true\nbucket_no_upscale = true\n'
        '[[datasets]]\nimage_directory = "images"\nnum_repeats = 2\ncaption_extension = ".caption"\n'
        '[[datasets]]\nimage_directory = "other"\nresolution = 512\nenable_bucket = false\n', encoding="utf-8"
    )  # fmt: skip
    first, second = file_sources(load_dataset(tmp_path / "set.toml"))
    assert (first.resolution, first.num_repeats, first.bucket_no_upscale, first.caption_extension) == (
        (640, 480),
        2,
        True,
        ".caption",
    )
    assert (second.resolution, second.num_repeats, second.bucket_no_upscale, second.batch_size) == (
        (512, 512),
        3,
        False,
        1,
    )
    assert first.cache_directory == first.image_directory == tmp_path / "images"
    assert not first.notes and not second.notes  # the second needs no word of [general] that is not for it


def test_a_key_without_effect_in_a_dataset_file_is_warned_about(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    table = f"[[datasets]]\nimage_directory = '{tmp_path}'\nresolution = 64\nbucket_no_upscale = true\n"
    (tmp_path / "set.toml").write_text(table, encoding="utf-8")
    run = NullRun(tmp_path)
    scan_and_tell(file_sources(load_dataset(tmp_path / "set.toml")), run, decode=False)
    (warning,) = [event.text for event in run.events if isinstance(event, Warning)]
    assert warning == (
        "datasets 1: bucket_no_upscale = true: has no effect here. Matters when enable_bucket is true."
    )


def test_wrong_folders_and_sizes_are_told_all_at_once(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    source = folder_source(
        tmp_path / "none", resolution=(100, 100), enable_bucket=False, cache_directory=tmp_path / "file"
    )
    assert [problem.option for problem in check((source,))] == ["dataset", "cache_directory", "resolution"]


def test_the_dataset_command_tells_and_writes_a_file_that_means_the_same(mixed, tmp_path):
    config = DatasetConfig(
        dataset=mixed, resolution=64, batch_size=4, num_repeats=3, write_toml=tmp_path / "set.toml"
    )
    watched = NullRun(tmp_path)
    assert run(config, watched) == [tmp_path / "set.toml"]
    told = "\n".join(event.text for event in watched.events if hasattr(event, "text"))
    assert "uncaptioned.png" in told and "sjis.png" in told and "torn.png" in told
    assert any(isinstance(event, Progress) and event.done == event.total == 6 for event in watched.events)
    assert sum(isinstance(event, Warning) for event in watched.events) == 4
    again = sources_of(DatasetConfig(dataset_config=tmp_path / "set.toml"))
    (original,) = sources_of(config, config.batch_size)
    assert [
        (source.image_directory, source.resolution, source.batch_size, source.num_repeats) for source in again
    ] == [(original.image_directory, (64, 64), 4, 3)]
    assert run(config, watched) == [tmp_path / "set-2.toml"]


def test_a_dataset_file_that_cannot_be_written_is_told(mixed, tmp_path):
    (tmp_path / "file").touch()
    config = DatasetConfig(dataset=mixed, write_toml=tmp_path / "file" / "set.toml")
    with pytest.raises(UserError, match=r"write_toml = .*set\.toml: cannot be written"):
        run(config, NullRun(tmp_path))


def test_paths_with_any_characters_survive_the_dataset_file(tmp_path):
    folder = tmp_path / "a 'b\" #猫"
    folder.mkdir()
    text = dataset_toml((folder_source(folder),), tmp_path)
    (tmp_path / "set.toml").write_text(text, encoding="utf-8")
    assert file_sources(load_dataset(tmp_path / "set.toml"))[0].image_directory == folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_names_that_are_no_text_and_pipes_do_no_harm(tmp_path):
    picture(tmp_path / "a.png")
    strange = os.fsencode(tmp_path) + b"/\xff.png"
    os.link(tmp_path / "a.png", strange)
    os.mkfifo(tmp_path / "pipe.png")
    report = scan((folder_source(tmp_path, resolution=(64, 64)),))
    assert names(report.pictures) == ["a.png"] and report.refused[0].sentence().startswith("\\udcff.png")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_that_leads_to_itself_is_passed_over(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert [one.path.name for one in list_folder(tmp_path, ".txt")] == ["good.png"]


def test_no_dataset_at_all_is_one_sentence():
    with pytest.raises(UserError, match="dataset"):
        sources_of(DatasetConfig.model_construct(dataset=None, dataset_config=None))


def test_a_line_too_long_for_an_entry_is_one_line(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    lines = [json.dumps({"image_path": "a.png", "caption": "x" * 2_500_000}), "{broken"]
    (tmp_path / "set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first, second = list_jsonl(tmp_path / "set.jsonl")
    assert (first.line, second.line) == (1, 2)
    assert "longer than 1 MB" in first.problem and "longer" not in second.problem
