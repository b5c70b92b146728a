"""The parts of the window that need no page: pictures, folders, captions, drafts, charts, live parts."""

import errno
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import folder_source
from zimage_gui.events import Checkpoint, Step, Validation
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.reader import Readers, RunView
from zimage_gui.jobs.status import Status
from zimage_gui.ui import dataset_view, run_html
from zimage_gui.ui.captions import CaptionFiles
from zimage_gui.ui.charts import Line, line_chart, nice_ticks
from zimage_gui.ui.drafts import Drafts
from zimage_gui.ui.folders import list_folder
from zimage_gui.ui.html import duration, meter, notice, number, pace
from zimage_gui.ui.live import Live, Look
from zimage_gui.ui.pictures import PictureCache, url
from zimage_gui.ui.tabs.runs import _row as runs_row


def draw(path: Path, size=(600, 300), colour="red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_thumbnail_is_small_cached_and_renewed_when_the_picture_changes(tmp_path):
    cache = PictureCache(tmp_path / "cache")
    picture = draw(tmp_path / "猫 1.png")
    first = cache.thumbnail(picture)
    assert first is not None and first.parent == cache.folder
    with Image.open(first) as small:
        assert small.size == (384, 192)
    assert cache.thumbnail(picture) == first
    draw(picture, (300, 300))
    assert cache.thumbnail(picture) != first


def test_what_is_no_picture_gets_none_and_is_never_published(tmp_path):
    cache = PictureCache(tmp_path / "cache")
    secret = tmp_path / "secret.txt"
    secret.write_text("x", encoding="utf-8")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert cache.thumbnail(broken) is None
    assert cache.thumbnail(tmp_path / "gone.png") is None
    assert cache.published(secret) is None
    assert list(cache.folder.iterdir()) == []


def test_a_copy_that_breaks_off_is_never_published(tmp_path, monkeypatch):
    cache, picture = PictureCache(tmp_path / "cache"), draw(tmp_path / "a.png")
    full = OSError(errno.ENOSPC, "no space left")

    def half(source, target, *_):
        target.write(source.read(10))
        raise full

    def never(*_):
        raise OSError(errno.EXDEV, "another disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", never)
        patch.setattr(shutil, "copyfileobj", half)
        assert cache.published(picture) is None
    assert list(cache.folder.iterdir()) == []
    assert cache.published(picture).read_bytes() == picture.read_bytes()


def test_a_picture_that_another_page_publishes_at_the_same_time_is_published(tmp_path, monkeypatch):
    cache, picture = PictureCache(tmp_path / "cache"), draw(tmp_path / "a.png")
    link = os.link

    def beaten(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", beaten)
    assert cache.published(picture).read_bytes() == picture.read_bytes()


def test_a_cache_that_cannot_be_written_shows_no_thumbnail(tmp_path):
    cache, picture = PictureCache(tmp_path / "cache"), draw(tmp_path / "a.png")
    cache.folder.rmdir()
    cache.folder.touch()
    assert cache.thumbnail(picture) is None and cache.published(picture) is None


def test_a_picture_address_is_quoted(tmp_path):
    assert url(Path("/a b/猫#1.webp")) == "gradio_api/file=/a%20b/%E7%8C%AB%231.webp"


def test_the_folder_browser_never_leaves_its_roots(tmp_path):
    inside, outside = tmp_path / "home" / "pictures", tmp_path / "other"
    draw(inside / "a.png")
    outside.mkdir()
    (tmp_path / "home" / "link").symlink_to(outside)
    roots = ((tmp_path / "home").resolve(),)
    listing = list_folder(tmp_path / "home", roots)
    assert listing.parent is None
    assert [(one.path.name, one.pictures) for one in listing.folders] == [("link", 0), ("pictures", 1)]
    for elsewhere in (outside, tmp_path / "home" / "link", tmp_path / "home" / ".." / "other", Path("/")):
        assert list_folder(elsewhere, roots).path == roots[0]


def test_a_link_that_leads_to_itself_hides_nothing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "pictures").mkdir()
    listing = list_folder(tmp_path, (tmp_path.resolve(),))
    assert [one.path.name for one in listing.folders] == ["pictures"] and not listing.problem


def test_folders_are_sorted_as_people_sort_them(tmp_path):
    for name in ("b10", "b2", "A", ".hidden", "b1"):
        (tmp_path / name).mkdir()
    names = [one.path.name for one in list_folder(tmp_path, (tmp_path.resolve(),)).folders]
    assert names == ["A", "b1", "b2", "b10"]


def test_a_caption_is_saved_and_never_over_a_change_on_disk(tmp_path):
    captions, file = CaptionFiles(), tmp_path / "a.txt"
    token = captions.token(file)
    assert captions.save(token, "", "a 猫\r\n").ok
    assert file.read_text(encoding="utf-8") == "a 猫"
    file.write_text("changed elsewhere", encoding="utf-8")
    refused = captions.save(token, "a 猫", "mine")
    assert not refused.ok and refused.text == "changed elsewhere"
    assert file.read_text(encoding="utf-8") == "changed elsewhere"


def test_an_unknown_caption_token_writes_nothing(tmp_path):
    assert not CaptionFiles().save("../../etc/passwd", "", "x").ok
    assert not CaptionFiles().save(str(tmp_path / "a.txt"), "", "x").ok
    assert list(tmp_path.iterdir()) == []


def test_drafts_keep_what_was_typed_even_when_it_is_wrong(tmp_path):
    drafts = Drafts(tmp_path / "drafts")
    drafts.save(
        "form", {"learning_rate": "1e", "path": 'C:\\new\\"x"', "text": "多\n行", "flag": True, "none": None}
    )
    drafts.update("form", {"flag": False})
    assert Drafts(tmp_path / "drafts").load("form") == {
        "learning_rate": "1e", "path": 'C:\\new\\"x"', "text": "多\n行", "flag": False
    }  # fmt: skip


def test_a_damaged_draft_counts_as_none(tmp_path):
    (tmp_path / "form.toml").write_bytes(b"\xff\xfe not toml")
    assert Drafts(tmp_path).load("form") == {}


def test_a_dataset_page_counts_what_is_wrong_and_escapes_what_it_shows(tmp_path):
    folder = tmp_path / "set"
    for name in ("a.png", "b.png", "c.png"):
        draw(folder / name)
    (folder / "a.txt").write_text("<script>alert(1)</script>", encoding="utf-8")
    (folder / "b.txt").write_text("", encoding="utf-8")
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "d.txt").write_text("d", encoding="utf-8")
    report = scan((folder_source(folder, resolution=(256, 256)),))
    counts = {one.key: len(one.entries) for one in dataset_view.filters(report)}
    wanted = {"all": 4, "missing_caption": 1, "empty": 1, "picture": 1}
    assert {key: counts.get(key) for key in wanted} == wanted
    page = dataset_view.grid(report, "all", 1, PictureCache(tmp_path / "cache"), CaptionFiles())
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("data-token") == 3


