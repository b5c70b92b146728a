"""A generate request on the tiny golden model."""

from pathlib import Path

import pytest

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.events import NullRun

HUB = Path(__file__).parents[1] / "data" / "reference" / "hub"


@pytest.fixture
def run(tmp_path) -> NullRun:
    return NullRun(tmp_path / "run folder")


@pytest.fixture
def options():
    """Makes a small, fast request; the named options replace its own."""

    def make(**changes) -> GenerateConfig:
        own = {
            "model_dir": HUB,
            "prompt": "a photo of a red circle",
            "image_size": (48, 64),
            "infer_steps": 2,
            "seed": 7,
            "mixed_precision": "no",
            "device": "cpu",
        }
        return GenerateConfig(**{**own, **changes})

    return make
