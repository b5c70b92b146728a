"""A finetune whose weights two real processes share out: what one process would make of the same pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_of_two import seen
from PIL import Image, ImageChops
from safetensors.torch import load_file
from test_processes import same, two_processes
from tiny_project import TRANSFORMER

from zimage_gui.engine.shards import turns
from zimage_gui.model.rows import rows_of
from zimage_gui.model.transformer import ZImageTransformer

FULL = {"save_precision": "fp32", "batch_size": 1, "max_train_steps": 5}
# An optimizer whose updates are the gradients: others make their own of gradients that are all rounding.
SGD = FULL | {"optimizer_type": "SGD", "learning_rate": 0.1, "max_grad_norm": 0.05}
ADAFACTOR = FULL | {
    "optimizer_type": "Adafactor", "ema_decay": 0.9, "save_state": True, "save_every_n_steps": 2,
    "sample_every_n_steps": 2,
}  # fmt: skip
BF16 = FULL | {
    "optimizer_type": "AdamW8bit",
    "mixed_precision": "bf16",
    "full_bf16": True,
    "save_precision": "bf16",
    "save_layout": "diffusers",
}
PATTERNS = {"train_patterns": (r"layers\.1",), "freeze_patterns": (".*norm.*",)}
STATE = "zimage-step0000000{}-state"


def together(project: Path, kinds: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = {
        name: ("full", {"shard_weights": True, "output_dir": project / name} | kind)
        for name, kind in kinds.items()
    }
    first, second = two_processes(project, shared)
    for name in kinds:
        assert not first[name]["error"], first[name]["error"]
        assert first[name]["losses"] == second[name]["losses"] and second[name]["results"] == []
    return first, second


def alone(project: Path, name: str, options: dict[str, Any], batches: int = 2) -> dict[str, Any]:
    """The same updates made by one process."""
    folder = project / f"{name} alone"
    return seen(project, "full", options | {"output_dir": folder, "gradient_accumulation_steps": batches})


def ends(project: Path, name: str) -> tuple[Path, Path]:
    return project / name / "zimage.safetensors", project / f"{name} alone" / "zimage.safetensors"


def alike(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-4) -> None:
    assert one["losses"] == pytest.approx(other["losses"], rel=tolerance)
    assert one["norms"] == pytest.approx(other["norms"], rel=10 * tolerance)
    assert one["validated"] == pytest.approx(other["validated"], rel=1e-4)
    assert one["results"] == other["results"]


def test_two_processes_that_share_out_the_weights_are_one(project: Path) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text(
        "a red picture --w 32 --h 32 --s 2\nblue --w 48 --h 32 --s 2 --l 3 --n dark\n", encoding="utf-8"
    )
    ada, again = ADAFACTOR | {"sample_prompts": prompts}, project / "again"
    # Of five pictures four are trained: some updates are of both processes, some of one alone.
    sgd = SGD | {"gradient_checkpointing": True, "validation_split": 0.2}
    first, second = together(
        project,
        {
            "sgd": sgd | {"gradient_accumulation_steps": 3},
            "ada": ada,
            "again": ada | {"resume": project / "ada" / STATE.format(2)},
            "once more": ada | {"resume": again / STATE.format(4)},
            "bf16": BF16 | PATTERNS,
            "adam": FULL | {"optimizer_type": "AdamW", "max_train_steps": 2},
        },
    )
    weights, states = zip(*(process["adam"]["kept"] for process in (first, second)), strict=True)
    with torch.device("meta"):
        count = sum(one.numel() for one in ZImageTransformer(TRANSFORMER).parameters())
    assert sum(weights) == count and sum(states) == pytest.approx(2 * count, rel=0.01)
    assert max(weights) < 0.51 * count and min(states) > 0
    alike(first["sgd"], alone(project, "sgd", sgd, 6))
    assert same(*ends(project, "sgd"), 1e-5)
    one = alone(project, "ada", ada)
    alike(first["ada"], one)
    assert same(*ends(project, "ada"), 3e-4)
    assert len(first["ada"]["pictures"]) == 4 and not first["ada"]["warnings"]
    pairs = zip(first["ada"]["pictures"], one["pictures"], strict=True)
    assert all(
        ImageChops.difference(Image.open(a), Image.open(b)).getextrema() <= ((0, 2),) * 3 for a, b in pairs
    )
    assert same(ends(project, "ada")[0], ends(project, "once more")[0])

    shared, own = (
        load_file(project / part / STATE.format(4) / "trainer.safetensors") for part in ("ada", "ada alone")
    )
    assert {name: tensor.shape for name, tensor in shared.items()} == {
        name: tensor.shape for name, tensor in own.items()
    }
    alone(project, "resumed", ada | {"resume": again / STATE.format(4)})
    assert same(ends(project, "ada")[0], ends(project, "resumed")[1], 3e-4)

    alike(first["bf16"], alone(project, "bf16", BF16 | PATTERNS), 2e-3)
    two, single = (load_file(path) for path in ends(project, "bf16"))
    before = load_file(project / "models" / "dit.safetensors")
    moved = {name for name in two if not torch.equal(two[name], before[name].bfloat16())}
    assert moved == {name for name in two if name.startswith("layers.1.") and "norm" not in name}
    for name in moved:
        apart, way = (float((two[name] - other[name]).float().abs().mean()) for other in (single, before))
        assert apart < 0.1 * way, name


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_each_process_keeps_its_share_of_rows_and_of_optimizer_states(processes: int) -> None:
    for rows in (1, 2, 7, 64, 129):
        cut = [len(part) for part in torch.arange(rows).chunk(processes)]
        bounds = [rows_of(rows, rank, processes) for rank in range(processes)]
        assert [last - first for first, last in bounds] == cut + [0] * (processes - len(cut))
    with torch.device("meta"):
        sizes = [one.numel() for one in ZImageTransformer(TRANSFORMER).parameters()]
    rounds = turns(sizes, processes)
    assert sorted(number for one in rounds for number in one) == list(range(len(sizes)))
    owned = [sum(sizes[one[place]] for one in rounds if place < len(one)) for place in range(processes)]
    assert max(owned) - min(owned) <= max(sizes)
