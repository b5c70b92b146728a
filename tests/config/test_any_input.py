"""Whatever is written, there is a config or a sentence; never anything else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_gui.config.argv import parse
from zimage_gui.config.build import build, finish, read
from zimage_gui.config.dataset import read_dataset
from zimage_gui.config.foreign import ELSEWHERE, INERT
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import Options, options_of
from zimage_gui.config.toml_io import loads
from zimage_gui.errors import UserError

NAMES = sorted(
    {name for cls in COMMANDS.values() for name in options_of(cls)}
    | {entry.name for entry in (*INERT, *ELSEWHERE)}
)
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["0", "-1", "1e9", "nan", "false", "a=b"]),
)
values = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(max_size=3), scalars, max_size=2)
)
commands = st.sampled_from(sorted(COMMANDS))


def config_or_sentences(make) -> None:
    try:
        assert isinstance(make(), Options)
    except UserError as error:
        assert all(problem.sentence().strip() for problem in error.problems)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(commands, st.dictionaries(names, values, max_size=6))
def test_any_mapping(command, given_values):
    config_or_sentences(lambda: build(COMMANDS[command], given_values))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    commands,
    st.lists(
        st.one_of(
            st.builds("--{}".format, names), st.text(max_size=10), st.sampled_from(["--", "-h", "x.toml"])
        )
    ),
)
def test_any_words(command, words):
    cls = COMMANDS[command]
    parsed = parse(cls, words)
    config_or_sentences(lambda: finish(cls, [read(cls, parsed.given, None)]))


@settings(deadline=None, derandomize=True)
@given(commands, st.text(max_size=60))
def test_any_text_as_toml(command, text):
    config_or_sentences(lambda: loads(COMMANDS[command], text))


@settings(deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "general": st.dictionaries(
                st.sampled_from(["resolution", "batch_size", "caption_extension", "x"]), values
            ),
            "datasets": st.lists(
                st.dictionaries(
                    st.sampled_from(["image_directory", "cache_directory", "resolution", "num_repeats", "y"]),
                    values,
                ),
                max_size=3,
            ),
        },
    )
)
def test_any_dataset_file(tables):
    try:
        read_dataset(tables)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a" * 100_000, "a.b.c = 1", "x = 1979-05-27", "[[a]]\nb=1", "[a]\n[[a.b]]\nc=1"]
)
def test_odd_toml(text):
    config_or_sentences(lambda: loads(COMMANDS["train-lora"], text))
