"""The gallery without a page: which files it lists, finds, marks and deletes, and how long ten thousand take."""

import json
import os
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from zimage_gui.config.app import GuiConfig
from zimage_gui.engine.png_head import head_texts
from zimage_gui.engine.png_settings import png_bytes
from zimage_gui.jobs.status import Status, write_json, write_status
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.gallery import PER_PAGE, Asked, asked_for, gallery_look
from zimage_gui.ui.history import FAVOURITES, History, read_favourites
from zimage_gui.ui.lora_stack import rows_of


@pytest.fixture
def desk(tmp_path):
    return Desk(GuiConfig(runs_dir=tmp_path / "runs"), tmp_path)


def made_run(desk, name: str, results=(), command: str = "generate") -> Path:
    """A finished request and its samples folder."""
    folder = desk.runs_dir / name
    (folder / "samples").mkdir(parents=True)
    write_json(folder / "config.toml", {})
    status = Status(command=command, name="", created=1.0, outcome="done", results=tuple(map(str, results)))
    write_status(folder, status, durable=False)
    return folder / "samples"


def made_picture(path: Path, when: float, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(Image.new("RGB", (4, 4)), {"prompt": "猫", "seed": 1, **settings}))
    os.utime(path, (when, when))
    return path


@pytest.fixture
def history(desk, tmp_path):
    samples = made_run(desk, "2026-01-01_000000_generate")
    made_picture(samples / "20260101-000000-000_1_000.png", 1, prompt="a Red Fox 猫", seed=41)
    made_picture(samples / "20260101-000000-001_2_000.png", 3, sampler="heun")
    out = tmp_path / "输出 out"
    mine = made_picture(out / "20260101-000000-002_3_000.png", 2, prompt="a red dog")
    named = made_picture(out / "cat.png", 4)
    made_picture(out / "holiday.png", 5)
    (out / "20260101-000000-003_3_000.png").symlink_to(tmp_path / "elsewhere.png")
    made_picture(tmp_path / "elsewhere.png", 9)
    made_run(desk, "2026-01-02_000000_generate", [mine, named])
    return History(desk)


def names(pictures) -> list[str]:
    return [made.path.name for made in pictures]


def test_generated_pictures_are_listed_newest_first_and_foreign_ones_are_not(history):
    assert names(history.pictures()) == [
        "cat.png",
        "20260101-000000-001_2_000.png",
        "20260101-000000-002_3_000.png",
        "20260101-000000-000_1_000.png",
    ]


def test_a_search_needs_every_word_in_prompt_or_settings(history):
    assert names(history.search("RED").pictures) == names(history.pictures())[2:]
    assert names(history.search("red 猫 seed=41").pictures) == ["20260101-000000-000_1_000.png"]
    assert names(history.search("heun").pictures) == ["20260101-000000-001_2_000.png"]
    assert history.search("nothing of the kind").pictures == []


def test_a_search_that_runs_out_of_time_says_so_and_goes_on(history):
    first = history.search("red", seconds=-1)
    assert (first.looked, first.total) == (0, 4)
    assert len(history.search("red").pictures) == 2
    assert history.search("red", seconds=-1).looked == 4


def test_favourites_survive_the_window_and_leave_with_the_picture(history, desk):
    place = str(history.pictures()[0].path)
    assert history.favour(place, True)
    assert names(History(desk).search(favourites=True).pictures) == ["cat.png"]
    assert not history.favour(str(desk.runs_dir / "nowhere.png"), True)
    assert history.delete(place)
    assert read_favourites(Path(place).parent) == frozenset()
    assert history.search(favourites=True).pictures == []


def test_a_damaged_list_of_favourites_counts_as_none(history):
    (history.pictures()[0].path.parent / FAVOURITES).write_text('{"favourites": 3}', encoding="utf-8")
    assert read_favourites(history.pictures()[0].path.parent) == frozenset()


def test_only_a_picture_of_the_list_can_be_deleted(history, desk, tmp_path):
    for place in (
        "elsewhere.png",
        "输出 out/holiday.png",
        "输出 out/20260101-000000-003_3_000.png",
        "runs",
        "",
    ):
        assert not history.delete(str(tmp_path / place))
    assert not history.delete(str(tmp_path / "runs" / ".." / "elsewhere.png"))
    assert (tmp_path / "elsewhere.png").is_file() and (tmp_path / "输出 out" / "holiday.png").is_file()
    made = history.pictures()[-1]
    gallery_look(history, desk.pictures, "").draw()
    assert len(list(desk.pictures.folder.iterdir())) == 2 * 4
    assert history.delete(str(made.path))
    assert not made.path.exists() and made not in history.pictures()
    assert len(list(desk.pictures.folder.iterdir())) == 2 * 3


