"""A program that behaves like an engine but computes nothing: the tests of the jobs room run it as a real process.

`python fake_engine.py --run_folder DIR` does what the folder's config.toml says, through the real runner.
"""

import os
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from zimage_gui.config.schema import Options, option
from zimage_gui.errors import Interrupted, UserError
from zimage_gui.events import Checkpoint, Event, Note, Stage, Step


def plain(default: Any) -> Any:
    return option(default, section="run", label="", help="")


class Config(Options):
    steps: int = plain(3)
    pause: float = plain(0.02)
    fail: str = plain("")
    text: str = plain("")
    gpu: bool = plain(True)


class Spec:
    name = "train-lora"
    gpu = False

    def load(self):
        return train


def a_step(number: int, total: int = 100, loss: float = 0.5, lr: float = 1e-4) -> Step:
    return Step(
        step=number, total_steps=total, epoch=1, total_epochs=1, loss=loss, loss_average=loss, lr=lr, seconds=0.1,
        samples_per_second=10.0,
    )  # fmt: skip


def train(config: Config, run) -> list[Path]:
    run.emit(Stage(name="train", text="Training"))
    print(f"printed: {config.text}", flush=True)
    run.emit(Note(text=config.text))
    saved = run.folder / "checkpoints" / "cats.safetensors"
    for number in range(1, config.steps + 1):
        time.sleep(config.pause)
        if config.fail and number == 2:
            fail_by(config.fail)
        run.emit(a_step(number, config.steps))
        stopping = run.stop_requested()  # asked once: a signal may come between two questions
        if stopping or number == config.steps:
            saved.write_text(str(number), encoding="utf-8")
            run.emit(Checkpoint(path=str(saved), step=number, epoch=1, what="lora"))
        if stopping:
            raise Interrupted
    return [saved]


def fail_by(way: str) -> None:
    match way:
        case "user":
            raise UserError.one("dit", "x.safetensors", "does not exist", "Check the path")
        case "crash":
            raise ZeroDivisionError("nothing by nothing")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "hang":
            time.sleep(600)


class Maker:
    """Stands in for the resident generator: says when it loads, then makes `steps` steps of one picture."""

    def __init__(self) -> None:
        self.loaded = False

    def run(self, config, run) -> list[Path]:
        if not self.loaded:
            run.emit(Stage(name="load", text="Loading the model"))
            self.loaded = True
        for number in range(config.infer_steps):
            if run.stop_requested():
                raise Interrupted
            time.sleep(0.02)
            run.emit(Note(text=f"step {number}"))
            if config.prompt in ("SIGKILL", "SIGSEGV"):
                os.kill(os.getpid(), signal.Signals[config.prompt])
            if config.prompt == "crash":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        picture = run.folder / "samples" / "picture.png"
        picture.write_bytes(b"picture")
        return [picture]


def command_line(folder: Path, command: str) -> list[str]:
    return [sys.executable, __file__, "--run_folder", str(folder)]


def wait_for(condition, seconds: float = 60.0):
    """The first true value of `condition()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


if __name__ == "__main__":
    from zimage_gui.jobs.here import run_here

    where = Path(sys.argv[2])
    told = Config(**tomllib.loads((where / "config.toml").read_text(encoding="utf-8")))
    sys.exit(run_here(Spec(), told, where.parent, run_folder=where))
