"""Fifty times SIGKILL at random instants of training, finetuning, saving and caching: no run is lost, no file is
broken, and what the last run ends with is, bit for bit, what a run without kills ends with."""

import random
from pathlib import Path

import pytest
import torch
from crash_jobs import STEPS, Job, temp_files, whole
from safetensors.torch import load_file
from test_kill import newest_change
from tiny_project import write_pictures

from zimage_gui.engine.state import states_in

SEED = 20261126
KILLS = {"train-lora": 16, "finetune": 14, "cache-latents": 10, "cache-text": 10}
"""Every second one comes when a file is half written, the others at any instant."""


def training(project: Path, command: str) -> Job:
    out = project / command
    options = {
        "dit": project / "models" / "dit.safetensors", "dataset": project / "pictures", "resolution": "32",
        "batch_size": 2, "seed": 7, "learning_rate": "1e-2", "mixed_precision": "no", "device": "cpu",
        "max_data_loader_n_workers": 0, "output_dir": out, "output_name": "k", "max_train_steps": STEPS,
        "save_every_n_steps": 1, "save_last_n_steps": 2, "save_state": "true", "save_precision": "fp32",
        "ema_decay": 0.9,
    }  # fmt: skip
    options |= (
        {"network_dim": 2, "network_dropout": 0.2} if command == "train-lora" else {"optimizer_type": "AdamW"}
    )

    def goes_on(job: Job) -> dict[str, object]:
        return {"resume": out} if out.is_dir() and states_in(out) else {"overwrite": "true"}

    return Job(project, command, options, out, 3, 0.2, goes_on)


def caching(project: Path, command: str) -> Job:
    options: dict[str, object] = {
        "dataset": project / "many",
        "cache_directory": project / command,
        "device": "cpu",
    }
    options |= (
        {"vae": project / "models" / "vae.safetensors", "resolution": 64} if "latents" in command else {}
    )
    options |= {"text_encoder": project / "models" / "te.safetensors"} if "text" in command else {}
    return Job(project, command, options | {"batch_size": 1}, project / command, 5, 0.05)


def killed_again_and_again(job: Job, kills: int, choose: random.Random) -> None:
    """A run that ends before its kill is put aside, and begun anew."""
    aside = 0
    while job.kills < kills:
        if not job.run_until_killed(choose, in_the_act=job.kills % 2 == 1):
            whole(job.results)
            aside += 1
            job.results.rename(job.results.with_name(f"{job.results.name}-whole{aside}"))
        whole(job.results)
        whole(job.runs)


def result(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every file that is left."""
    files = [path for path in folder.rglob("*.safetensors") if "-state" not in str(path)]
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def same(one: Path, other: Path) -> bool:
    first, second = result(one), result(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def proof(project: Path, command: str, kills: int) -> Job:
    write_pictures(project / "many", 60 if kills > 2 else 12, (96, 64))
    make = training if command in ("train-lora", "finetune") else caching
    job = make(project, command)
    job.finish()
    straight = job.results.rename(project / f"{command}-straight")
    killed_again_and_again(job, kills, random.Random(f"{SEED} {command}"))
    job.finish()
    assert same(job.results, straight) and newest_change(job.results) == newest_change(straight)
    assert not temp_files(job.results) and not temp_files(job.runs)
    return job


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", KILLS)
def test_fifty_kills_lose_nothing(project: Path, command: str) -> None:
    job = proof(project, command, KILLS[command])
    print(f"\n| {command} | {job.kills} | {job.half_written} | {whole(job.results)} | {job.first_steps()} |")


@pytest.mark.slow  # test_cache_failures has a quicker one
def test_a_kill_while_caching_loses_nothing(project: Path) -> None:
    assert proof(project, "cache-latents", 1).kills == 1
