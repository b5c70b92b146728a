"""Whole runs on the tiny project, through the same entry that the command line and the window use."""

import re
from pathlib import Path

import pytest
import torch
from run_helpers import adapter_file, equal, train, write_varied_pictures
from safetensors.torch import load_file
from tiny_project import TRANSFORMER, finetune_config, lora_config

from zimage_gui.engine.train import check
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Step, Warning
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.weights import load_transformer


@pytest.mark.slow  # compiled blocks are compared with plain ones in test_compiling
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_blocks_train_to_the_same_losses_and_the_result_has_the_usual_names(project: Path) -> None:
    options = {"max_train_steps": 2, "dynamo_backend": "no"}
    plain, (first,) = train(lora_config(project, output_name="plain", **options))
    options |= {"compile": True, "compile_backend": "aot_eager", "compile_fullgraph": True}
    compiled, (second,) = train(lora_config(project, output_name="compiled", **options))
    losses = [[step.loss for step in reporter.of(Step)] for reporter in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert list(load_file(first)) == list(load_file(second))
    refused = check(lora_config(project, compile=True, compile_backend="nonsense"))
    assert [problem.option for problem in refused] == ["compile_backend"]


def test_prodigy_with_a_usual_rate_is_warned_about(project: Path) -> None:
    reporter, _ = train(lora_config(project, max_train_steps=1, optimizer_type="Prodigy", learning_rate=1e-4))
    assert [event.text for event in reporter.of(Warning) if "Prodigy" in event.text and "1" in event.text]


@pytest.mark.slow  # the walk over every option sees the same
@pytest.mark.parametrize("make", [lora_config, finetune_config])
def test_each_way_to_see_a_picture_changes_what_is_learned(project: Path, make) -> None:
    write_varied_pictures(project / "pictures")
    seen = {}
    for name, options in {
        "plain": {}, "dropped": {"caption_dropout_rate": 1.0}, "lines": {"caption_lines": True},
        "shuffled": {"shuffle_caption": True, "caption_lines": True}, "trigger": {"caption_prefix": "zorb"},
        "flipped": {"flip_aug": True}, "masked": {"alpha_mask": True},
        "weighed": {"alpha_mask": True, "unmasked_weight": 0.9},
    }.items():  # fmt: skip
        reporter, _ = train(make(project, max_train_steps=3, output_name=name, **options))
        seen[name] = tuple(step.loss for step in reporter.of(Step))
    assert len(set(seen.values())) == len(seen)


def test_epochs_of_captions_with_other_lengths_are_counted_one_by_one(project: Path) -> None:
    write_varied_pictures(project / "pictures")
    reporter, _ = train(lora_config(project, batch_size=3, max_train_epochs=8, caption_lines=True))
    steps = reporter.of(Step)
    per_epoch = [sum(step.epoch == epoch for step in steps) for epoch in range(1, 9)]
    assert len(set(per_epoch)) > 1 and steps[-1].total_steps == len(steps) == sum(per_epoch)
    by_steps, _ = train(
        lora_config(project, batch_size=3, max_train_steps=len(steps), caption_lines=True, output_name="b")
    )
    assert by_steps.of(Step)[-1].total_epochs == 8


def test_a_lora_lowers_the_loss_and_changes_no_base_weight(project: Path) -> None:
    before = (project / "models" / "dit.safetensors").read_bytes()
    reporter, results = train(lora_config(project, max_train_steps=60, learning_rate=2e-2, network_dim=8))
    losses = [step.loss for step in reporter.of(Step)]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
    assert (project / "models" / "dit.safetensors").read_bytes() == before
    tensors = load_file(results[-1])
    assert len(tensors) == 3 * 14 and "diffusion_model.layers.1.attention.to_out.0.lora_A.weight" in tensors
    assert all(float(tensor.abs().max()) > 0 for tensor in tensors.values())


def test_accumulated_batches_make_the_same_update_as_one_large_batch(project: Path) -> None:
    results = []
    for name, size, accumulation in (("large", 4, 1), ("small", 1, 4)):
        options = {"batch_size": size, "gradient_accumulation_steps": accumulation, "optimizer_type": "SGD"}
        # all four samples of the epoch in one update, so that their order does not matter
        (project / "pictures" / "4.txt").unlink(missing_ok=True)
        results.append(
            train(lora_config(project, output_name=name, max_train_steps=1, learning_rate=1.0, **options))[1][
                -1
            ]
        )
    large, small = (load_file(path) for path in results)
    for name in large:
        torch.testing.assert_close(large[name], small[name], rtol=1e-4, atol=1e-6)


def test_checkpointing_changes_memory_and_not_the_result(project: Path) -> None:
    plain, saved = (
        train(lora_config(project, output_name=f"c{flag}", gradient_checkpointing=flag))[1][-1]
        for flag in (False, True)
    )
    assert equal(plain, saved)


@pytest.mark.parametrize("form", ["universal", "native"])
def test_a_saved_lora_gives_the_trained_model_when_merged(project: Path, form: str) -> None:
    from zimage_gui.model.lora_merge import merge_lora
    from zimage_gui.model.lora_read import read_lora

    _, results = train(lora_config(project, lora_format=form, network_alpha=0.5, max_train_steps=6))
    file = read_lora(results[-1])
    merged = load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32)
    plain = load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32)
    assert merge_lora(merged, file) == 14
    changed = {
        name
        for name, weight in merged.named_parameters()
        if not torch.equal(weight, plain.get_parameter(name))
    }
    assert changed == {f"{path}.weight" for path in file.entries}
    first = next(iter(load_file(results[-1])))
    assert first.startswith("lora_unet_" if form == "native" else "diffusion_model.")


