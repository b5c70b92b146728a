"""One torch thread for every test: two busy threads slow each other several times on a shared machine. And no
deadlines for hypothesis's examples: how busy the machine is says nothing about the program. Files that take
longest begin first, so that no process ends alone with one of them. What imports leave in memory is taken out of
the garbage collector's sight: a training collects twice, which then takes no half a second."""

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

LONGEST = (
    "test_browser", "test_every_option", "test_memory_modes", "test_processes", "test_resumed_runs",
    "test_training_runs", "test_every_generate_option", "test_shared_out", "test_generate_browser", "test_kill",
    "test_memory_estimate",
)  # fmt: skip

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(Path(item.path).stem, len(LONGEST)))


class Frozen:
    """How many modules were imported when the collector last forgot what there was."""

    modules = 0


def pytest_runtest_setup() -> None:
    if len(sys.modules) != Frozen.modules:
        gc.collect()
        gc.freeze()
        Frozen.modules = len(sys.modules)
