"""What a training loop depends on beside the weights, as values for a state, and back.

Knows the trainer's parts. Must not know files or when a state is written.
"""

from typing import Any

import torch
from torch import Tensor

from zimage_gui.engine.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything but the weights that the next update depends on."""
    progress, shards = trainer.progress, trainer.shards
    values: dict[str, Any] = {
        "optimizer": trainer.optimizer.state_dict() if shards is None else shards.first_optimizer_state(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "progress": {
            "step": progress.step, "epoch": progress.epoch, "position": progress.position,
            "losses": list(progress.losses),
        },
    }  # fmt: skip
    for name, part in (("average", trainer.average), ("patience", trainer.patience)):
        if part is not None:
            values[name] = part.state()
    if shards is not None and "average" in values:
        values["average"]["averages"] = shards.first_rows("average", values["average"]["averages"])
    return values


def put_back(trainer: Trainer, values: dict[str, Any]) -> None:
    """Continue from what `state_of` gave."""
    saved = values["optimizer"]
    _load_optimizer(trainer.optimizer, saved if trainer.shards is None else trainer.shards.owned(saved))
    trainer.schedule.load_state_dict(values["schedule"])
    if trainer.scaler.is_enabled() and values["scaler"]:
        trainer.scaler.load_state_dict(values["scaler"])
    saved = values["progress"]
    trainer.progress.step, trainer.progress.epoch, trainer.progress.position = (
        saved["step"],
        saved["epoch"],
        saved["position"],
    )
    trainer.progress.losses.extend(saved["losses"])
    if trainer.average is not None and "average" in values:
        average = values["average"]
        if trainer.shards is not None:
            own = {name: trainer.shards.rows(name, one) for name, one in average["averages"].items()}
            average = average | {"averages": own}
        trainer.average.restore(average)
    elif trainer.average is not None:
        trainer.average.begin()
    if trainer.patience is not None and "patience" in values:
        trainer.patience.restore(values["patience"])


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """`load_state_dict` that keeps each tensor's type: torch casts the averages of bf16 weights to bf16."""
    optimizer.load_state_dict(saved)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        state = optimizer.state.get(parameter, {})
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and name in state and state[name].dtype != value.dtype:
                state[name] = value.to(state[name].device)
