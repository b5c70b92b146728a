"""What a run leaves behind: names of files and states, metadata, previews, and what is swept or dropped."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import PROMPTS, adapter_file, equal, names, train
from safetensors import safe_open
from tiny_project import lora_config

from zimage_gui.events import Checkpoint, Sample, Warning


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
