"""A finetune whose weights two real processes share out: what one process would make of the same pictures."""

from pathlib import Path
from typing import Any

import pytest
from one_of_two import seen
from safetensors.torch import load_file
from test_processes import same, two_processes

# An optimizer whose updates are the gradients: AdamW would make its own of gradients that are all rounding.
EXACT = {"save_precision": "fp32", "batch_size": 1, "max_train_steps": 5, "shard_weights": True}
SGD = EXACT | {"optimizer_type": "SGD", "learning_rate": 0.1, "max_grad_norm": 0.05}


def alone(options: dict[str, Any], batches: int = 2) -> dict[str, Any]:
    """The same updates made by one process."""
    return options | {"shard_weights": False, "gradient_accumulation_steps": batches}


def test_two_processes_that_share_out_the_weights_are_one(project: Path) -> None:
    kinds = {
        # of five pictures four are trained: updates of both processes, and of one alone
        "sgd": SGD | {"gradient_checkpointing": True, "gradient_accumulation_steps": 3, "validation_split": 0.2},
        "ada": EXACT | {"optimizer_type": "Adafactor", "ema_decay": 0.9, "save_state": True, "save_every_n_steps": 2},
    }
    plan = {name: ("full", options | {"output_dir": project / name}) for name, options in kinds.items()}
    first, second = two_processes(project, plan)
    for name, options in kinds.items():
        batches = 2 * options.get("gradient_accumulation_steps", 1)
        one = seen(project, "full", alone(options, batches) | {"output_dir": project / f"{name}1"})
        assert first[name]["losses"] == second[name]["losses"]
        assert first[name]["losses"] == pytest.approx(one["losses"], rel=1e-4), name
        assert first[name]["norms"] == pytest.approx(one["norms"], rel=1e-3)
        assert first[name]["validated"] == pytest.approx(one["validated"], rel=1e-4)
        assert same(project / name / "zimage.safetensors", project / f"{name}1" / "zimage.safetensors", 1e-5), name
        assert first[name]["results"] == one["results"] and second[name]["results"] == []
