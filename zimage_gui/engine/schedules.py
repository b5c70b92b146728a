"""The learning rate over a run: transformers' schedules by their names, or any torch scheduler by a dotted
path. Knows optimizer updates as its only clock; must not know epochs or data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from zimage_gui.config.training_parts import steps_of
from zimage_gui.engine.optimizers import OptimizerError, load_class, parse_assignments, quiet_bitsandbytes
from zimage_gui.errors import Problem

NAMES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr", "warmup_stable_decay", "adafactor",
)  # fmt: skip
_WITHOUT_WARMUP = ("constant", "adafactor")


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
    """The scheduler, to be stepped once after each optimizer update. Raises `OptimizerError`.

    An Adafactor with relative steps works out its own rate: its schedule only reports that rate.
    """
    relative = optimizer.param_groups[0]["lr"] is None
    if not spec.lr_scheduler_type and (relative or spec.lr_scheduler == "adafactor"):
        return _adafactor(spec, optimizer, relative)
    if spec.lr_scheduler_type:
        return _by_path(spec, optimizer, total_steps)
    if spec.lr_scheduler == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, _one)
    return _named(spec, optimizer, total_steps)


def _one(step: int) -> float:
    return 1.0


def _by_path(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    cls = load_class(spec.lr_scheduler_type, "torch.optim.lr_scheduler", LRScheduler)
    arguments = parse_assignments(spec.lr_scheduler_args)
    try:
        scheduler = cls(optimizer, **arguments)
    except NotImplementedError as error:
        raise OptimizerError(f"{cls.__name__} is only a base class") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise OptimizerError(f"{cls.__name__} refuses its arguments {arguments}: {error}") from error
    assert isinstance(scheduler, LRScheduler)
    longest = getattr(scheduler, "total_steps", None)  # OneCycleLR refuses to go on after its end
    if isinstance(longest, int) and longest < total_steps:
        raise OptimizerError(f"{cls.__name__} ends after {longest} steps, the run has {total_steps}")
    return scheduler


def _adafactor(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, relative: bool) -> LRScheduler:
    if not relative:
        raise OptimizerError("needs optimizer_type Adafactor with optimizer_args relative_step=True")
    if spec.lr_scheduler not in ("adafactor", "constant"):
        raise OptimizerError("has no effect: Adafactor with relative_step=True works out its own rate")
    quiet_bitsandbytes()
    from transformers.optimization import AdafactorSchedule

    scheduler: LRScheduler = AdafactorSchedule(optimizer, initial_lr=0.0)  # type: ignore[no-untyped-call]
    return scheduler


def _named(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    quiet_bitsandbytes()
    from transformers.optimization import get_scheduler

    lowest = spec.lr_scheduler_min_lr_ratio or 0.0
    # half a cosine wave per cycle, as the first seed counts cycles
    waves = spec.lr_scheduler_num_cycles / 2
    extra: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": spec.lr_scheduler_num_cycles},
        "polynomial": {"power": spec.lr_scheduler_power},
        "inverse_sqrt": {"timescale": spec.lr_scheduler_timescale},
        "cosine_with_min_lr": {"num_cycles": waves, "min_lr_rate": lowest},
        "warmup_stable_decay": {
            "num_decay_steps": steps_of(spec.lr_decay_steps, total_steps),
            "num_cycles": waves,
            "min_lr_ratio": lowest,
        },
    }
    warmup = steps_of(spec.lr_warmup_steps, total_steps)
    arguments = extra.get(spec.lr_scheduler, {})
    scheduler: LRScheduler = get_scheduler(spec.lr_scheduler, optimizer, warmup, total_steps, arguments)
    return scheduler


def check_schedule(
    spec: ScheduleSpec, optimizer: torch.optim.Optimizer, total_steps: int = 1
) -> list[Problem]:
    """What is wrong with the options, found on a dummy `optimizer` of the kind that will be used.
    `total_steps`: 1 while the length is not known yet."""
    if not spec.lr_scheduler_type and spec.lr_scheduler not in NAMES:
        remedy = f"Use one of {', '.join(NAMES)}, or a class given by lr_scheduler_type"
        return [Problem("lr_scheduler", spec.lr_scheduler, "is not a known schedule", remedy)]
    problems: list[Problem] = []
    if spec.lr_scheduler_args and not spec.lr_scheduler_type:
        shown = " ".join(spec.lr_scheduler_args)
        rule = "belongs to lr_scheduler_type, which is not set"
        problems.append(Problem("lr_scheduler_args", shown, rule, "Leave it out"))
    fixed = spec.lr_scheduler_type or (spec.lr_scheduler if spec.lr_scheduler in _WITHOUT_WARMUP else "")
    if fixed and spec.lr_warmup_steps:
        rule = f"has no effect on the {fixed} schedule"
        remedy = "Use lr_scheduler constant_with_warmup"
        problems.append(Problem("lr_warmup_steps", f"{spec.lr_warmup_steps:g}", rule, remedy))
    try:
        build_schedule(spec, optimizer, total_steps)
    except OptimizerError as error:
        option = "lr_scheduler_type" if spec.lr_scheduler_type else "lr_scheduler"
        problems.append(Problem(option, getattr(spec, option), str(error), "See docs/options"))
    return problems
