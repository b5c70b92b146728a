"""How long commands and imports take in a fresh process."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = {
    "`import zimage_gui.cli`": ["-c", "import zimage_gui.cli"],
    "`python -m zimage_gui --help`": ["-m", "zimage_gui", "--help"],
    "`python -m zimage_gui train-lora --help`": ["-m", "zimage_gui", "train-lora", "--help"],
    "`import zimage_gui.engine.train`": ["-c", "import zimage_gui.engine.train"],
    "bare `python -c pass`": ["-c", "pass"],
    "`import torch`": ["-c", "import torch"],
    "`from diffusers import ZImagePipeline`": ["-c", "from diffusers import ZImagePipeline"],
    "`import peft`": ["-c", "import peft"],
}
HEADER = "| | processor time (min) | wall (min) | wall (median) |\n|---|---|---|---|"


def _once(arguments: list[str]) -> tuple[float, float]:
    before, wall = os.times(), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT, env=environment)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, time.perf_counter() - wall


def rows(rounds: int, say: Callable[[str], None]) -> list[str]:
    """Every case once per round, so that a busy moment meets all of them."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, arguments in CASES.items():
            times[name].append(_once(arguments))
    table = []
    for name, found in times.items():
        wall = [seconds for _, seconds in found]
        numbers = (
            f"{min(spent for spent, _ in found):.2f} s | {min(wall):.2f} s | {statistics.median(wall):.2f} s"
        )
        table.append(f"| {name} | {numbers} |")
        say(table[-1])
    return table