def test_a_chart_shows_nan_as_a_mark_and_stays_small():
    steps = list(range(400))
    losses = [math.nan if step == 200 else 1 / (1 + step) for step in steps]
    picture = line_chart("Loss", [Line("each step", steps, losses, "raw")], "nothing yet")
    assert "NaN" in picture and picture.count("M") == 2 and len(picture) < 20_000
    assert "nothing yet" in line_chart("Loss", [Line("each step", [1], [math.nan], "raw")], "nothing yet")


@pytest.mark.parametrize("low,high", [(0, 1), (-3, 17), (1e-6, 3e-6), (0, 1e9), (2, 2)])
def test_axis_ticks_are_few_round_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) + 1e-9 for tick in ticks)


def test_words_for_numbers():
    assert [duration(value) for value in (None, math.nan, 5, 185, 7260)] == [
        "–",
        "–",
        "5 s",
        "3 min 05 s",
        "2 h 01 min",
    ]
    assert (pace(2.5), pace(0.25), pace(0)) == ("2.50 s/step", "4.0 steps/s", "–")
    assert (number(1e-4), number(0.5), number(math.nan)) == ("1e-4", "0.5", "NaN")
    assert "zg-full" in meter("VRAM", "23.9 / 24 GB", 0.99)
    assert "<b>" not in notice("<b>")


def test_a_live_part_is_sent_only_when_its_mark_moved():
    live, state = Live(), {"mark": 1}
    live._parts["g:p"] = ("g", lambda run: Look(state["mark"], lambda: f"{run} {state['mark']}"))
    live._parts["g:broken"] = ("g", lambda run: (_ for _ in ()).throw(OSError("disk")))
    asked = {"marks": {"g:p": "", "g:broken": "", "unknown": ""}, "chosen": {"g": "run"}}
    (sent,) = live.changes(asked)
    assert sent == {"part": "g:p", "mark": "1", "html": "run 1"}
    assert live.changes({"marks": {"g:p": sent["mark"]}}) == []
    state["mark"] = 2
    assert live.changes({"marks": {"g:p": sent["mark"]}})[0]["html"] == " 2"
    assert live.changes(["no", "dict"]) == live.changes({"marks": {"g:p": 3}}) == []


def test_a_finished_training_is_not_offered_to_be_resumed_but_to_be_trained_on(tmp_path):
    run = RunFolder.create(tmp_path, "train-lora", "zorb", "", gpu=True)
    run.begin()
    state = run.folder / "zorb-state"
    state.mkdir()
    for step, words in ((3, "Resume from step 3"), (4, "Train on")):
        run.emit(Step(step=step, total_steps=4, epoch=1, total_epochs=1, loss=0.5, loss_average=0.5, lr=1e-4,
                      seconds=1.0, samples_per_second=1.0))  # fmt: skip
        run.emit(Checkpoint(path=str(state), step=step, epoch=1, what="state"))
        if step == 4:
            run.end("done", [tmp_path / "zorb.safetensors", state])
        else:
            view = replace(Readers().of(run.folder).poll())
            assert view.state is not None
            view.state = replace(view.state, state="stopped")
            assert words in run_html.status(view)
    view = Readers().of(run.folder).poll()
    assert words in run_html.status(view) and "Resume from step" not in run_html.status(view)
    assert view.state is not None and "<td>zorb.safetensors and 1 more</td>" in runs_row(view.state, None, 0)


def test_waiting_in_the_queue_is_no_part_of_how_long_a_run_took():
    waited = Status(created=100.0, pid=1, process_created=150.0)
    assert waited.begun == 150.0
    assert Status(created=100.0, pid=1, process_created=20.0).begun == 100.0  # a resident process


def test_the_loss_of_held_out_pictures_stands_in_the_loss_chart(tmp_path):
    view = RunView(tmp_path)
    for step in (1, 2):
        view.curves.add(Step(step=step, total_steps=2, epoch=1, total_epochs=1, loss=0.5, loss_average=0.5, lr=1e-4,
                             seconds=1.0, samples_per_second=1.0))  # fmt: skip
    assert "held-out" not in run_html.curves(view)
    view.validations.append(Validation(step=0, epoch=0, loss=0.75, pictures=2))
    assert "held-out pictures" in run_html.curves(view) and "zg-line-held" in run_html.curves(view)
