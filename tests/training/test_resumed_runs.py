"""A resumed run is the straight run to the last bit, and a state that does not fit is refused in words."""

import json
from pathlib import Path

import pytest
import torch
from run_helpers import equal, train, write_varied_pictures
from tiny_project import finetune_config, lora_config

from zimage_gui.engine import preflight
from zimage_gui.engine.train import check
from zimage_gui.errors import UserError
from zimage_gui.events import Step, Warning

VARIANTS = {
    "caption_dropout_rate": 0.3, "shuffle_caption": True, "caption_lines": True, "flip_aug": True, "alpha_mask": True,
    "noise_offset": 0.05, "num_timestep_buckets": 3, "loss_type": "huber", "huber_schedule": "snr",
}  # fmt: skip


WATCHED = {
    "ema_decay": 0.9, "validation_split": 0.3, "validate_every_n_steps": 3,
    "early_stop": "validation", "early_stop_patience": 100,
}  # fmt: skip


KINDS = {
    "lora-variants": (lora_config, VARIANTS),
    "finetune-variants": (finetune_config, VARIANTS),
    "lora-watched": (lora_config, WATCHED),
    "finetune-watched": (finetune_config, WATCHED | {"ema_device": "cpu"}),
    "lora": (lora_config, {"network_dropout": 0.2, "rank_dropout": 0.1, "module_dropout": 0.1}),
    "lora-8bit": (
        lora_config,
        {"optimizer_type": "AdamW8bit", "optimizer_args": ("min_8bit_size=16",), "mixed_precision": "bf16"},
    ),
    "lora-checkpointing": (
        lora_config,
        {
            "gradient_checkpointing": True,
            "network_dropout": 0.2,
            "gradient_accumulation_steps": 2,
            "lr_scheduler": "cosine",
        },
    ),
    "lora-schedule-free": (lora_config, {"optimizer_type": "AdamWScheduleFree", "learning_rate": 1e-2}),
    "lora-prodigy": (lora_config, {"optimizer_type": "Prodigy", "learning_rate": 1.0, "lr_scheduler": "rex"}),
    "finetune": (
        finetune_config,
        {"mixed_precision": "bf16", "lr_scheduler": "linear", "lr_warmup_steps": 0.2},
    ),
    "finetune-bf16": (
        finetune_config,
        {"mixed_precision": "bf16", "full_bf16": True, "optimizer_type": "Adafactor"},
    ),
    "finetune-fused": (
        finetune_config,
        {
            "fused_backward_pass": True,
            "gradient_checkpointing": True,
            "optimizer_type": "Adafactor",
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 3,
        },
    ),
    "finetune-fused-bf16-8bit": (
        finetune_config,
        {
            "fused_backward_pass": True,
            "mixed_precision": "bf16",
            "full_bf16": True,
            "optimizer_type": "AdamW8bit",
            "optimizer_args": ("min_8bit_size=16",),
            "train_patterns": (r"layers\.1",),
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stop_and_resume_in_the_middle_of_an_epoch_ends_bit_for_bit_as_the_straight_run(
    project: Path, kind: str
) -> None:
    make, options = KINDS[kind]
    options = options | {"max_train_steps": 7, "save_precision": "fp32"}
    if "variants" in kind:
        write_varied_pictures(project / "pictures")
    whole_run, straight = train(make(project, output_name="straight", **options))
    stopped_run, stopped = train(make(project, output_name="parts", **options), stop_at=4)
    assert [path.name for path in stopped] == ["parts-step00000004.safetensors", "parts-step00000004-state"]
    torch.manual_seed(12345)  # whatever happens between the runs must not matter
    resumed_run, resumed = train(make(project, output_name="parts", resume=stopped[-1], **options))
    assert resumed[-1].name == "parts.safetensors" and equal(straight[-1], resumed[-1])
    losses = [[step.loss for step in reporter.of(Step)] for reporter in (whole_run, stopped_run, resumed_run)]
    averages = [
        [step.loss_average for step in reporter.of(Step)]
        for reporter in (whole_run, stopped_run, resumed_run)
    ]
    assert losses[0] == losses[1] + losses[2] and averages[0] == averages[1] + averages[2]


def test_a_run_resumed_with_other_settings_is_refused_or_says_so(project: Path) -> None:
    _, stopped = train(lora_config(project, max_train_steps=6), stop_at=2)
    refused = (
        {"network_dim": 4},
        {"optimizer_type": "Adafactor"},
        {"seed": 8},
        {"optimizer_args": ("eps=1e-6",)},
    )
    for change in refused:
        with pytest.raises(UserError):
            train(lora_config(project, resume=stopped[-1], **({"max_train_steps": 6} | change)))
    changes = {"max_train_steps": 5, "learning_rate": 5e-3, "network_dropout": 0.5, "optimizer_type": "adamw"}
    reporter, _ = train(lora_config(project, resume=stopped[-1], **changes))
    said = "".join(event.text for event in reporter.of(Warning))
    assert "max_train_steps was 6, is 5" in said and "network_dropout was 0.0, is 0.5" in said
    assert [step.lr for step in reporter.of(Step)] == pytest.approx([5e-3] * 3)
    _, still = train(lora_config(project, output_name="still", learning_rate=0), stop_at=2)
    reporter, _ = train(lora_config(project, output_name="still", resume=still[-1], learning_rate=5e-3))
    assert [step.lr for step in reporter.of(Step)] == [5e-3] * 2


@pytest.mark.parametrize("part", ["trainer", "random", "run", "weights"])
def test_a_state_whose_manifest_was_tampered_with_is_refused_in_words(project: Path, part: str) -> None:
    _, stopped = train(lora_config(project), stop_at=1)
    manifest = json.loads((stopped[-1] / "manifest.json").read_text(encoding="utf-8"))
    manifest["values"][part] = {"dict": [["progress", {"dict": [["step", 1], ["epoch", 0]]}]]}
    (stopped[-1] / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="resume"):
        train(lora_config(project, resume=stopped[-1]))


def test_a_damaged_state_gives_way_to_the_one_before(project: Path) -> None:
    options = {"max_train_steps": 5, "save_every_n_steps": 1, "save_state": True}
    train(lora_config(project, output_name="a", **options))
    newest = project / "out" / "a-step00000004-state"
    (newest / "weights.safetensors").write_bytes(b"broken")
    reporter, resumed = train(lora_config(project, output_name="a", resume=newest, **options))
    assert any("a-step00000004-state is not usable" in event.text for event in reporter.of(Warning))
    assert min(step.step for step in reporter.of(Step)) == 4 and resumed[-1].name == "a-state"


def test_a_state_nested_deeper_than_anything_is_no_crash(project: Path, monkeypatch) -> None:
    """From Python 3.12 on JSON reads what Python's own calls cannot follow."""
    nested: dict = {"list": []}
    for _ in range(2000):
        nested = {"list": [nested]}
    monkeypatch.setattr(preflight, "read_manifest", lambda folder: {"values": {"run": nested}})
    (project / "x-state").mkdir()
    assert not [
        problem
        for problem in check(lora_config(project, resume=project / "x-state"))
        if problem.option == "resume"
    ]
