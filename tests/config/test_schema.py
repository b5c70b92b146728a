"""Every option of every command is declared fully and can be reached from every side."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from values import SPECIAL

from zimage_gui.commands import COMMANDS as SPECS
from zimage_gui.config.argv import LAUNCHER, parse
from zimage_gui.config.build import absolute, finish, names_of, read
from zimage_gui.config.foreign import ELSEWHERE, INERT, elsewhere_of, inert_of
from zimage_gui.config.help_text import command_help
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import SECTIONS, by_section, options_of, show
from zimage_gui.config.tables import command_page
from zimage_gui.config.toml_io import plain
from zimage_gui.config.training import TrainLoraConfig

ALL = [(command, name) for command, cls in COMMANDS.items() for name in options_of(cls)]
WALKED = [(command, name) for command, name in ALL if name not in ("auth", "network_args", "width", "height")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_section_a_label_and_a_sentence(command):
    for known in options_of(COMMANDS[command]).values():
        assert known.section in SECTIONS and known.label
        assert known.help.endswith("."), known.name
        assert len(known.label) <= 32, known.name


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_means_two_things(command):
    cls = COMMANDS[command]
    spellings = [
        name for known in options_of(cls).values() for name in (*known.spellings, *known.extra.switches)
    ]
    spellings += [*inert_of(command), *elsewhere_of(command), *LAUNCHER]
    assert len(spellings) == len(set(spellings)), sorted(
        name for name in spellings if spellings.count(name) > 1
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_documentation_name_every_option(command):
    cls = COMMANDS[command]
    text, page = command_help(cls, "zimage-gui", everything=True), command_page(cls)
    for name in options_of(cls):
        assert f"--{name}" in text and f"`{name}`" in page
    assert sum(map(len, by_section(cls).values())) == len(options_of(cls))


def required(cls):
    """Options without which a command says what is missing."""
    stand_ins = {
        "model_dir": "m",
        "dataset": "d",
        "prompt": "p",
        "input": "i.safetensors",
        "output": "o.safetensors",
        "to": "t",
    }
    return {name: value for name, value in stand_ins.items() if name in options_of(cls)}


OTHER = {
    "device": "cuda:3", "gpus": "0,2", "output": Path("other.safetensors").absolute(), "caption_extension": ".caption",
    "resolution": (640, 320), "image_size": (640, 320), "optimizer_args": ("eps=1", "betas=0.9,0.99"),
    "network_reg_dims": (".*q=4", "a=8"), "network_reg_lrs": (".*q=0.5", "a=1e-5"), "metadata_reso": "640,320",
    "grid_x": "seed=1,2", "grid_y": "lora=off,on", "grid_z": "prompt=a|b", "gradient_checkpointing_fraction": "0.5",
    "lokr_factor": 8, "prefix": "other.", "lr_scheduler_args": ("a=1",), "include_patterns": (".*q", ".*v"), "exclude_patterns": (".*q",),
}  # fmt: skip


def another(known):
    """A simple value that is not the default."""
    if known.name in OTHER:
        return OTHER[known.name]
    values = {"bool": not known.default, "text": "another", "path": Path("another").absolute()}
    if known.kind == "choice":
        value = next(choice for choice in known.choices if choice != known.default)
    elif known.kind in ("int", "float"):
        value = known.default + 1 if known.default not in (None, ()) else 7
        value = known.high[0] / 2 if known.high and value >= known.high[0] else value
    else:
        value = values[known.kind]
    return (value, value) if known.many else value


@pytest.mark.parametrize(("command", "name"), WALKED)
def test_every_option_is_reached_from_the_command_line_and_from_a_toml(command, name):
    cls = COMMANDS[command]
    known = options_of(cls)[name]
    value = another(known)
    words = [show(item) for item in value] if isinstance(value, tuple) else [show(value)]
    given = read(cls, parse(cls, [f"--{name.replace('_', '-')}", *words]).given, None)
    assert not given.problems
    from_words = cls(**given.values)
    assert getattr(from_words, name) == _tidy(value)
    text = _toml({name: plain(value)})
    from_toml = cls(**read(cls, list(tomllib.loads(text).items()), None).values)
    assert from_toml == from_words != cls()


def _tidy(value):
    return (
        tuple(map(_tidy, value))
        if isinstance(value, tuple)
        else absolute(value, None)
        if isinstance(value, Path)
        else value
    )


def _toml(values):
    import tomlkit

    return tomlkit.dumps(values)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_other_spelling_sets_the_same_option(command):
    cls = COMMANDS[command]
    for spelled, (known, switched) in names_of(cls).items():
        if spelled == known.name or known.name in ("width", "height"):
            continue
        value = switched if switched is not None else another(known)
        words = (
            []
            if switched is not None
            else ([show(item) for item in value] if isinstance(value, tuple) else [show(value)])
        )
        found = read(cls, parse(cls, [f"--{spelled}", *words]).given, None)
        assert not found.problems
        assert getattr(cls(**found.values), known.name) == _tidy(value), spelled


def test_every_command_has_options_and_an_entry():
    assert list(SPECS) == list(COMMANDS)
    assert all(COMMANDS[name].command == name for name in COMMANDS)
    assert {spec.entry.count(":") for spec in SPECS.values()} == {1}


def test_options_that_are_not_options_belong_to_commands_and_say_why():
    for entry in INERT:
        assert set(entry.commands) <= set(COMMANDS) and entry.reason
    for entry in ELSEWHERE:
        assert set(entry.commands) <= set(COMMANDS) and entry.remedy


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("network_dim", 0, "at least 1"),
        ("network_dim", 1.5, "whole number"),
        ("network_dim", True, "whole number"),
        ("network_dim", "many", "whole number"),
        ("learning_rate", "nan", "a number"),
        ("learning_rate", float("inf"), "a number"),
        ("seed", -1, "at least 0"),
        ("device", "gpu", "cuda:N"),
        ("resolution", "8", "from 16"),
        ("resolution", "large", "for a square, or one for each side"),
        ("resolution", [1, 2, 3], "exactly 2"),
        ("include_patterns", ["("], "regular expressions"),
        ("output_name", "a/b", "file name"),
        ("output_name", "con", "Windows"),
        ("optimizer_args", ["weight_decay"], "name=value"),
        ("mixed_precision", "bf8", "no, fp16, bf16"),
        ("lr_warmup_steps", 1.5, "share below 1"),
        ("gradient_checkpointing", "perhaps", "true or false"),
        ("timestep_sampling", "flux3_shift", "must be one of"),
        ("base_weights_multiplier", ["a"], "a number"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(name, value, rule):
    from zimage_gui.errors import UserError

    with pytest.raises(UserError) as error:
        finish(TrainLoraConfig, [read(TrainLoraConfig, [(name, value)], None)])
    (problem,) = [problem for problem in error.value.problems if problem.option == name]
    assert rule in problem.sentence() and problem.remedy


def test_a_config_cannot_be_changed_but_copied_with_a_change():
    config = TrainLoraConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.network_dim = 8
    assert config.with_(network_dim=8).network_dim == 8
    with pytest.raises(ValueError):
        config.with_(network_dim=0)


def test_the_alpha_used_is_the_rank_when_none_is_given():
    assert TrainLoraConfig(network_dim=8).alpha == 8
    assert TrainLoraConfig(network_dim=8, network_alpha=1).alpha == 1


@given(st.floats(allow_nan=False))
def test_a_shown_number_is_the_number(number):
    assert float(show(number)) == number


def test_special_values_are_needed_by_some_option():
    names = {name for cls in COMMANDS.values() for name in options_of(cls)}
    assert set(SPECIAL) <= names
