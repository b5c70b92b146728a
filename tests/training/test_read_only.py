"""Folders that cannot be written: each is named in one sentence before a picture is looked at. A read-only mount
holds for root too; where none can be made the tests with one say so and are skipped."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_helpers import train
from tiny_project import finetune_config, lora_config

from zimage_gui import cli
from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.engine import cache_latents, cache_text
from zimage_gui.engine.checkpoints import OutputNames, prepare_folder
from zimage_gui.engine.train import check, run
from zimage_gui.errors import EXIT_USER, UserError
from zimage_gui.events import NullRun, Stage

Lock = Callable[[Path], Path]


@pytest.fixture
def read_only() -> Iterator[Lock]:
    """Makes a folder, with what is in it, one that nobody can write."""
    mounted: list[Path] = []

    def mount(*words: str) -> None:
        try:
            done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
            refused = done.stderr.strip() if done.returncode else ""
        except OSError as error:
            refused = str(error)
        if refused:
            pytest.skip(f"a read-only folder cannot be mounted here: {refused}")

    def lock(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        mount("--bind", str(folder), str(folder))
        mounted.append(folder)
        mount("-o", "remount,ro,bind", str(folder))
        return folder

    yield lock
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("make", [lora_config, finetune_config])
@pytest.mark.parametrize("option", ["output_dir", "logging_dir", "cache_directory"])
def test_a_folder_that_cannot_be_written_is_refused_before_pictures_are_looked_at(
    project: Path, read_only: Lock, make: Any, option: str
) -> None:
    shut = read_only(project / "shut")
    run_of = NullRun(project / "run")
    with pytest.raises(UserError) as refused:
        run(make(project, **{option: shut / "inside"}), run_of)
    (problem,) = refused.value.problems
    assert problem.option == option and f"{shut} cannot be written to" in problem.sentence()
    assert [event.name for event in run_of.events if isinstance(event, Stage)] == ["check"]


@pytest.mark.parametrize("option", ["output_dir", "logging_dir", "cache_directory", "runs_dir"])
def test_the_command_line_says_it_once_and_leaves_no_run_behind(
    project: Path, read_only: Lock, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shut = read_only(project / "shut")
    words = {
        "dit": project / "models" / "dit.safetensors", "dataset": project / "pictures", "resolution": 32,
        "runs_dir": project / "runs", "output_dir": project / "out",
    } | {option: shut}  # fmt: skip
    argv = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    assert cli.main(["train-lora", *argv]) == EXIT_USER
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"{option} = {shut}: ") and "cannot be written" in said[0]
    assert not (project / "runs").exists()


def test_pictures_on_a_read_only_drive_need_a_cache_folder_unless_all_is_there(
    project: Path, read_only: Lock
) -> None:
    """Without a cache folder the encoded pictures lie among the pictures, also for the cache commands."""
    table = f"[[datasets]]\nimage_directory = '{project / 'pictures'}'\nresolution = 32\n"
    (project / "data.toml").write_text(table, encoding="utf-8")
    for cached in (project / "pictures").glob("*.safetensors"):
        cached.unlink()
    shut = read_only(project / "pictures")
    file = {
        "dataset": None,
        "batch_size": 1,
        "resolution": (1024, 1024),
        "dataset_config": project / "data.toml",
    }
    for options in ({}, file):
        (problem,) = check(lora_config(project, **options))
        assert (
            problem.option == "cache_directory"
            and "Set cache_directory to a folder of your own" in problem.remedy
        )
    models = project / "models"
    latents = {"dataset": shut, "vae": models / "vae.safetensors", "device": "cpu"}
    assert [p.option for p in cache_latents.check(CacheLatentsConfig(**latents))] == ["cache_directory"]
    assert not cache_latents.check(CacheLatentsConfig(**latents, debug_mode="image"))
    texts = CacheTextConfig(dataset=shut, text_encoder=models / "te.safetensors", device="cpu")
    assert [p.option for p in cache_text.check(texts)] == ["cache_directory"]
    subprocess.run(["mount", "-o", "remount,rw,bind", str(shut)], check=True)
    train(lora_config(project, max_train_steps=1))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(shut)], check=True)
    _, results = train(lora_config(project, output_name="again", max_train_steps=1))
    assert results[-1].name == "again.safetensors"
    with pytest.raises(UserError, match=r"cache_directory = .*cannot be written"):
        train(lora_config(project, resolution=(48, 48), max_train_steps=1))
    with pytest.raises(UserError, match=r"cache_directory = .*cannot be written \(Read-only"):
        (project / "masks").mkdir()
        for picture in shut.glob("*.png"):
            (project / "masks" / picture.name).write_bytes(picture.read_bytes())
        train(lora_config(project, mask_directory=project / "masks", max_train_steps=1))


def test_a_run_that_goes_on_beside_its_state_needs_a_folder_that_can_be_written(
    project: Path, read_only: Lock
) -> None:
    _, stopped = train(lora_config(project), stop_at=1)
    shut = read_only(project / "out")
    (problem,) = check(lora_config(project, resume=stopped[-1], output_dir=None))
    assert f"{shut} cannot be written to" in problem.sentence() and "output_dir" in problem.remedy
    assert not check(lora_config(project, resume=stopped[-1], output_dir=project / "elsewhere"))


def test_a_file_in_the_way_of_a_cache_folder_is_named(project: Path) -> None:
    (project / "file").touch()
    (problem,) = check(lora_config(project, cache_directory=project / "file" / "cache"))
    assert problem.option == "cache_directory" and "file is a file" in problem.sentence()


@pytest.mark.parametrize("option", ["output_dir", "logging_dir", "cache_directory"])
@pytest.mark.parametrize("below", ["", "inside"])
def test_a_link_to_a_drive_that_is_gone_is_named(project: Path, option: str, below: str) -> None:
    link = project / "drive"
    link.symlink_to(project / "not mounted")
    (problem,) = check(lora_config(project, **{option: link / below}))
    assert problem.option == option and f"{link} is a link that leads nowhere" in problem.sentence()


def test_a_folder_of_results_that_cannot_be_made_is_named(project: Path) -> None:
    """Windows' and network drives' rights are known only when something is written."""
    (project / "file").touch()
    with pytest.raises(UserError, match=r"output_dir = .*cannot be written"):
        prepare_folder(OutputNames(project / "file", "zimage"))
