"""The learning rate over a run: transformers' schedules by their names, or any torch scheduler by a dotted
path. Knows optimizer updates as its only clock; must not know epochs or data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from zimage_gui.config.training_parts import steps_of
from zimage_gui.engine.optimizers import OptimizerError, load_class, parse_assignments
from zimage_gui.errors import Problem

NAMES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "warmup_stable_decay", "adafactor",
)  # fmt: skip


@dataclass(frozen=True)
class ScheduleSpec:
    """The options of a schedule, under their names. Warmup and decay: steps, or a part of the run when below
    1."""

    lr_scheduler: str = "constant"
    lr_warmup_steps: float = 0
    lr_decay_steps: float = 0
    lr_scheduler_num_cycles: int = 1
    lr_scheduler_power: float = 1.0
    lr_scheduler_timescale: int | None = None
    lr_scheduler_min_lr_ratio: float | None = None
    lr_scheduler_type: str = ""
    lr_scheduler_args: tuple[str, ...] = ()


def build_schedule(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """The scheduler, to be stepped once after each optimizer update. Raises `OptimizerError`."""
    if spec.lr_scheduler_type:
        cls = load_class(spec.lr_scheduler_type, "torch.optim.lr_scheduler", LRScheduler)
        arguments = parse_assignments(spec.lr_scheduler_args)
        try:
            scheduler = cls(optimizer, **arguments)
        except (TypeError, ValueError, KeyError) as error:
            raise OptimizerError(f"{cls.__name__} refuses its arguments {arguments}: {error}") from error
        assert isinstance(scheduler, LRScheduler)
        return scheduler
    if spec.lr_scheduler == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, _one)
    return _named(spec, optimizer, total_steps)


def _one(step: int) -> float:
    return 1.0


def _named(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    from transformers.optimization import AdafactorSchedule, get_scheduler

    name = spec.lr_scheduler
    if name == "adafactor":
        scheduler: LRScheduler = AdafactorSchedule(optimizer, initial_lr=0.0)
        return scheduler
    warmup = steps_of(spec.lr_warmup_steps, total_steps)
    extra: dict[str, Any] = {}
    if name == "cosine_with_restarts":
        extra["num_cycles"] = spec.lr_scheduler_num_cycles
    elif name == "polynomial":
        extra["power"] = spec.lr_scheduler_power
    elif name == "inverse_sqrt":
        extra["timescale"] = spec.lr_scheduler_timescale
    elif name == "cosine_with_min_lr":
        # half a cosine wave per cycle, as the first seed counts cycles
        extra |= {
            "num_cycles": spec.lr_scheduler_num_cycles / 2,
            "min_lr_rate": spec.lr_scheduler_min_lr_ratio or 0.0,
        }
    elif name == "warmup_stable_decay":
        extra |= {
            "num_decay_steps": steps_of(spec.lr_decay_steps, total_steps),
            "num_cycles": spec.lr_scheduler_num_cycles / 2,
            "min_lr_ratio": spec.lr_scheduler_min_lr_ratio or 0.0,
        }
    scheduler = get_scheduler(name, optimizer, warmup, total_steps, scheduler_specific_kwargs=extra)
    return scheduler


def check_schedule(spec: ScheduleSpec) -> list[Problem]:
    """What is wrong with the options, found on a dummy optimizer."""
    problems: list[Problem] = []
    if spec.lr_scheduler_args and not spec.lr_scheduler_type:
        problems.append(
            Problem(
                "lr_scheduler_args",
                " ".join(spec.lr_scheduler_args),
                "belongs to a scheduler given by lr_scheduler_type",
                "give lr_scheduler_type or leave it out",
            )
        )
    if not spec.lr_scheduler_type and spec.lr_scheduler not in NAMES:
        return [
            *problems,
            Problem(
                "lr_scheduler", spec.lr_scheduler, "is not a known schedule", f"use one of {', '.join(NAMES)}"
            ),
        ]
    if not spec.lr_scheduler_type and spec.lr_scheduler == "constant" and spec.lr_warmup_steps:
        problems.append(
            Problem(
                "lr_warmup_steps",
                str(spec.lr_warmup_steps),
                "has no effect on the constant schedule",
                "use lr_scheduler constant_with_warmup",
            )
        )
    if spec.lr_scheduler == "adafactor" and not spec.lr_scheduler_type:
        return problems  # needs a real Adafactor with relative_step
    try:
        build_schedule(spec, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 100)
    except OptimizerError as error:
        option = "lr_scheduler_type" if spec.lr_scheduler_type else "lr_scheduler"
        problems.append(
            Problem(option, spec.lr_scheduler_type or spec.lr_scheduler, str(error), "see its documentation")
        )
    return problems
