"""Grids: axes as they are written, cells that equal plain pictures, few loads, resuming, and the sheet."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from pydantic import ValidationError

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.grid_parts import axis_of
from zimage_gui.engine import grid_job
from zimage_gui.engine.generate import check
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.generator import lora_stamps
from zimage_gui.engine.grid import grid_of
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.engine.prompt_lines import parse_line
from zimage_gui.engine.sheet import font_for, sheet_of, wrapped
from zimage_gui.errors import Interrupted, UserError, raise_if_any
from zimage_gui.events import NullRun

DATA = Path(__file__).parents[1] / "data"
LORA = DATA / "lora_dialects" / "main_kohya_split.safetensors"
SECOND = DATA / "reference" / "single" / "z_image_fused.safetensors"
FIRST = DATA / "reference" / "hub" / "transformer"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _texts(run, kind: str) -> str:
    return "\n".join(event.text for event in run.events if event.kind == kind)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("seed=1..4", "seed", (1, 2, 3, 4)),
        ("steps = 4..12:4, 20", "infer_steps", (4, 8, 12, 20)),
        ("guidance_scale=0..1:0.5", "guidance_scale", (0.0, 0.5, 1.0)),
        ("lora_multiplier=0, 0.5 1", "lora_multiplier", ((0.0,), (0.5, 1.0))),
        ("prompt=a cat, red|a dog", "prompt", ("a cat, red", "a dog")),
        ("lora=off,on", "lora", (False, True)),
        ("scheduler=linear,beta", "scheduler", ("linear_quadratic", "beta")),
    ],
)
def test_an_axis_is_an_option_and_its_values(text, name, values):
    axis = axis_of(GenerateConfig, "grid_x", text)
    assert (axis.name, axis.values) == (name, values)
    assert len(set(axis.words)) == len(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid_x": "seed"}, "must be an option, = and its values"),
        ({"grid_x": "vae=a,b"}, "a grid can vary dit,"),
        ({"grid_x": "steps=0,4"}, "must be a whole number of at least 1"),
        ({"grid_x": "seed=1,1"}, "a value twice"),
        ({"grid_x": "seed=5..1"}, "it must rise"),
        ({"grid_x": "seed=1..50", "grid_y": "infer_steps=1..50"}, "gives 2500 pictures"),
        ({"grid_x": "seed=1,2", "grid_y": "seed=3,4"}, "and so does another axis"),
        ({"grid_x": "lora_multiplier=0,1"}, "lora_weight is empty"),
        ({"compare_lora": True}, "lora_weight is empty"),
        ({"grid_x": "strength=0.5,1"}, "without image_path it changes nothing"),
        ({"grid_x": "cfg_truncation=0.5,1"}, "guidance_scale is 0"),
        ({"grid_x": "cfg_normalization=1,2", "grid_y": "seed=1,2"}, "guidance_scale is 0"),
        ({"grid_x": "steps=1..4:0.5"}, "its step is no whole number"),
        ({"grid_x": "seed=1.5..4"}, "its first number is no whole number"),
        ({"grid_x": "seed=1..4:0"}, "it must rise, in at most 1000 steps"),
        ({"grid_x": f"seed={'1' * 300}..{'9' * 300}"}, "it must rise, in at most 1000 steps"),
        ({"grid_x": f"seed={'1' * 5000}..{'9' * 5000}"}, "which is none"),
        ({"grid_x": f"guidance_scale={'1' * 400}..{'9' * 400}"}, "it must rise, in at most 1000 steps"),
        ({"grid_x": f"guidance_scale=0..{'9' * 400}:{'9' * 400}"}, "it must rise, in at most 1000 steps"),
        ({"grid_x": "seed=1,2", "output": Path("a.png")}, "does not go with output"),
        ({"grid_x": "dit=nowhere.safetensors"}, "does not exist"),
        ({"grid_x": "prompt=__nothing__", "wildcards_dir": DATA}, "has no file nothing.txt"),
    ],
)
def test_a_wrong_grid_is_told_in_a_sentence(options, changes, words):
    with pytest.raises((UserError, ValidationError), match=re.escape(words)):
        raise_if_any(check(options(**changes)))


def test_an_axis_may_vary_what_another_one_or_a_line_switches_on(options, tmp_path):
    (tmp_path / "p.txt").write_text("a --l 4", encoding="utf-8")
    axis = {"grid_x": "cfg_truncation=0.5,1"}
    for more in ({"grid_y": "guidance_scale=0,4"}, {"prompt": None, "from_file": tmp_path / "p.txt"}):
        assert not check(options(**axis, **more))


def test_cells_are_the_pictures_that_their_settings_give_alone(options, run):
    grid = options(lora_weight=[LORA], grid_x="lora_multiplier=0,1", grid_y="seed=7,8")
    *cells, sheet = generate(grid, run)
    assert len(cells) == 4
    found = {(tuple(s["lora_multiplier"]), s["seed"]): path for path in cells if (s := read_settings(path))}
    plain, with_lora = generate(options(seed=8), run) + generate(options(seed=8, lora_weight=[LORA]), run)
    assert np.array_equal(_pixels(found[(0.0,), 8]), _pixels(plain))
    assert np.array_equal(_pixels(found[(1.0,), 8]), _pixels(with_lora))
    assert read_settings(sheet).items() >= {"grid_x": "lora_multiplier=0,1", "grid_y": "seed=7,8"}.items()
    with Image.open(sheet) as image:
        assert image.width > 2 * 64 and image.height > 2 * 48


def test_each_transformer_is_loaded_once_and_the_text_encoder_only_once(options, run):
    grid = options(grid_x="seed=1,2", grid_y=f"dit={FIRST}|{SECOND}", grid_z="prompt=one|two")
    assert len(generate(grid, run)) == 8 + 1
    assert _texts(run, "stage").count("Loading the transformer") == 2
    assert _texts(run, "stage").count("Loading the text encoder") == 1


def test_an_axis_wins_over_a_line_and_each_prompt_gets_its_sheet(options):
    grid = options(prompt=None, grid_y="infer_steps=1,2", batch_count=2, seed=None)
    found = grid_of(grid, [parse_line("one --s 9 --d 5"), parse_line("two")])
    assert [sheet.title for sheet in found.sheets] == ["one", "one", "two", "two"]
    assert {cell.request.steps for cell in found.cells} == {1, 2}
    assert [sheet.seed for sheet in found.sheets][:2] == [5, 6]
    for axis, title in {"seed=1,2": "{a|a} cat", "infer_steps=1,2": "a cat", "prompt=x|y": ""}.items():
        (sheet,) = grid_of(options(grid_x=axis), [parse_line("{a|a} cat")]).sheets
        assert sheet.title == title
    assert all(cell.request.seed == found.sheets[cell.sheet].seed for cell in found.cells)
    assert {cell.place for cell in found.cells} == {(0, 0, 0), (0, 1, 0)}


class Stops(NullRun):
    """Asked to stop in the first step of its second picture."""

    def emit(self, event):
        super().emit(event)
        self.stop |= event.kind == "progress" and event.unit == "steps" and event.done > 2

    def stop_requested(self) -> bool:
        return self.stop


def test_a_stopped_grid_keeps_what_is_made_and_goes_on_from_there(options, tmp_path, monkeypatch):
    monkeypatch.setattr("zimage_gui.engine.dataset.progress.time.monotonic", iter(range(10**6)).__next__)
    grid = options(grid_x="seed=1..3", save_path=tmp_path / "図")
    with pytest.raises(Interrupted):
        generate(grid, Stops(tmp_path / "a"))
    (first,) = (tmp_path / "図").glob("*_Seed-1_*.png")
    (sheet,) = (tmp_path / "図").glob("*_grid_*.png")
    part, before = _pixels(sheet), first.stat().st_mtime_ns
    run = NullRun(tmp_path / "b")
    assert len(generate(grid, run)) == 4
    assert "1 of 3 pictures are there already" in _texts(run, "note")
    assert first.stat().st_mtime_ns == before
    assert len(list((tmp_path / "図").iterdir())) == 4
    assert not np.array_equal(_pixels(sheet), part)
    again = NullRun(tmp_path / "c")
    generate(grid, again)
    assert "Loading" not in _texts(again, "stage")


def test_with_and_without_lora_are_two_files_from_one_seed(options, run):
    without, with_lora, _ = generate(options(lora_weight=[LORA], compare_lora=True), run)
    assert "_7_without-LoRA_" in without.name and "_7_with-LoRA_" in with_lora.name
    assert (read_settings(without)["lora_weight"], read_settings(with_lora)["lora_weight"]) == (
        [],
        [LORA.name],
    )
    assert not np.array_equal(_pixels(without), _pixels(with_lora))


def test_a_sheet_has_words_at_its_edges_and_empty_cells(tmp_path):
    Image.new("RGB", (300, 200), (255, 0, 0)).save(tmp_path / "a.png")
    words = (["Seed 1", "Seed 2"], ["一只红色的猫坐在窗台上", "b"], ["z 1", "z 2"])
    sheet = np.asarray(sheet_of({(1, 0, 1): tmp_path / "a.png"}, words, "赤い猫 a very long title " * 40))
    red = np.argwhere((sheet == (255, 0, 0)).all(axis=2))
    (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0)
    assert (bottom - top + 1, right - left + 1) == (200, 300)
    assert (sheet == (232, 235, 240)).all(axis=2).sum() == 7 * 200 * 300
    assert (sheet[: top - 450].min(axis=2) < 100).any()


def test_a_large_grid_makes_its_pictures_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr("zimage_gui.engine.sheet.MOST_PIXELS", 500_000)
    Image.new("RGB", (256, 256)).save(tmp_path / "a.png")
    pictures = {(x, y, 0): tmp_path / "a.png" for x in range(8) for y in range(8)}
    sheet = sheet_of(pictures, (["x"] * 8, ["y"] * 8, []), "")
    assert 400_000 < sheet.width * sheet.height < 900_000


def test_words_are_cut_between_words_or_anywhere_in_scripts_without_spaces():
    font = ImageFont.load_default(16)
    assert wrapped("one two three", int(font.getlength("one two")) + 2, font, 5) == ["one two", "three"]
    lines = wrapped("x" * 100, 100, font, 2)
    assert len(lines) == 2 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 100 for line in lines)


def test_a_font_is_chosen_that_has_the_characters():
    font = font_for("红色的猫 ねこ", 20)
    if not isinstance(font, ImageFont.FreeTypeFont) or font.getname() == font_for("abc", 20).getname():
        pytest.skip("this machine has no font with Chinese characters")
    assert bytes(font.getmask("猫")) != bytes(font.getmask("紅"))


def test_what_fails_before_the_first_picture_is_what_is_told(options, tmp_path, monkeypatch):
    """A file of the second LoRA that vanished, where the first one's picture lies there from an earlier run."""
    second = tmp_path / "second.safetensors"
    second.write_bytes(LORA.read_bytes())
    grid = options(grid_x=f"lora_weight={LORA},{second}", save_path=tmp_path / "out")
    assert len(generate(grid, NullRun(tmp_path / "a"))) == 3
    looks = []

    def vanished(choices):
        looks.append(choices)
        if len(looks) > 1:
            raise FileNotFoundError(second)
        return lora_stamps(choices)

    monkeypatch.setattr(grid_job, "lora_stamps", vanished)
    with pytest.raises(FileNotFoundError):
        generate(grid, NullRun(tmp_path / "b"))
