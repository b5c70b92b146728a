"""The shipped presets agree with the rules: with models and pictures added, nothing is wrong with them."""

from pathlib import Path

import pytest

from zimage_gui.config.build import finish, read
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of
from zimage_gui.config.toml_io import read_text, source

PRESETS = sorted((Path(__file__).parents[2] / "presets").glob("*/*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_preset_is_right_once_models_and_pictures_are_chosen(path):
    cls = COMMANDS[path.parent.name]
    chosen = {"model_dir": "m", "dataset": "d", "prompt": "p", "sample_prompts": "prompts.txt"}
    preset = source(cls, read_text(path), None)
    needed = {"sample_prompts": any("sample_" in name for name in preset.values)}
    given = [
        (name, value) for name, value in chosen.items() if name in options_of(cls) and needed.get(name, True)
    ]
    config = finish(cls, [preset, read(cls, given, None)])
    assert config != finish(cls, [read(cls, given, None)])


def test_there_are_presets():
    assert {path.parent.name for path in PRESETS} <= set(COMMANDS) and PRESETS
