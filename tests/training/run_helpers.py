"""Whole runs on the tiny project, stopped where a test wants it, and how their results are compared."""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_project import TRANSFORMER, randomise

from zimage_gui.engine.train import run
from zimage_gui.events import Event, NullRun, Step
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.transformer import ZImageTransformer


class StoppedAt(NullRun):
    """Asks to stop as soon as a step is reported."""

    def __init__(self, folder: Path, step: int | None = None) -> None:
        super().__init__(folder)
        self.step = step

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Step) and event.step == self.step:
            self.stop = True

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def train(config, stop_at: int | None = None) -> tuple[StoppedAt, list[Path]]:
    reporter = StoppedAt(Path(config.output_dir or config.output.parent) / "run", stop_at)
    return reporter, run(config, reporter)


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "run")


def write_varied_pictures(folder: Path) -> None:
    """Half transparent, with captions of several lines whose lengths fall into different groups."""
    for path in folder.glob("*.txt"):
        path.write_text("red, blue, round\na picture " + "very " * 40 + "large", encoding="utf-8")
        pixels = Image.new("RGBA", (48, 32), (200, 100, 50, 255))
        pixels.paste((20, 200, 90, 0), (24, 0, 48, 32))
        pixels.save(path.with_suffix(".png"))


def adapter_file(project: Path) -> Path:
    model = ZImageTransformer(TRANSFORMER)
    path = "layers.0.attention.to_q"
    down, up = torch.nn.Linear(32, 2, bias=False), torch.nn.Linear(2, 32, bias=False)
    randomise(down, 5, 1.0)
    randomise(up, 6, 1.0)
    assert model.get_submodule(path).weight.shape == (32, 32)
    file = project / "adapter.safetensors"
    write_lora(file, {path: LowRank(down.weight.detach(), up.weight.detach(), 2.0)})
    return file


PROMPTS = """# previews
a red picture --w 32 --h 48 --s 2 --d 5
a blue picture --w 32 --h 32 --s 2 --l 2 --n green
"""
