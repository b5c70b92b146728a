"""Real processes that are killed at chosen instants, and what must hold of every file afterwards.

Knows command lines, folders and signals. Must not know what is trained or encoded.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from zimage_gui.engine.state import load_state
from zimage_gui.events import Stage, Step, follow
from zimage_gui.files import TEMP_SUFFIX

STEPS = 24
AT_WORK = ("train", "encode_latents", "encode_text")
"""Stages in which a run makes what it is for."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
_PATIENCE = 240.0
"""Seconds for a process to begin or to end, on a busy machine."""


@dataclass
class Job:
    """One command in one project. results: where its files lie; most: of the steps or files that a run makes, at
    most so many more come before its kill, and then up to `longest` seconds. The counts are of what happened."""

    project: Path
    command: str
    options: dict[str, object]
    results: Path
    most: int
    longest: float
    goes_on: Callable[[Job], dict[str, object]] = lambda job: {}
    kills: int = 0
    half_written: int = 0
    starts: list[int] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.project / f"runs-{self.command}"

    def start(self) -> subprocess.Popen[bytes]:
        options = self.options | self.goes_on(self) | {"runs_dir": self.runs}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with open(self.project / "console.txt", "wb") as console:
            return subprocess.Popen(
                [sys.executable, "-m", "zimage_gui", self.command, *words],
                cwd=self.project, env=ENVIRONMENT, stdout=console, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def finish(self) -> None:
        process = self.start()
        assert process.wait(timeout=_PATIENCE) == 0, (self.project / "console.txt").read_text(
            encoding="utf-8"
        )

    def run_until_killed(self, choose: random.Random, *, in_the_act: bool) -> bool:
        """False when the run came to its end before. in_the_act: as soon as a file is half written."""
        before = set(self.runs.glob("2*"))
        wanted, delay = choose.randint(0, self.most), choose.uniform(0, self.longest)
        there, process = self._files(), self.start()
        try:
            if not _until(lambda: self._done(before, there) >= wanted, process, 0.005):
                return False
            time.sleep(delay)
            if in_the_act and not _until(lambda: bool(temp_files(self.results)), process, 0.0005):
                return False
            if process.poll() is not None:
                return False
        finally:
            process.kill()
            process.wait()
        self.kills += 1
        left = temp_files(self.results)
        self.half_written += bool(left)
        # those of earlier kills are gone: a next run swept them
        assert len(left) <= 3, left
        return True

    def _files(self) -> int:
        return len(list(self.results.glob("*.safetensors")))

    def _done(self, before: set[Path], there: int) -> int:
        """Steps of the run that has just been started, or cache files beside those that were there; -1 before
        it is at work."""
        new = set(self.runs.glob("2*")) - before
        events = [event for folder in new for event in follow(folder / "events.jsonl")[0]]
        if not any(isinstance(event, Stage) and event.name in AT_WORK for event in events):
            return -1
        steps = sum(isinstance(event, Step) for event in events)
        return steps if self.command in ("train-lora", "finetune") else self._files() - there

    def first_steps(self) -> list[int]:
        """The first step of each run that made one, in the order of the runs."""
        found = []
        for folder in sorted(self.runs.glob("2*")):
            steps = [event.step for event in follow(folder / "events.jsonl")[0] if isinstance(event, Step)]
            found += steps[:1]
        return found


def _until(happened: Callable[[], bool], process: subprocess.Popen[bytes], every: float) -> bool:
    """False when the process ended first. every: seconds."""
    end = time.monotonic() + _PATIENCE
    while not happened():
        if process.poll() is not None:
            return happened()
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(every)
    return True


def temp_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{TEMP_SUFFIX}")] if folder.is_dir() else []


def whole(folder: Path) -> int:
    """Read everything that has a final name to its end; how many files that were."""
    files = [path for path in folder.rglob("*") if path.is_file() and TEMP_SUFFIX not in str(path)]
    for path in files:
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.name == "events.jsonl":  # the last line may be cut; a reader waits for its end
            lines = path.read_bytes().split(b"\n")[:-1]
            assert all(json.loads(line) for line in lines if line)
    for state in folder.glob("*-state"):
        load_state(state)
    return len(files)
