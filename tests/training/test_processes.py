"""Two real processes on the CPU: what one process would make of the same pictures, and their common end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from one_of_two import seen
from safetensors.torch import load_file
from test_kill import command

from zimage_gui.engine.state import states_in
from zimage_gui.events import Step, follow
from zimage_gui.jobs.status import read_status

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
# An optimizer whose updates are the gradients: AdamW would make its own of gradients that are all rounding.
GRADIENTS = {"optimizer_type": "SGD", "learning_rate": 0.1, "max_train_steps": 5, "validation_split": 0.2}
# Of five pictures four are trained in batches of one or two: updates of both processes, and of one alone.
LORA = GRADIENTS | {
    "batch_size": 1, "ema_decay": 0.9, "save_every_n_steps": 3, "save_state": True, "output_dir": "lora",
}  # fmt: skip
FULL = GRADIENTS | {"save_precision": "fp32", "mixed_precision": "no", "output_dir": "full"}
DROPPING = {"network_dropout": 0.3, "module_dropout": 0.5, "save_every_n_steps": 3, "save_state": True}


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def two_processes(project: Path, plan: dict[str, tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of two processes saw of the trainings of a plan."""
    file = project / "plan.json"
    ports = free_ports(len(plan))
    full = {name: (*entry, port) for (name, entry), port in zip(plan.items(), ports, strict=True)}
    file.write_text(json.dumps(full, default=str), encoding="utf-8")
    shared = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    script = Path(__file__).with_name("one_of_two.py")
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(project), str(file)],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [json.loads((project / f"seen{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def same(one: Path, other: Path, tolerance: float = 0.0) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        torch.allclose(first[name].float(), second[name].float(), rtol=tolerance, atol=tolerance)
        for name in first
    )


def test_two_processes_are_one_with_as_large_an_update(project: Path) -> None:
    def placed(options: dict[str, Any], folder: str, **more: Any) -> dict[str, Any]:
        return options | {"output_dir": project / folder} | more

    state = project / "lora" / "zimage-step00000003-state"
    plan = {
        "lora": ("lora", placed(LORA, "lora")),
        "again": ("lora", placed(LORA, "again", resume=state)),
        "full": ("full", placed(FULL, "full", batch_size=1, gradient_accumulation_steps=1)),
        "dropping": ("lora", placed(DROPPING, "dropping")),
        "dropping again": ("lora", placed(DROPPING, "dropping2", resume=project / "dropping" / state.name)),
        "early": ("lora", placed(GRADIENTS, "early", early_stop="validation", early_stop_patience=1, learning_rate=0.0)),
        "broken": ("full", placed(FULL, "broken", learning_rate=1000.0, max_grad_norm=0.0, max_train_steps=30)),
    }  # fmt: skip
    first, second = two_processes(project, plan)
    for name in plan:
        assert first[name]["losses"] == second[name]["losses"], name
        assert second[name]["results"] == []

    alone = seen(project, "lora", placed(LORA, "lora1", gradient_accumulation_steps=2))
    assert first["lora"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert first["lora"]["norms"] == pytest.approx(alone["norms"], rel=1e-3)
    assert first["lora"]["validated"] == pytest.approx(alone["validated"], rel=1e-4)
    assert same(project / "lora" / "zimage.safetensors", project / "lora1" / "zimage.safetensors", 1e-5)
    full = seen(project, "full", placed(FULL, "full1", batch_size=1, gradient_accumulation_steps=2))
    assert first["full"]["losses"] == pytest.approx(full["losses"], rel=1e-4)
    assert same(project / "full" / "zimage.safetensors", project / "full1" / "zimage.safetensors", 1e-5)

    assert same(project / "lora" / "zimage.safetensors", project / "again" / "zimage.safetensors")
    seen(project, "lora", placed(LORA, "lora2", resume=state, gradient_accumulation_steps=2))
    assert same(project / "lora" / "zimage.safetensors", project / "lora2" / "zimage.safetensors", 1e-5)
    assert same(project / "dropping" / "zimage.safetensors", project / "dropping2" / "zimage.safetensors")

    assert 0 < len(first["early"]["losses"]) < 5
    assert "training broke down" in first["broken"]["error"] and "broke down" in second["broken"]["error"]


def started(project: Path, *words: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A run of two processes at work, and the second of them."""
    line = [*command(project, resume=(project / "out").is_dir()), *words]
    line[line.index("--max_train_steps") + 1] = "1000000"
    line[line.index("--save_every_n_steps") + 1] = "1000000"
    before = set((project / "runs").glob("*"))
    with open(project / "console.txt", "wb") as console:
        first = subprocess.Popen(line, cwd=project, env=ENVIRONMENT, stdout=console, stderr=subprocess.STDOUT)
    while not (new := set((project / "runs").glob("*")) - before) or not trains(new.pop()):
        assert first.poll() is None, (project / "console.txt").read_text(encoding="utf-8")
        time.sleep(0.1)
    (second,) = psutil.Process(first.pid).children()
    return first, second


def trains(folder: Path) -> bool:
    return any(isinstance(event, Step) for event in follow(folder / "events.jsonl")[0])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_any_process_stops_all_and_a_killed_one_ends_all(project: Path) -> None:
    first, second = started(project, "--gpus", "2")
    second.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 0, (project / "console.txt").read_text(encoding="utf-8")
    (folder,) = (project / "runs").glob("*_train-lora_*")
    status = read_status(folder)
    assert status is not None and status.outcome == "stopped"
    assert len(states_in(project / "out")) == 1

    first, second = started(project, "--gpus", "2")
    second.kill()
    assert first.wait(timeout=120) == 1
    text = (project / "console.txt").read_text(encoding="utf-8")
    assert "Process 2 of 2 was killed (signal 9)." in text and "Traceback" not in text
    assert not second.is_running()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_nothing_is_left_of_a_run_whose_first_process_is_killed(project: Path) -> None:
    first, second = started(project, "--gpus", "2")
    first.kill()
    first.wait()
    second.wait(timeout=60)
