"""How words stand on a command line."""

from pathlib import Path

import pytest

from zimage_gui.config.argv import parse
from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.training import TrainLoraConfig


def given(cls, *words):
    parsed = parse(cls, words)
    assert not parsed.problems, [problem.sentence() for problem in parsed.problems]
    return dict(parsed.given)


def test_lists_values_and_switches():
    words = [
        "--optimizer_args",
        "a=1",
        "b=2",
        "--lr",
        "1e-4",
        "--gradient_checkpointing",
        "--no-metadata",
        "false",
        "--output-name=x=y",
    ]
    assert given(TrainLoraConfig, *words) == {
        "optimizer_args": ("a=1", "b=2"),
        "lr": "1e-4",
        "gradient_checkpointing": True,
        "no-metadata": False,
        "output-name": "x=y",
    }


def test_negative_numbers_and_prompts_with_dashes_are_values():
    words = [
        "--lora_multiplier",
        "-0.5",
        "1",
        "--prompt",
        "-- a cat --n dog",
        "--negative_prompt=--ugly",
        "--image_size",
        "512",
        "768",
    ]
    assert given(GenerateConfig, *words) == {
        "lora_multiplier": ("-0.5", "1"),
        "prompt": "-- a cat --n dog",
        "negative_prompt": "--ugly",
        "image_size": ("512", "768"),
    }


def test_a_toml_and_positional_words():
    parsed = parse(ConvertLoraConfig, ["run.toml", "in.safetensors", "--reverse", "out.safetensors"])
    assert parsed.config_file == Path("run.toml") and not parsed.problems
    assert parsed.given == [("reverse", True), ("input", "in.safetensors"), ("output", "out.safetensors")]


def test_a_named_option_is_not_taken_by_position():
    parsed = parse(ConvertLoraConfig, ["--input", "a", "b"])
    assert ("output", "b") in parsed.given


def test_the_ending_of_a_config_file_may_be_left_out():
    assert parse(TrainLoraConfig, ["--config_file", "run"]).config_file == Path("run.toml")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--learning", "1"], "--learning: is not an option of train-lora. Did you mean learning_rate?"),
        (["--lr"], "--lr: needs a value"),
        (["--lr", "--rank", "8"], "--lr: needs a value"),
        (["extra"], "extra: is a word that train-lora does not expect"),
        (["--no_metadata=perhaps"], "takes only true or false"),
        (["--prompt", "a cat"], "It belongs to generate"),
    ],
)
def test_what_is_wrong_with_the_words(words, text):
    (problem,) = parse(TrainLoraConfig, words).problems
    assert text in problem.sentence()


def test_words_of_the_command_line_itself():
    parsed = parse(TrainLoraConfig, ["-h", "--dry-run", "--run-folder", "x", "--help_all", "false"])
    assert parsed.help and parsed.dry_run and parsed.run_folder == Path("x") and not parsed.help_all


def test_a_second_config_file_is_named_as_such():
    (problem,) = parse(TrainLoraConfig, ["a.toml", "--config_file", "b.toml"]).problems
    assert "second config file beside b.toml" in problem.sentence()