@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_a_finetuned_model_loads_again_unchanged(project: Path, layout: str) -> None:
    _, results = train(finetune_config(project, save_layout=layout, save_precision="fp32", save_state=True))
    loaded = load_transformer(results[-2], dtype=torch.float32)
    assert loaded.config == TRANSFORMER
    saved = load_file(results[-1] / "weights.safetensors")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, saved[f"weights.{name}"]), name
    fused = any("attention.qkv" in name for name in load_file(results[-2]))
    assert fused is (layout == "comfy")


def test_base_weights_act_in_training_are_counted_and_stay_out_of_the_result(project: Path) -> None:
    adapter = adapter_file(project)
    _, plain = train(lora_config(project, output_name="plain"))
    reporter, merged = train(
        lora_config(project, output_name="with", base_weights=(adapter,), base_weights_multiplier=(0.5,))
    )
    assert any("adapter.safetensors x 0.5 into 1 layers" in event.text for event in reporter.of(Note))
    assert not equal(plain[-1], merged[-1])
    _, again = train(
        lora_config(project, output_name="zero", base_weights=(adapter,), base_weights_multiplier=(0.0,))
    )
    assert equal(plain[-1], again[-1])  # at strength 0 nothing of the adapter reaches the result


def test_a_training_adapter_that_fits_nothing_is_refused_before_training(project: Path) -> None:
    foreign = project / "foreign.safetensors"
    write_lora(foreign, {"layers.40.attention.to_q": LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    problems = check(lora_config(project, base_weights=(foreign,)))
    assert [problem.option for problem in problems] == ["base_weights"] and "do not exist" in problems[0].rule


def test_everything_wrong_is_said_at_once_and_before_weights_are_read(project: Path) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text("a cat --w banana\n", encoding="utf-8")
    config = lora_config(
        project, dit=project / "nothing.safetensors", optimizer_type="Nonsense", lr_scheduler="sideways",
        device="cuda:7", sample_prompts=prompts, sample_at_first=True, dataset=project / "no pictures",
        resume=project / "pictures",
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        train(config)
    options = {problem.option for problem in caught.value.problems}
    assert {
        "dit",
        "optimizer_type",
        "lr_scheduler",
        "device",
        "sample_prompts",
        "dataset",
        "resume",
    } <= options


def test_patterns_that_leave_no_layer_are_a_problem_of_their_option(project: Path) -> None:
    problems = check(lora_config(project, include_patterns=("nothing",)))
    assert [problem.option for problem in problems] == ["include_patterns"]


def test_a_weight_outside_masks_needs_masks(project: Path) -> None:
    (problem,) = check(lora_config(project, unmasked_weight=0.5))
    assert problem.option == "unmasked_weight" and "no picture folder has masks" in problem.sentence()
    table = '[[datasets]]\nimage_directory = "pictures"\nresolution = 32\nalpha_mask = true\n'
    (project / "data.toml").write_text(table, encoding="utf-8")
    config = lora_config(
        project,
        unmasked_weight=0.5,
        dataset=None,
        dataset_config=project / "data.toml",
        resolution=(1024, 1024),
        batch_size=1,
    )
    assert check(config) == []


@pytest.mark.parametrize("fused", [False, True])
def test_an_exploding_run_stops_with_a_clear_failure_and_keeps_the_last_good_state(
    project: Path, fused: bool
) -> None:
    options = {"learning_rate": 1000.0, "optimizer_type": "SGD", "max_grad_norm": 0.0, "max_train_steps": 60}
    config = finetune_config(
        project, save_every_n_steps=1, save_state=True, fused_backward_pass=fused, **options
    )
    with pytest.raises(UserError, match="training broke down") as caught:
        train(config)
    assert re.search(r"step \d+", str(caught.value)) and "resume from" in str(caught.value)
    states = sorted((project / "out").glob("*-state"))
    assert states and not (project / "out" / "zimage.safetensors").exists()
    for state in states:
        weights = load_file(state / "weights.safetensors").values()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_step_in_which_every_adapter_is_left_out_changes_nothing(project: Path, precision: str) -> None:
    config = lora_config(project, module_dropout=0.999, mixed_precision=precision, max_train_steps=2)
    reporter, results = train(config)
    assert [step.grad_norm for step in reporter.of(Step)] == [0.0, 0.0]
    assert not any(bool(tensor.any()) for name, tensor in load_file(results[-1]).items() if "lora_B" in name)
