"""A file system of a few megabytes that fills up: a clear end, files that are whole, and a run that goes on once
there is room again. Mounting one takes root; without it these tests say so and are skipped."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from crash_jobs import temp_files, whole
from safetensors.torch import load_file

from zimage_gui import cli
from zimage_gui.engine.state import states_in
from zimage_gui.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER
from zimage_gui.events import Step, Warning, follow

Disk = Callable[[str, int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes file systems of so many KiB."""
    mounted: list[Path] = []

    def make(name: str, kib: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            refused = done.stderr.strip() if done.returncode else ""
        except OSError as error:
            refused = str(error)
        if refused:
            pytest.skip(f"a small file system cannot be mounted here: {refused}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that takes all room but `leave` bytes."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - leave))
    return ballast


def train(project: Path, command: str, **options: object) -> int:
    words: dict[str, object] = {
        "dit": project / "models" / "dit.safetensors", "dataset": project / "pictures", "resolution": 32,
        "batch_size": 2, "seed": 7, "learning_rate": 1e-2, "mixed_precision": "no", "device": "cpu", "max_train_steps": 6,
        "max_data_loader_n_workers": 0, "runs_dir": project / "runs", "output_dir": project / "out", "save_precision": "fp32",
    }  # fmt: skip
    words |= {"network_dim": 2} if command == "train-lora" else {"optimizer_type": "AdamW"}
    return call(command, words | options)


def call(command: str, options: dict[str, object]) -> int:
    return cli.main(
        [command, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    )


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


SAVING = {"save_every_n_steps": 1, "save_state": "true"}


@pytest.mark.parametrize("command", ["train-lora", "finetune"])
def test_a_training_that_cannot_save_ends_clearly_and_goes_on_when_there_is_room(
    project: Path, disk: Disk, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert train(project, command, output_dir=project / "straight", **SAVING) == EXIT_DONE
    needed = sum(path.stat().st_size for path in (project / "straight").rglob("*") if path.is_file())
    out = disk("small", needed // 1024)
    ballast = fill(out, leave=needed // 2)
    capsys.readouterr()
    assert train(project, command, output_dir=out, **SAVING) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "The disk is full. Make room or choose another output folder." in said and "Traceback" not in said
    assert not temp_files(out) and whole(out)
    assert states_in(out), "something was saved before it was full"
    ballast.unlink()
    assert train(project, command, output_dir=out, resume=out, save_state="true") == EXIT_DONE
    assert equal(out / "zimage.safetensors", project / "straight" / "zimage.safetensors")


@pytest.mark.parametrize(
    ("command", "part", "model"), [("cache-latents", "vae", "vae"), ("cache-text", "text_encoder", "te")]
)
def test_caching_that_finds_no_room_ends_clearly_and_goes_on_where_it_was(
    project: Path, disk: Disk, capsys: pytest.CaptureFixture[str], command: str, part: str, model: str
) -> None:
    cache = disk("cache", 128)
    options: dict[str, object] = {
        part: project / "models" / f"{model}.safetensors", "dataset": project / "pictures", "device": "cpu",
        "cache_directory": cache, "runs_dir": project / "runs",
    }  # fmt: skip
    options |= {"resolution": 32} if part == "vae" else {}
    ballast = fill(cache, leave=3 * 4096)
    assert call(command, options) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "The disk is full" in said and "Traceback" not in said
    made = sorted(cache.glob("*.safetensors"))
    assert 0 < len(made) < 5 and whole(cache) == len(made) + 1 and not temp_files(cache)
    ballast.unlink()
    kept = {path: path.stat().st_mtime_ns for path in made}
    assert call(command, options) == EXIT_DONE
    assert len(list(cache.glob("*.safetensors"))) == whole(cache) == 5
    assert {path: path.stat().st_mtime_ns for path in made} == kept


def test_pictures_that_find_no_room_cost_a_warning_and_not_the_training(project: Path, disk: Disk) -> None:
    (project / "prompts.txt").write_text("a red picture --w 32 --h 32 --s 1\n", encoding="utf-8")
    (project / "out").mkdir()
    fill(disk(str((project / "out" / "sample").relative_to(project.parent)), 64))
    encoders = {
        "vae": project / "models" / "vae.safetensors",
        "text_encoder": project / "models" / "te.safetensors",
    }
    shown = {"sample_prompts": project / "prompts.txt", "sample_every_n_steps": 2}
    assert train(project, "train-lora", **encoders, **shown) == EXIT_DONE
    (events,) = (project / "runs").glob("2*/events.jsonl")
    told = [event.text for event in follow(events)[0] if isinstance(event, Warning)]
    assert sum("No space left" in text and "training goes on" in text for text in told) == 3
    assert (project / "out" / "zimage.safetensors").is_file() and not temp_files(project / "out")


def test_events_that_find_no_room_are_lost_and_the_training_is_not(
    project: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = disk("runs", 44)
    assert train(project, "train-lora", runs_dir=runs, max_train_steps=120) == EXIT_DONE
    assert capsys.readouterr().err.count("No space left on device") == 1
    (events,) = runs.glob("2*/events.jsonl")
    steps = [event.step for event in follow(events)[0] if isinstance(event, Step)]
    assert 0 < len(steps) < 120 and steps == list(range(1, len(steps) + 1))
    assert (project / "out" / "zimage.safetensors").is_file() and not temp_files(runs)


def test_a_conversion_that_finds_no_room_leaves_nothing_behind(
    project: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk("converted", 200)
    assert (
        cli.main(["convert", str(project / "models" / "dit.safetensors"), str(place / "dit.bpk")])
        == EXIT_USER
    )
    assert "Make room or choose another drive" in capsys.readouterr().err and not list(place.iterdir())
