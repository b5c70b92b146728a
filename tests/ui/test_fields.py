"""From schema to field and back: nothing is rounded, lost or invented on the way."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.config.build import build
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError
from zimage_gui.ui.values import collect, defaults, from_values, from_widget, to_widget

NEEDED = {"dit": "a.safetensors", "dataset": "pictures"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_untouched_form_means_the_defaults(command):
    config_class = COMMANDS[command]
    assert collect(config_class, defaults(config_class)) == {}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_help_holds_what_gradio_takes_for_marks_of_its_own(command):
    marks = re.compile(r"\*.+\*|__.+__|(?<!\w)_.+_(?!\w)|\[[^\]]+\]\([^)]+\)")
    helps = {name: option.help for name, option in options_of(COMMANDS[command]).items()}
    assert [name for name, text in helps.items() if marks.search(text)] == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_default_survives_the_way_through_its_field(command):
    for option in options_of(COMMANDS[command]).values():
        shown = to_widget(option, option.default)
        again = to_widget(option, from_widget(option, shown)) if shown not in (None, "") else shown
        assert again == shown, option.name


def test_a_learning_rate_is_shown_as_people_type_it():
    rate = options_of(TrainLoraConfig)["learning_rate"]
    assert [to_widget(rate, value) for value in (1e-4, 0.00015, 0.02, 1.0)] == [
        "1e-4",
        "0.00015",
        "0.02",
        "1",
    ]


@given(st.floats(min_value=0, max_value=1000, allow_nan=False))
def test_no_number_is_rounded_by_its_field(value):
    rate = options_of(TrainLoraConfig)["learning_rate"]
    assert float(str(to_widget(rate, value))) == value


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_seed_keeps_every_digit(seed):
    config = build(TrainLoraConfig, {**NEEDED, **collect(TrainLoraConfig, {"seed": str(seed)})})
    assert config.seed == seed


def test_lists_sizes_and_quoted_paths_are_understood():
    raw = {
        "lora_weight": "C:\\my loras\\a, b.safetensors\n\n/tmp/猫.safetensors",
        "lora_multiplier": "0.5, 1",
        "image_size": "832 x 1216",
        "save_path": '"/tmp/with space"',
    }
    values = collect(GenerateConfig, raw)
    assert values["lora_weight"] == ["C:\\my loras\\a, b.safetensors", "/tmp/猫.safetensors"]
    assert values["lora_multiplier"] == ["0.5", "1"]
    assert values["image_size"] == ["832", "1216"]
    assert values["save_path"] == "/tmp/with space"


def test_a_wrong_field_is_worded_as_on_the_command_line():
    values = collect(TrainLoraConfig, {"learning_rate": "abc", "network_dim": "", "batch_size": "2.5"})
    with pytest.raises(UserError) as caught:
        build(TrainLoraConfig, {**NEEDED, **values})
    problems = {problem.option: problem for problem in caught.value.problems}
    assert set(problems) == {"learning_rate", "network_dim", "batch_size"}
    assert "must be a number of at least 0" in problems["learning_rate"].rule


def test_unknown_names_of_a_file_are_left_out_of_the_form():
    assert from_values(FinetuneConfig, {"network_dim": 4, "learning_rate": 1e-6}) == {"learning_rate": "1e-6"}