def test_a_new_picture_appears_and_a_page_says_what_it_shows(history, desk):
    before = gallery_look(history, desk.pictures, "")
    folder = desk.runs_dir / "2026-01-01_000000_generate" / "samples"
    made_picture(folder / "20260101-000000-009_9_000.png", 99, prompt="<b>new</b>")
    after = gallery_look(history, desk.pictures, "")
    assert after.mark != before.mark
    html = after.draw()
    assert "5 pictures" in html and "&lt;b&gt;new" in html and "<b>new" not in html
    assert "No picture is like that" in gallery_look(history, desk.pictures, '{"query": "zebra"}').draw()


def test_what_a_page_asks_for_is_never_trusted():
    assert asked_for('{"query": "a", "favourites": true, "page": 3}') == Asked("a", True, 3)
    for text in ("", "null", "[1]", "{", '{"page": -1}', '{"page": true, "favourites": "x"}', "[" * 9999):
        assert asked_for(text) == Asked()


def test_pages_are_turned(desk):
    samples = made_run(desk, "2026-01-01_000000_generate")
    for number in range(PER_PAGE + 1):
        made_picture(samples / f"20260101-000000-{number:03d}_1_000.png", 1 + number)
    look = gallery_look(History(desk), desk.pictures, '{"page": 2}')
    assert look.draw().count("<img") == 1 and "2 / 2" in look.draw()
    assert gallery_look(History(desk), desk.pictures, '{"page": 99}').draw().count("<img") == 1


def test_ten_thousand_pictures_are_listed_and_searched_in_bounded_time(desk):
    """Loose bounds: the machine may be busy. Measured figures are in docs/benchmarks.md."""
    samples = made_run(desk, "2026-01-01_000000_generate")
    data = png_bytes(Image.new("RGB", (8, 8)), {"prompt": "a fox", "seed": 1})
    for number in range(10_000):
        (samples / f"20260101-{number:06d}-000_1_000.png").write_bytes(data)
    history = History(desk)
    begun = time.perf_counter()
    assert len(history.pictures()) == 10_000
    listed = time.perf_counter()
    found = history.search("fox")
    searched = time.perf_counter()
    assert found.looked > 50
    assert (listed - begun, searched - listed) < (5.0, 5.0)
    while found.looked < found.total:
        found = history.search("fox")
    assert len(found.pictures) == 10_000
    again = time.perf_counter()
    gallery_look(history, desk.pictures, "{}")
    assert time.perf_counter() - again < 2.0
    print(json.dumps({"list": listed - begun, "first search": searched - listed, "all": again - searched}))


@pytest.mark.parametrize("cut", [0, 4, 8, 20, 40, 60, 90])
def test_a_cut_or_foreign_header_gives_no_text_and_no_error(tmp_path, cut):
    path = made_picture(tmp_path / "a.png", 1)
    path.write_bytes(path.read_bytes()[:cut])
    assert head_texts(path) == {}


def test_every_kind_of_text_chunk_is_read_and_a_bomb_is_not_unpacked(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + b"0000"

    bomb = zlib.compress(b"0" * 50_000_000)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"tEXt", b"a\0caf\xe9")
        + chunk(b"zTXt", b"b\0\0" + zlib.compress(b"text"))
        + chunk(b"iTXt", b"c\0\0\0\0\0" + "猫".encode())
        + chunk(b"iTXt", b"d\0\1\0\0\0" + zlib.compress("狐".encode()))
        + chunk(b"zTXt", b"e\0\0" + bomb)
        + chunk(b"IDAT", b"")
        + chunk(b"tEXt", b"f\0late")
    )
    texts = head_texts(tmp_path / "a.png")
    assert len(texts.pop("e")) < 5_000_000
    assert texts == {"a": "café", "b": "text", "c": "猫", "d": "狐"}


def test_each_lora_of_a_picture_keeps_its_strength_when_another_is_not_here(desk, tmp_path):
    made_run(desk, "2026-01-03_000000_train-lora", [tmp_path / "fox.safetensors"], "train-lora")
    (tmp_path / "fox.safetensors").touch()
    rows, missing = rows_of(desk, ["gone", "fox", "x" * 300], ["0.3", "0.8"])
    assert rows == {"lora_weight": str(tmp_path / "fox.safetensors"), "lora_multiplier": "0.8"}
    assert missing == ["gone", "x" * 300]


def test_no_other_machine_is_asked_for_a_pictures_lora(desk, monkeypatch):
    asked = []
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or False)
    shares = [r"\\host\share\a", "//host/share/a", r"\/host/share/a"]
    assert rows_of(desk, shares, [])[1] == shares and not asked
