"""Runs folders for the tests of the jobs room; no process started in a test outlives it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from zimage_gui.jobs.folder import RunFolder


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A runs folder with a space and Chinese letters in its path; all its processes are ended afterwards."""
    folder = tmp_path / "my runs 图"
    folder.mkdir()
    yield folder
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
                process.wait(5)


@pytest.fixture
def new_run(runs: Path) -> Callable[..., RunFolder]:
    """Makes a run of the fake engine that is not started yet."""

    def make(name: str = "cats", gpu: bool = True, **options: object) -> RunFolder:
        config = "".join(f"{key} = {value!r}\n" for key, value in options.items())
        return RunFolder.create(runs, "train-lora", name, config, gpu=gpu)

    return make
