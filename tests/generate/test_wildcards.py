"""Choices in prompts: pure in the seed, confined to one folder, written out in the picture."""

import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.engine.generate import check
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.generate_plan import requests_of
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.engine.wildcards import _CHOICE, Wildcards, escaped
from zimage_gui.errors import UserError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "词 wildcards"
    (place / "more").mkdir(parents=True)
    (place / "animal.txt").write_text("\ufeff# all\ncat\n\n{big|small} dog\n狐\n", encoding="utf-8")
    (place / "more" / "place.txt").write_text("near a __animal__\n", encoding="utf-8")
    (place / "endless.txt").write_text("a __endless__\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("password\n", encoding="utf-8")
    return place


def test_choices_are_fixed_by_the_seed_for_ever(folder):
    cards = Wildcards(folder)
    found = [cards.resolved("a {red|blue} __animal__ __more/place__", seed) for seed in range(4)]
    assert found == [
        Wildcards(folder).resolved("a {red|blue} __animal__ __more/place__", seed) for seed in range(4)
    ]
    assert [Wildcards(None).resolved("{a|b|c|d|e|f}", seed) for seed in range(8)] == list("baafeaff")
    assert len(set(found)) > 1


def test_every_choice_is_taken_by_some_seed(folder):
    found = {Wildcards(folder).resolved("{|x|{y|z} }__animal__", seed) for seed in range(300)}
    assert found == {a + b for a in ("", "x", "y ", "z ") for b in ("cat", "big dog", "small dog", "狐")}


@pytest.mark.parametrize(
    "text",
    ["{a}", '{"a": 1}', "a | b", "__animal__", "snake__case__name", "____", "a \\ b", "{}", "(cat:1.2)"],
)
def test_what_is_no_choice_stays_as_it_is(text):
    assert Wildcards(None).resolved(text, 3) == text


@given(st.text(alphabet="ab_{}|\\", max_size=12), st.integers(0, 2**63 - 1))
def test_any_text_can_be_written_so_that_it_stays(text, seed):
    assert Wildcards(None).resolved(escaped(text), seed) == text


@pytest.mark.parametrize("name", ["../secret", "more/../../secret", "/etc/hostname", "link"])
def test_nothing_outside_the_folder_is_read(folder, name):
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    with pytest.raises(UserError, match=r"leaves the folder|has no file"):
        Wildcards(folder).lines(name)
    assert "password" not in Wildcards(None).resolved(f"__{name}__", 1)


def test_a_missing_file_and_an_endless_one_are_told_before_anything_is_made(folder, options):
    words = " ".join(
        problem.sentence() for problem in check(options(prompt="{a|__nobody__}", wildcards_dir=folder))
    )
    assert "prompt = __nobody__: has no file nobody.txt" in words
    with pytest.raises(UserError, match="without end"):
        Wildcards(folder).resolved("__endless__", 1)
    for name in ("i", "doubling"):
        (folder / f"{name}.txt").write_text(f"__{name}__ __{name}__", encoding="utf-8")
        with pytest.raises(UserError, match=rf"prompt = __{name}__: has .* without end"):
            Wildcards(folder).resolved(f"__{name}__", 1)


@pytest.mark.parametrize("text", ["x" * 300_000, "{a|a} " + "x" * 300_000])
def test_a_long_prompt_is_no_endless_one(text):
    assert Wildcards(None).resolved(text, 1).endswith("x" * 300_000)


def test_names_of_one_letter_stand_side_by_side(folder):
    for name in "ab":
        (folder / f"{name}.txt").write_text(name.upper(), encoding="utf-8")
    assert Wildcards(folder).resolved("__a__ and __b__, __a__", 1) == "A and B, A"


def test_each_picture_chooses_by_its_own_seed_and_names_its_prompt(options, run, folder):
    config = options(prompt="a {red|green|blue|black} __animal__", batch_count=4, wildcards_dir=folder)
    prompts = [request.prompt for request in requests_of(config, [PromptLine(config.prompt)])]
    assert len(set(prompts)) > 1
    pictures = generate(config, run)
    assert [read_settings(path)["prompt"] for path in pictures] == prompts
    assert [event.prompt for event in run.events if event.kind == "sample"] == prompts


def test_lines_of_a_prompt_file_choose_too(options, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("{a|b|c|d|e|f} --d 2 --n {a|b|c|d|e|f}\n", encoding="utf-8")
    assert check(options(prompt=None, from_file=path)) == []
    (request,) = requests_of(options(), [PromptLine("{a|b|c|d|e|f}", seed=2, negative_prompt="{a|b}")])
    assert request.prompt == "a" and request.negative_prompt in "ab"


@pytest.mark.parametrize("text", ["{" + "|" * 100_000, "{a|b" * 25_000, "{" + "\\|" * 50_000])
def test_a_choice_that_is_never_closed_is_given_up_after_one_look(text):
    begun = time.monotonic()
    escaped(text)
    assert time.monotonic() - begun < 5


@given(st.text("{}|\\a_", max_size=24))
def test_what_is_a_choice_has_not_changed(text):
    """The rule as it was first written, which took the square of the length."""
    first = re.compile(r"(?<!\\)\{((?:[^{}\\]|\\.)*?(?<!\\)\|(?:[^{}\\]|\\.)*?)(?<!\\)\}", re.DOTALL)
    assert [found.span(1) for found in _CHOICE.finditer(text)] == [
        found.span(1) for found in first.finditer(text)
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_file_that_is_a_link_to_itself_is_told(folder):
    (folder / "ring.txt").symlink_to("ring.txt")
    with pytest.raises(UserError, match="cannot be read"):
        Wildcards(folder).resolved("__ring__", 1)
