"""Memory that runs out: one message with what to change, in order, and settings for the form."""

import itertools
from pathlib import Path

import pytest
import torch
from run_helpers import StoppedAt
from tiny_project import lora_config

from zimage_gui.config.build import build
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.engine.memory_advice import changes
from zimage_gui.engine.memory_estimate import GIB, Batch, Workload
from zimage_gui.engine.memory_models import ModelSizes
from zimage_gui.engine.memory_plan import Plan
from zimage_gui.engine.train import run
from zimage_gui.errors import EXIT_FAILED, NoMemory
from zimage_gui.events import Failed, follow
from zimage_gui.jobs.folder import EVENTS_FILE, RunFolder
from zimage_gui.jobs.here import execute

GIVEN = {"model_dir": "m", "dataset": "d"}
CASES = [
    (TrainLoraConfig, {"batch_size": 4, "gradient_checkpointing": False, "network_dim": 32}),
    (TrainLoraConfig, {"base_quant": "fp8", "resolution": (1536, 1536)}),
    (FinetuneConfig, {"optimizer_type": "AdamW"}),
    (FinetuneConfig, {"gradient_accumulation_steps": 4, "optimizer_type": "AdamW"}),
]


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_changes_are_allowed_together_and_each_leaves_less_until_it_fits(cls, options) -> None:
    config = build(cls, GIVEN | options)
    edge, count = config.resolution[0], config.batch_size
    plan = Plan(config, ModelSizes(), Workload(Batch(edge, edge, 128, count)), "cuda")
    found = changes(plan, 1 * GIB)
    build(cls, GIVEN | options | {change.option: change.value for change in found})
    peaks = [plan.estimate().peak, *(change.peak for change in found)]
    assert len(found) >= 3 and all(after < before for before, after in itertools.pairwise(peaks))
    enough = changes(plan, peaks[2])
    assert [change.option for change in enough] == [change.option for change in found[:2]]
    assert changes(plan, 1000 * GIB)  # said to fit, and did not: something is to be changed all the same


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_a_run_without_memory_says_what_to_change(project: Path, monkeypatch, error) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    config = lora_config(project, network_dim=64, optimizer_type="AdamW")
    with pytest.raises(NoMemory) as caught:
        run(config, StoppedAt(project / "run", None))
    assert "memory is full" in str(caught.value) and "estimated at" in str(caught.value)
    assert "--gradient_checkpointing true" in caught.value.hint or "--batch_size 1" in caught.value.hint
    assert caught.value.settings and caught.value.__cause__ is None


def test_it_ends_the_run_without_a_traceback_and_leaves_settings_for_the_form(tmp_path: Path, capfd) -> None:
    config = build(TrainLoraConfig, GIVEN)
    folder = RunFolder.create(tmp_path, "train-lora", "", config, gpu=True)
    folder.begin()

    def work() -> list[Path]:
        raise NoMemory("The GPU's memory is full.", "Then:\n  --batch_size 1", {"batch_size": "1"})

    assert execute(folder, work) == EXIT_FAILED
    (failed,) = [one for one in follow(folder.folder / EVENTS_FILE)[0] if isinstance(one, Failed)]
    assert failed.error_kind == "out_of_memory" and failed.settings == {"batch_size": "1"}
    assert "Traceback" not in capfd.readouterr().err
