"""Proofs of options that two short runs side by side do not show.

Knows the walk and whole commands. Each answers whether its option does what it is for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from option_cases import Changes
from option_walk import MAKERS, Seen, Walk
from test_processes import free_ports

from zimage_gui import cli
from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import sources_of
from zimage_gui.engine.memory_plan import plan
from zimage_gui.engine.train import run
from zimage_gui.events import Event, NullRun, Step, follow


def is_in_the_header(value: str) -> Changes:
    """Whether the value stands in the result's header, under whatever name."""

    def look(seen: Seen) -> bool:
        return value in seen.header().values()

    return Changes(value, look)


def average_leaves_the_gpu(walk: Walk) -> bool:
    """On a CPU both places are one; the estimate of a run on a GPU tells them apart."""
    peaks = []
    for place in ("device", "cpu"):
        config = MAKERS[walk.command](walk.project, ema_decay=0.9, ema_device=place)
        made = plan(config, scan(sources_of(config, config.batch_size)), "cuda", 4)
        assert made is not None
        peaks.append(made.estimate().training_peak)
    return peaks[1] < peaks[0] and not walk.seen({"ema_decay": 0.9, "ema_device": "cpu"}).failed


def result_lies_in(walk: Walk) -> bool:
    folder = walk.project / f"chosen-{walk.command}"
    chosen, left_out = walk.fresh(output_dir=folder), walk.fresh(output_dir=None)
    return chosen.file.parent == folder and left_out.file.parent == left_out.run.folder / "checkpoints"


def result_is_the_one_named(walk: Walk) -> bool:
    path = walk.project / "named" / "mine.safetensors"
    seen = walk.fresh(output=path, output_dir=None)
    return seen.results == [path] and path.with_suffix(".lora.json").is_file()


def second_run_replaces_the_first(walk: Walk) -> bool:
    folder = walk.project / f"twice-{walk.command}"
    first, second, third = (
        walk.fresh(output_dir=folder, seed=seed, overwrite=overwrite)
        for seed, overwrite in ((1, False), (2, False), (3, True))
    )
    return first.file == third.file != second.file


def run_is_recorded_in(walk: Walk) -> bool:
    """The option belongs to the command line, which makes the run's folder."""
    folder = walk.project / f"runs-{walk.command}"
    config = MAKERS[walk.command](walk.project, **walk.options() | {"output_dir": walk.project / "cli"})
    words = {
        "--dit": config.dit, "--dataset": config.dataset, "--resolution": 32, "--device": "cpu", "--seed": 7,
        "--max_train_steps": 1, "--mixed_precision": "no", "--output_dir": config.output_dir, "--runs_dir": folder,
    }  # fmt: skip
    code = cli.main([walk.command, *(str(word) for pair in words.items() for word in pair)])
    (events,) = folder.glob("*/events.jsonl")
    return code == 0 and any(isinstance(event, Step) for event in follow(events)[0])


class _Timed(NullRun):
    waits: timedelta | None = None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Step):
            group = dist.distributed_c10d._get_default_group()
            self.waits = group._get_backend(torch.device("cpu")).options._timeout


def waits_so_long(walk: Walk) -> bool:
    """Two processes, of which this is one; the other makes the same run."""
    kind = "lora" if walk.command == "train-lora" else "full"
    (port,) = free_ports(1)
    options = {"max_train_steps": 1, "ddp_timeout": 7, "output_dir": walk.project / f"two-{kind}"}
    file = walk.project / f"two-{kind}.json"
    file.write_text(json.dumps({"one": (kind, options, port)}, default=str), encoding="utf-8")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    there = (
        os.environ | place | {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    script = Path(__file__).with_name("one_of_two.py")
    other = subprocess.Popen([sys.executable, str(script), str(walk.project), str(file)], env=there)
    reporter = _Timed(walk.project / f"two-{kind}-run")
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (place | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                patch.setenv(name, value)
            run(MAKERS[walk.command](walk.project, **options), reporter)
        assert other.wait(timeout=120) == 0
    finally:
        other.kill()
    return reporter.waits == timedelta(minutes=7)
