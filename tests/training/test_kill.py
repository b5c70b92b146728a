"""`kill -9` at any moment: nothing half-written under a final name, and the resumed run ends as the straight one."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import lora_config

from zimage_gui.engine.state import load_state, states_in
from zimage_gui.engine.train import run
from zimage_gui.events import NullRun
from zimage_gui.files import TEMP_SUFFIX

STEPS = 30
OPTIONS = {
    "max_train_steps": STEPS, "save_every_n_steps": 1, "save_last_n_steps": 2, "save_state": True,
    "network_dropout": 0.2, "output_name": "k",
}  # fmt: skip


def command(project: Path, resume: bool) -> list[str]:
    options = {
        "--dit": project / "models" / "dit.safetensors", "--dataset": project / "pictures", "--resolution": "32",
        "--batch_size": 2, "--seed": 7, "--learning_rate": "1e-2", "--mixed_precision": "no", "--network_dim": 2,
        "--gradient_checkpointing": "false", "--max_data_loader_n_workers": 0, "--device": "cpu",
        "--output_dir": project / "out", "--runs_dir": project / "runs", "--vae": project / "models" / "vae.safetensors",
        "--text_encoder": project / "models" / "te.safetensors",
    }  # fmt: skip
    options |= {f"--{name}": value for name, value in OPTIONS.items()}
    options |= {"--resume": project / "out"} if resume else {"--overwrite": "true"}
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "zimage_gui", "train-lora", *words]


def start(project: Path) -> subprocess.Popen[bytes]:
    resume = (project / "out").is_dir() and bool(states_in(project / "out"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with open(project / "console.txt", "wb") as console:
        return subprocess.Popen(
            command(project, resume), cwd=project, env=environment, stdout=console, stderr=subprocess.STDOUT
        )


def newest_change(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def kill_after(process: subprocess.Popen[bytes], folder: Path, changes: int, delay: float) -> bool:
    """Kill once the folder's listing has changed so often, `delay` seconds later; False when the run ended before."""
    seen = newest_change(folder)
    while changes > 0:
        if process.poll() is not None:
            return False
        now = newest_change(folder)
        changes, seen = changes - (now != seen), now
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def whole(folder: Path) -> None:
    """Everything with a final name can be read completely."""
    for path in folder.glob("*.safetensors"):
        if not path.name.endswith(TEMP_SUFFIX):
            load_file(path)
    for state in folder.glob("*-state"):
        load_state(state)


def torture(project: Path, kills: int, seed: int) -> None:
    straight = run(
        lora_config(project, **OPTIONS | {"output_dir": project / "straight"}), NullRun(project / "run")
    )
    choose = random.Random(seed)
    done, out = 0, project / "out"
    while done < kills:
        process = start(project)
        done += kill_after(process, out, choose.randint(1, 8), choose.uniform(0, 0.02))
        whole(out)
        if process.returncode == 0:  # the run was over before its turn came: begin again
            for path in out.glob("k*"):
                path.rename(project / f"old{time.monotonic_ns()}-{path.name}")
    process = start(project)
    assert process.wait(timeout=240) == 0, (project / "console.txt").read_text(encoding="utf-8")
    result, expected = load_file(out / "k.safetensors"), load_file(straight[-2])
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert not [path for path in out.iterdir() if path.name.endswith(TEMP_SUFFIX)]


def test_two_kills_while_saving_lose_nothing(project: Path) -> None:
    torture(project, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_at_random_moments_lose_nothing(project: Path) -> None:
    torture(project, kills=10, seed=2)
