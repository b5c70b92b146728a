"""Whole runs of every kind of network on the tiny project."""

import json
from pathlib import Path

import pytest
import torch
from run_helpers import PROMPTS, adapter_file, equal, train
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_project import lora_config

from zimage_gui.engine.train import check
from zimage_gui.events import Note, Sample, Step
from zimage_gui.model.lora_read import read_lora

KINDS = {
    "rslora": {"network_module": "lora", "use_rslora": True},
    "dora": {"network_module": "dora"},
    "loha": {"network_module": "loha", "network_dim": 4},
    "lokr": {"network_module": "lokr", "lokr_factor": 4, "network_dim": 2},
    "lokr-whole": {"network_module": "lokr", "lokr_full": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lowers_the_loss(project: Path, kind: str) -> None:
    reporter, results = train(lora_config(project, max_train_steps=40, learning_rate=2e-2, **KINDS[kind]))
    losses = [step.loss for step in reporter.of(Step)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    file = read_lora(results[-1])
    assert not file.problems and len(file.entries) == 14


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_every_kind_resumes_bit_for_bit_with_checkpointing_and_previews_in_between(
    project: Path, kind: str
) -> None:
    dropouts = {
        "network_dropout": 0.2,
        "rank_dropout": 0.1,
        "module_dropout": 0.1,
        "scale_weight_norms": 0.05,
    }
    rates = {"network_reg_lrs": (".*w1=5e-3",)} | ({"loraplus_lr_ratio": 4.0} if kind == "dora" else {})
    options = {"max_train_steps": 4, **KINDS[kind], **dropouts, **rates}
    _, straight = train(lora_config(project, output_name="straight", **options))
    prompts = project / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    seen = {"sample_prompts": prompts, "sample_at_first": True, "gradient_checkpointing": True}
    first, stopped = train(lora_config(project, output_name="parts", **options, **seen), stop_at=2)
    assert len(first.of(Sample)) == 2
    torch.manual_seed(12345)
    _, resumed = train(lora_config(project, output_name="parts", resume=stopped[-1], **options))
    assert equal(straight[-1], resumed[-1])


def test_a_run_starts_from_a_lora_and_takes_its_sizes(project: Path) -> None:
    adapter = adapter_file(project)
    merged, _ = train(lora_config(project, output_name="m", max_train_steps=1, base_weights=(adapter,)))
    started, results = train(
        lora_config(project, output_name="s", max_train_steps=1, network_weights=adapter)
    )
    assert started.of(Step)[0].loss == pytest.approx(merged.of(Step)[0].loss, rel=1e-5)
    assert any("adapter.safetensors: 1 layers; 13 others" in note.text for note in started.of(Note))
    assert len(read_lora(results[-1]).entries) == 14
    sized = lora_config(
        project,
        output_name="d",
        max_train_steps=1,
        network_dim=9,
        network_weights=adapter,
        dim_from_weights=True,
    )
    reporter, results = train(sized)
    assert reporter.of(Step)[0].loss == pytest.approx(merged.of(Step)[0].loss, rel=1e-5)
    assert {path: entry.rank for path, entry in read_lora(results[-1]).entries.items()} == {
        "layers.0.attention.to_q": 2
    }
    with safe_open(results[-1], "pt") as file:
        assert file.metadata()["ss_network_dim"] == "2"


@pytest.mark.parametrize(
    ("options", "option", "part"),
    [
        ({"network_weights": True, "network_dim": 1}, "network_weights", "has rank 2 there and 1 is trained"),
        ({"network_weights": True, "network_module": "loha"}, "network_weights", "is a LoRA there"),
        ({"network_weights": True, "exclude_patterns": (".*to_q",)}, "network_weights", "is not trained"),
        ({"network_module": "dora", "lora_format": "universal"}, "lora_format", "size per row this form cannot say"),
        ({"network_module": "dora", "lora_format": "native"}, "lora_format", "size per row this form cannot say"),
        ({"network_reg_dims": ("to_q=4",)}, "network_reg_dims", "matches the whole name of no trained layer"),
        (
            {"network_reg_lrs": (".*=1e-3",), "optimizer_type": "Adafactor", "optimizer_args": ("relative_step=True",)},
            "network_reg_lrs", "works out its own rate",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_training(
    project: Path, options: dict, option: str, part: str
) -> None:
    if options.get("network_weights"):
        options = options | {"network_weights": adapter_file(project)}
    problems = check(lora_config(project, **options))
    assert any(problem.option == option and part in problem.rule for problem in problems), problems


def factor(path: Path, layer: str, part: str) -> torch.Tensor:
    return load_file(path)[f"diffusion_model.layers.0.{layer}.{part}.weight"]


def test_a_ratio_and_patterns_change_the_rates_they_name_and_no_others(project: Path) -> None:
    options = {"max_train_steps": 1, "optimizer_type": "SGD", "max_grad_norm": 0.0, "learning_rate": 0.5}
    _, plain = train(lora_config(project, output_name="plain", **options))
    rates = {"loraplus_lr_ratio": 4.0, "network_reg_lrs": (r".*feed_forward\.w1=0.25",)}
    reporter, changed = train(lora_config(project, output_name="changed", **options, **rates))
    assert reporter.of(Step)[0].lr == 0.5
    for layer, times in (("attention.to_q", 4.0), ("feed_forward.w1", 2.0)):
        torch.testing.assert_close(
            factor(changed[-1], layer, "lora_B"), times * factor(plain[-1], layer, "lora_B")
        )


@pytest.mark.parametrize("kind", ["rslora", "loha", "lokr"])
def test_no_layer_grows_beyond_the_largest_norm_and_the_count_is_told(project: Path, kind: str) -> None:
    options = {"max_train_steps": 8, "learning_rate": 5e-2, "scale_weight_norms": 0.3}
    reporter, results = train(lora_config(project, **options, **KINDS[kind]))
    norms = [
        entry.delta(torch.zeros(entry.shape)).norm() for entry in read_lora(results[-1]).entries.values()
    ]
    held = [step.layers_held for step in reporter.of(Step)]
    assert max(norms) <= 0.3 * (1 + 1e-4) and 0 < held[-1] <= 14 and None not in held
    with safe_open(results[-1], "pt") as file:
        assert file.metadata()["ss_scale_weight_norms"] == "0.3"


def test_the_header_tells_the_kind_its_arguments_and_what_was_set_by_hand(project: Path) -> None:
    options = {"max_train_steps": 1, "metadata_reso": "640, 320", "metadata_arch": "Z-Image-Base/lora"}
    _, results = train(lora_config(project, **options, **KINDS["lokr"]))
    with safe_open(results[-1], "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lokr", "2")
    assert json.loads(metadata["ss_network_args"]) == {"factor": 4}
    assert metadata["modelspec.resolution"] == "640x320"
    assert metadata["modelspec.architecture"] == "Z-Image-Base/lora"
    ranks = {"network_reg_dims": (".*w1=4",), "max_train_steps": 1}
    _, results = train(lora_config(project, output_name="ranks", **ranks, **KINDS["rslora"]))
    file = read_lora(results[-1])
    assert file.ranks == (2, 4) and file.metadata["ss_network_dim"] == "Dynamic"
    assert json.loads(file.metadata["ss_network_args"])["use_rslora"] is True


def test_the_header_has_every_entry_of_the_first_seeds(project: Path) -> None:
    """Those that its LoRAs have whatever the options; guidance_scale belongs to another model."""
    names = (
        "session_id training_started_at output_name learning_rate num_train_items num_batches_per_epoch num_epochs "
        "gradient_checkpointing gradient_checkpointing_cpu_offload gradient_accumulation_steps max_train_steps "
        "lr_warmup_steps lr_scheduler base_model_version network_module network_dim network_alpha network_dropout "
        "mixed_precision seed training_comment optimizer max_grad_norm fp8_base full_fp16 full_bf16 weighting_scheme "
        "logit_mean logit_std mode_scale timestep_sampling sigmoid_scale discrete_flow_shift datasets sd_model_name "
        "vae_name training_finished_at steps epoch"
    )
    _, results = train(lora_config(project, base_quant="fp8", max_train_steps=1))
    with safe_open(results[-1], "pt") as file:
        header = file.metadata()
    assert {f"ss_{name}" for name in names.split()} <= set(header) and header["ss_fp8_base"] == "True"
    assert {"sshs_model_hash", "sshs_legacy_hash", "modelspec.title", "modelspec.date"} <= set(header)


def test_the_second_seeds_sidecar_lies_beside_nothing_it_cannot_read(project: Path) -> None:
    out = project / "out" / "x.safetensors"
    train(lora_config(project, output_dir=None, output=out, max_train_steps=1, **KINDS["loha"]))
    assert out.is_file() and not out.with_suffix(".lora.json").exists()
