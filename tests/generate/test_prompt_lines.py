"""Prompt files in the first seed's syntax."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.engine.prompt_lines import PromptLine, parse_line, read_prompt_file
from zimage_gui.errors import UserError


def test_a_line_sets_everything():
    line = "a cat, 4k -- really --w 512 --h 768 --s 20 --d 7 --g 1.5 --fs 6 --n blurry, low - quality"
    assert parse_line(line) == PromptLine(
        "a cat, 4k -- really", "blurry, low - quality", 512, 768, 7, 20, 1.5, 6.0
    )


def test_l_wins_over_g_wherever_it_stands():
    assert parse_line("x --l 4 --g 1").guidance_scale == 4
    assert parse_line("x --g 1 --l 4").guidance_scale == 4


@pytest.mark.parametrize("text", ["n is a letter", "I love cats", "w 512", "d 5 --d 6", "of one", "--w 512"])
def test_the_words_of_the_prompt_are_never_options(text):
    line = parse_line(text)
    assert line.negative_prompt is None
    assert line.prompt == ("" if text == "--w 512" else text.split(" --")[0])


def test_options_are_read_in_any_case_and_sizes_go_down_to_16():
    line = parse_line("x --W 500 --S 8")
    assert (line.width, line.steps) == (496, 8)
    assert "496" in line.notes[0]


def test_options_of_video_models_are_ignored_and_said():
    assert parse_line("x --f 1").notes == ("--f has no meaning for Z-Image",)


def test_keys_of_video_models_are_ignored_and_said_in_tables_too(tmp_path):
    keys = ["frame_count", "end_image_path", "control_video_path", "control_image_path", "one_frame"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": "a", "seed": 3} | {key: ["x"] for key in keys}]))
    (line,) = read_prompt_file(path)
    assert line.seed == 3 and [note.split()[0] for note in line.notes] == keys


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("x --w abc", "--w must be a whole number"),
        ("x --w 8", "between 16"),
        ("x --s 0", "between 1 and 1000"),
        ("x --l nan", "--l must be a number"),
        ("x --d -1", "--d must lie"),
        ("x --seed 5", "unknown option --seed"),
        ("x --w 64 --w 64", "--w twice"),
        ("x --w", "--w must"),
    ],
)
def test_what_cannot_be_used_is_named(line, rule):
    with pytest.raises(ValueError, match=rule):
        parse_line(line)


@given(st.text(max_size=60).filter(lambda text: "--" not in text))
def test_any_text_without_dashes_is_the_prompt(text):
    assert parse_line(text).prompt == text.strip()


def test_a_text_file_skips_comments_and_empty_lines(tmp_path):
    path = tmp_path / "提示 file.txt"
    path.write_text("\ufeff# nothing\n\nein Bär --s 3\n红色的猫\n", encoding="utf-8")
    assert [line.prompt for line in read_prompt_file(path)] == ["ein Bär", "红色的猫"]


def test_toml_and_json_say_the_same(tmp_path):
    toml, json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(
        '[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a"\ncfg_scale = 2\n[[prompt.subset]]\nprompt = "b"\n'
    )
    json.write_text('[{"prompt": "a", "width": 64, "cfg_scale": 2}, "b --w 64"]')
    expected = [PromptLine("a", width=64, guidance_scale=2.0), PromptLine("b", width=64)]
    assert read_prompt_file(toml) == read_prompt_file(json) == expected


def test_a_tables_null_says_nothing_and_a_whole_number_may_have_a_point(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a", "seed": null, "image_path": null, "width": 512.0}]')
    assert read_prompt_file(path) == [PromptLine("a", width=512)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b"# only\n"),
        ("a.txt", b"\xff\xfe"),
        ("a.toml", b"x = 1"),
        ("a.toml", b"[prompt]\nsubset = 3"),
        ("a.toml", b"[prompt]\nwidth = 64"),
        ("a.json", b"{}"),
        ("a.json", b"[[1]]"),
        ("a.json", b"[" * 50_000),
        ("a.json", b'[{"prompt": 3}]'),
        ("a.json", rb'["half a character \ud83d"]'),
        ("a.json", rb'["a --n \ud83d"]'),
        ("a.json", rb'[{"prompt": "a", "negative_prompt": "\udc00"}]'),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="from_file"):
        read_prompt_file(tmp_path / name)


def test_every_wrong_line_is_named_at_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a --w x --h y\nb\nc --q 1\n")
    with pytest.raises(UserError) as caught:
        read_prompt_file(path)
    assert "line 1 --w must be" in str(caught.value)
    assert "--h must be" in str(caught.value)
    assert "line 3" in str(caught.value)


@pytest.mark.parametrize("option", ["--l", "--g"])
def test_guidance_in_a_prompt_file_begins_above_1_as_in_the_first_seed(option):
    """Turbo's users write --l 1 for "off"; ComfyUI's CFG of 1 is off too."""
    guided = [parse_line(f"x {option} {value}") for value in ("0", "0.5", "1", "1.0", "1.01", "4")]
    assert [line.guidance_scale for line in guided] == [0, 0, 0, 0, 1.01, 4]
    assert [bool(line.notes) for line in guided] == [False, True, False, False, False, False]
    assert parse_line("x").guidance_scale is None
