"""Whole runs on the tiny project, through the same entry that the command line and the window use."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_project import TRANSFORMER, finetune_config, lora_config, randomise

from zimage_gui.engine.train import check, run
from zimage_gui.errors import UserError
from zimage_gui.events import Checkpoint, Event, Note, NullRun, Sample, Step, Warning
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import load_transformer


class StoppedAt(NullRun):
    """Asks to stop as soon as a step is reported."""

    def __init__(self, folder: Path, step: int | None = None) -> None:
        super().__init__(folder)
        self.step = step

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Step) and event.step == self.step:
            self.stop = True

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def train(config, stop_at: int | None = None) -> tuple[StoppedAt, list[Path]]:
    reporter = StoppedAt(Path(config.output_dir or config.output.parent) / "run", stop_at)
    return reporter, run(config, reporter)


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "run")


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


def write_varied_pictures(folder: Path) -> None:
    """Half transparent, with captions of several lines whose lengths fall into different groups."""
    for path in folder.glob("*.txt"):
        path.write_text("red, blue, round\na picture " + "very " * 40 + "large", encoding="utf-8")
        pixels = Image.new("RGBA", (48, 32), (200, 100, 50, 255))
        pixels.paste((20, 200, 90, 0), (24, 0, 48, 32))
        pixels.save(path.with_suffix(".png"))


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


def test_files_and_states_are_named_and_dropped_as_the_first_seed_does(project: Path) -> None:
    options = {"max_train_epochs": 4, "save_every_n_epochs": 1, "save_last_n_epochs": 1, "save_state": True}
    train(lora_config(project, output_name="e", **options))
    assert names(project / "out") == [
        "e-000003-state",
        "e-000003.safetensors",
        "e-latest-state.json",
        "e-state",
        "e.safetensors",
    ]
    steps = {
        "max_train_steps": 6,
        "save_every_n_steps": 2,
        "save_last_n_steps": 2,
        "save_last_n_steps_state": 100,
    }
    train(lora_config(project, output_name="s", output_dir=project / "steps", save_state=True, **steps))
    assert names(project / "steps") == [
        "s-latest-state.json", "s-state", "s-step00000002-state", "s-step00000004-state", "s-step00000004.safetensors",
        "s.safetensors",
    ]  # fmt: skip


def test_what_a_kill_kept_from_being_dropped_is_dropped_when_the_run_goes_on(project: Path) -> None:
    options = {"save_every_n_steps": 1, "save_last_n_steps": 1, "save_state": True, "max_train_steps": 6}
    out = project / "out"
    train(lora_config(project, output_name="s", **options), stop_at=5)
    shutil.copytree(
        out / "s-step00000004-state", out / "s-step00000003-state"
    )  # as if killed after saving step 5
    shutil.copy(out / "s-step00000004.safetensors", out / "s-step00000003.safetensors")
    train(lora_config(project, output_name="s", resume=out / "s-step00000005-state", **options))
    assert not [name for name in names(out) if "00003" in name] and "s-step00000005-state" in names(out)


def test_results_of_another_run_are_never_replaced_unless_asked(project: Path) -> None:
    first = train(lora_config(project, output_name="cats", seed=1))[1][-1]
    before = first.read_bytes()
    reporter, second = train(lora_config(project, output_name="cats", seed=2))
    assert second[-1].name == "cats-2.safetensors" and first.read_bytes() == before
    assert any("cats-2" in event.text for event in reporter.of(Warning))
    _, third = train(lora_config(project, output_name="cats", seed=2, overwrite=True))
    assert third[-1] == first and first.read_bytes() != before


def test_the_second_seeds_naming_has_dots_and_a_sidecar(project: Path) -> None:
    config = lora_config(
        project, output_dir=None, output=project / "out" / "my lora.safetensors", save_every_n_steps=2
    )
    train(config.model_copy(update={"network_alpha": 1.0}))
    assert names(project / "out") == [
        "my lora.lora.json", "my lora.safetensors", "my lora.step2.lora.json", "my lora.step2.safetensors",
    ]  # fmt: skip
    facts = json.loads((project / "out" / "my lora.lora.json").read_text(encoding="utf-8"))
    assert facts["rank"] == 2 and facts["alpha"] == 1.0 and facts["target_attention"] is True


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


def test_metadata_tells_the_run_in_sd_scripts_words_without_paths(project: Path) -> None:
    options = {
        "training_comment": "for Ann",
        "metadata_author": "Me",
        "min_timestep": 100,
        "exclude_patterns": (".*w2",),
    }
    _, results = train(lora_config(project, output_name="meta", **options))
    with safe_open(results[-1], "pt") as file:
        metadata = file.metadata()
    expected = {
        "ss_output_name": "meta", "ss_network_dim": "2", "ss_network_alpha": "2.0", "ss_steps": "4", "ss_epoch": "2",
        "ss_num_train_items": "5", "ss_num_batches_per_epoch": "3", "ss_num_epochs": "2", "ss_seed": "7",
        "ss_training_comment": "for Ann", "ss_base_model_version": "z_image", "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_sd_model_name": "dit.safetensors", "modelspec.author": "Me", "modelspec.architecture": "Z-Image/lora",
        "modelspec.timestep_range": "100,1000", "modelspec.resolution": "32x32", "ss_network_dropout": "None",
    }  # fmt: skip
    assert {name: metadata.get(name) for name in expected} == expected
    assert json.loads(metadata["ss_network_args"]) == {"exclude_patterns": [".*w2"]}
    (dataset,) = json.loads(metadata["ss_datasets"])
    assert (dataset["num_images"], dataset["resolution"], dataset["buckets"]) == (5, [32, 32], {"32x32": 5})
    assert dataset["enable_bucket"] is True and dataset["batch_size_per_device"] == 2
    assert len(metadata["sshs_model_hash"]) == 64
    assert str(project) not in json.dumps(metadata)
    _, bare = train(lora_config(project, output_name="bare", no_metadata=True))
    with safe_open(bare[-1], "pt") as file:
        kept = {name for name in file.metadata() if name.startswith("ss_")}
    assert kept == {"ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"}


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


def adapter_file(project: Path) -> Path:
    model = ZImageTransformer(TRANSFORMER)
    path = "layers.0.attention.to_q"
    down, up = torch.nn.Linear(32, 2, bias=False), torch.nn.Linear(2, 32, bias=False)
    randomise(down, 5, 1.0)
    randomise(up, 6, 1.0)
    assert model.get_submodule(path).weight.shape == (32, 32)
    file = project / "adapter.safetensors"
    write_lora(file, {path: LowRank(down.weight.detach(), up.weight.detach(), 2.0)})
    return file


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


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_step_in_which_every_adapter_is_left_out_changes_nothing(project: Path, precision: str) -> None:
    config = lora_config(project, module_dropout=0.999, mixed_precision=precision, max_train_steps=2)
    reporter, results = train(config)
    assert [step.grad_norm for step in reporter.of(Step)] == [0.0, 0.0]
    assert not any(bool(tensor.any()) for name, tensor in load_file(results[-1]).items() if "lora_B" in name)


def test_a_damaged_state_gives_way_to_the_one_before(project: Path) -> None:
    options = {"max_train_steps": 5, "save_every_n_steps": 1, "save_state": True}
    train(lora_config(project, output_name="a", **options))
    newest = project / "out" / "a-step00000004-state"
    (newest / "weights.safetensors").write_bytes(b"broken")
    reporter, resumed = train(lora_config(project, output_name="a", resume=newest, **options))
    assert any("a-step00000004-state is not usable" in event.text for event in reporter.of(Warning))
    assert min(step.step for step in reporter.of(Step)) == 4 and resumed[-1].name == "a-state"


PROMPTS = """# previews
a red picture --w 32 --h 48 --s 2 --d 5
a blue picture --w 32 --h 32 --s 2 --l 2 --n green
"""


def test_previews_are_pictures_with_their_settings_and_leave_the_training_untouched(project: Path) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    options = {"network_dropout": 0.3, "max_train_steps": 6}
    _, plain = train(lora_config(project, output_name="plain", **options))
    previews = {
        "sample_prompts": prompts,
        "sample_every_n_steps": 3,
        "sample_every_n_epochs": 2,
        "sample_at_first": True,
    }
    reporter, sampled = train(lora_config(project, output_name="seen", **options, **previews))
    assert equal(plain[-1], sampled[-1])
    samples: list[Sample] = reporter.of(Sample)
    assert [(sample.step, sample.index) for sample in samples] == [
        (s, i) for s in (0, 3, 6, 6) for i in (0, 1)
    ]
    assert {sample.adapter for sample in samples} == {None}
    first = Path(samples[0].path)
    assert (
        first.parent == project / "out" / "sample"
        and first.name.startswith("seen_000000_00_")
        and first.name.endswith("_5_000.png")
    )
    assert [Path(sample.path).name.split("_")[1] for sample in samples[-2:]] == ["e000002"] * 2
    with Image.open(first) as picture:
        assert picture.size == (32, 48)
        assert json.loads(picture.text["zimage_gui"])["prompt"] == "a red picture"


def test_a_preview_that_fails_never_ends_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    (project / "out").mkdir()
    (project / "out" / "sample").write_text("in the way", encoding="utf-8")
    reporter, results = train(lora_config(project, sample_prompts=prompts, sample_every_n_steps=2))
    assert results[-1].name == "zimage.safetensors"
    assert len([event for event in reporter.of(Warning) if "training goes on" in event.text]) == 2 * 2


def test_previews_say_that_the_training_adapter_was_on(project: Path) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    options = {"base_weights": (adapter_file(project),), "sample_prompts": prompts, "sample_at_first": True}
    reporter, _ = train(lora_config(project, max_train_steps=1, **options))
    samples: list[Sample] = reporter.of(Sample)
    assert [sample.adapter for sample in samples] == ["on", "on"]
    for sample in samples:
        with Image.open(sample.path) as picture:
            assert json.loads(picture.info["zimage_gui"])["base_weights"] == ["adapter.safetensors"]


def test_left_over_temp_files_of_a_killed_run_are_swept(project: Path) -> None:
    out = project / "out"
    (out / ".zimage-state.999999999-0123abcd.zimage-tmp").mkdir(parents=True)
    (out / ".zimage.safetensors.999999999-0123abcd.zimage-tmp").write_bytes(b"half")
    train(lora_config(project, max_train_steps=1))
    assert names(out) == ["zimage.safetensors"]


@pytest.mark.parametrize("with_state", [True, False])
def test_a_stop_at_a_step_that_was_just_saved_saves_no_more_than_is_missing(
    project: Path, with_state: bool
) -> None:
    reporter, _ = train(lora_config(project, save_every_n_steps=2, save_state=with_state), stop_at=2)
    saved = [Path(event.path).name for event in reporter.of(Checkpoint)]
    weights, state = "zimage-step00000002.safetensors", "zimage-step00000002-state"
    assert saved == ([weights, state] if with_state else [weights, weights, state])


def test_every_save_is_reported_with_its_step_and_epoch(project: Path) -> None:
    reporter, _ = train(
        lora_config(project, max_train_epochs=2, save_every_n_epochs=1, save_state_on_train_end=True)
    )
    told = [(event.what, event.step, event.epoch, Path(event.path).name) for event in reporter.of(Checkpoint)]
    assert told == [
        ("lora", 3, 1, "zimage-000001.safetensors"), ("lora", 6, 2, "zimage.safetensors"), ("state", 6, 2, "zimage-state"),
    ]  # fmt: skip
