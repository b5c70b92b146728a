"""The learning rate over a run: transformers' schedules by their names, two more, or any torch scheduler by a
dotted path. Knows optimizer updates as its only clock; must not know epochs or data.
"""

from collections.abc import Callable
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
    "cosine_with_min_lr", "warmup_stable_decay", "rex", "piecewise_constant", "adafactor",
)  # fmt: skip
_WITHOUT_WARMUP = ("constant", "piecewise_constant", "adafactor")
_REX = {"rex_alpha": 0.1, "rex_beta": 0.9}
_REX_LOWEST = 0.01


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
    if spec.lr_scheduler in _OURS:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, _OURS[spec.lr_scheduler](spec, total_steps))
    return _named(spec, optimizer, total_steps)


def _one(step: int) -> float:
    return 1.0


def _rex(spec: ScheduleSpec, total_steps: int) -> Callable[[int], float]:
    """REX (Chen, Wolfe and Kyrillidis 2021), with z the share of updates left after the warm-up and r the
    lowest share of the rate: r + (1 - r) z / (rex_alpha + rex_beta z). The warm-up rises from r to 1."""
    shape: dict[str, float] = _REX | _schedule_arguments(spec, _REX)
    wrong = [name for name, value in shape.items() if type(value) not in (int, float) or value <= 0]
    if wrong:
        raise OptimizerError(f"{' and '.join(wrong)} must be above 0")
    lowest = _REX_LOWEST if spec.lr_scheduler_min_lr_ratio is None else spec.lr_scheduler_min_lr_ratio
    warmup = steps_of(spec.lr_warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return lowest + (1 - lowest) * step / warmup
        left = max(0.0, 1 - (step - warmup) / max(1, total_steps - warmup))
        return lowest + (1 - lowest) * left / (shape["rex_alpha"] + shape["rex_beta"] * left)

    return factor


def _piecewise_constant(spec: ScheduleSpec, total_steps: int) -> Callable[[int], float]:
    """`step_rules="1:100,0.1:200,0.01"`: the whole rate below update 100, a tenth below 200, then a
    hundredth."""
    rules = _schedule_arguments(spec, {"step_rules": ""}).get("step_rules", "")
    try:
        *parts, last = str(rules).split(",")
        pieces = [(float(factor), int(end)) for factor, end in (part.split(":") for part in parts)]
        rest = float(last)
    except ValueError:
        example = 'lr_scheduler_args step_rules="1:100,0.1:200,0.01"'
        raise OptimizerError(f"needs its steps and factors, such as {example}") from None
    ends = [end for _, end in pieces]
    if ends != sorted(set(ends)) or min((rest, *(factor for factor, _ in pieces))) < 0:
        raise OptimizerError(f"needs rising steps and factors of 0 or more, which {rules!r} has not")
    return lambda step: next((factor for factor, end in pieces if step < end), rest)


_OURS: dict[str, Callable[[ScheduleSpec, int], Callable[[int], float]]] = {
    "rex": _rex,
    "piecewise_constant": _piecewise_constant,
}


def _schedule_arguments(spec: ScheduleSpec, known: dict[str, Any]) -> dict[str, Any]:
    arguments = parse_assignments(spec.lr_scheduler_args)
    if unknown := sorted(set(arguments) - set(known)):
        names = f"{', '.join(unknown)}, only {', '.join(known)}"
        raise OptimizerError(f"{spec.lr_scheduler} has no argument {names}")
    return arguments


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
    if spec.lr_scheduler_args and not (spec.lr_scheduler_type or spec.lr_scheduler in _OURS):
        shown = " ".join(spec.lr_scheduler_args)
        rule = "belongs to lr_scheduler_type, rex or piecewise_constant, none of which is set"
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
