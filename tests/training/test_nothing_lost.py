"""What a run does to keep its own work and that of others: when it fails, and when it goes on elsewhere."""

from pathlib import Path
from typing import Any

import pytest
from run_helpers import StoppedAt, equal, names, train
from tiny_project import finetune_config, lora_config

from zimage_gui.engine.train import check, run
from zimage_gui.errors import UserError
from zimage_gui.events import Checkpoint, Event, Step, Warning


class LosingThePictures(StoppedAt):
    """Their drive is gone once two steps are done."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Step) and event.step == 2:
            project = self.folder.parent.parent
            (project / "pictures").rename(project / "gone")


@pytest.mark.parametrize("make", [lora_config, finetune_config])
def test_a_run_whose_pictures_vanish_saves_what_it_trained_and_goes_on_from_there(
    project: Path, make: Any
) -> None:
    config = make(project, output_name="a")
    _, straight = train(make(project, output_name="straight"))
    run_of = LosingThePictures(project / "out" / "run")
    with pytest.raises(UserError, match="does not exist"):
        run(config, run_of)
    saved = [Path(event.path).name for event in run_of.of(Checkpoint)]
    assert saved == ["a-step00000002.safetensors", "a-step00000002-state"]
    (project / "gone").rename(project / "pictures")
    state = project / "out" / "a-step00000002-state"
    _, resumed = train(config.model_copy(update={"resume": state}))
    assert equal(straight[-1], resumed[-1])


def test_a_state_of_the_first_seed_is_named_with_the_way_to_go_on(project: Path) -> None:
    _, stopped = train(lora_config(project, save_state_on_train_end=True))
    foreign = project / "out" / "other-state"  # beside states of ours, none of which is meant
    foreign.mkdir()
    (foreign / "optimizer.bin").touch()
    (lora,) = check(lora_config(project, resume=foreign))
    (model,) = check(finetune_config(project, resume=foreign))
    assert stopped and "musubi-tuner" in lora.rule == model.rule
    assert f"network_weights {foreign / 'model.safetensors'}" in lora.remedy and " dit " in model.remedy


def test_a_resumed_run_takes_the_place_of_its_own_results_and_of_no_others(project: Path) -> None:
    _, stopped = train(lora_config(project, output_name="a"), stop_at=2)
    there = project / "elsewhere"
    _, others = train(lora_config(project, output_name="a", output_dir=there, max_train_steps=1))
    before = others[-1].read_bytes()
    going_on = {"output_name": "a", "resume": stopped[-1]}
    reporter, results = train(lora_config(project, **going_on, output_dir=there))
    assert others[-1].read_bytes() == before and results[-1].name == "a-2.safetensors"
    assert any("holds results named a" in event.text for event in reporter.of(Warning))
    _, results = train(lora_config(project, **going_on, output_dir=there, overwrite=True))
    assert results[-1] == others[-1] and others[-1].read_bytes() != before
    _, results = train(lora_config(project, **going_on))
    assert results[-1].name == "a.safetensors" and "a-2.safetensors" not in names(project / "out")


def test_options_that_fit_no_state_are_named_before_anything_is_loaded(project: Path) -> None:
    _, stopped = train(lora_config(project), stop_at=1)
    changed = lora_config(project, resume=stopped[-1], network_dim=3, seed=8, optimizer_type="SGD")
    problems = {problem.option: problem.sentence() for problem in check(changed)}
    assert list(problems) == ["optimizer_type", "seed", "network_dim"]
    assert problems["network_dim"].startswith("network_dim = 3: differs from the state's 2")
    (alpha,) = check(lora_config(project, resume=stopped[-1].parent, network_alpha=4))
    assert alpha.option == "network_alpha" and alpha.value == "4.0"
    (kind,) = check(finetune_config(project, resume=stopped[-1]))
    assert kind.option == "resume" and "state of a LoRA" in kind.rule and "train-lora" in kind.remedy
    assert not check(lora_config(project, resume=stopped[-1], seed=None))
