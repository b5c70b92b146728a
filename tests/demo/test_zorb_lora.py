"""The demo's promise: a few minutes of training on sixteen pictures teach the zorb, and circles stay circles."""

import subprocess
import sys
from pathlib import Path

import pytest

from zimage_gui.demo.draw import Subject
from zimage_gui.demo.measure import DemoModel, measure
from zimage_gui.demo.pictures import ZORB_PROMPT
from zimage_gui.demo.project import write_project


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_shipped_settings_teach_the_zorb(tmp_path: Path) -> None:
    write_project(tmp_path)
    settings = str(tmp_path / "train_lora.toml")
    subprocess.run(
        [sys.executable, "-m", "zimage_gui", "train-lora", settings, "--runs_dir", str(tmp_path)], check=True
    )
    model = DemoModel(tmp_path / "models/hub", lora=tmp_path / "output/zorb.safetensors")
    zorbs = measure(model, [ZORB_PROMPT] * 50)
    circles = measure(model, [Subject("circle", "red", "white")] * 50)
    assert zorbs.stars >= 0.8, zorbs.line()
    assert circles.stars <= 0.05 and circles.shape >= 0.9, circles.line()
