"""What only a finetune has: which weights are trained and how their updates reach them. Knows the options and
the names of weights; must not know the loop or how an update is made.
"""

from typing import Any

import torch
from torch.optim import Optimizer

from zimage_gui.config.parallel_parts import shards_weights
from zimage_gui.engine.frozen import fits_whole_name, frozen_names
from zimage_gui.engine.optimizers import OptimizerError, optimizer_factory, parse_assignments
from zimage_gui.engine.updates import SingleUpdates, why_not_alone
from zimage_gui.errors import Problem
from zimage_gui.events import Note, Run, Warning
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import transformer_config_of

_TRIAL_RATE = 0.1  # large enough for a difference to show


def trains_model(config: Any) -> bool:
    """Whether the command trains the model's own weights."""
    return hasattr(config, "full_bf16")


def _by_one(config: Any) -> bool:
    return bool(config.fused_backward_pass or _rounds(config) or shards_weights(config))


def _rounds(config: Any) -> bool:
    return bool(config.full_bf16 and config.stochastic_rounding)


def updates_of(config: Any, optimizer: Optimizer) -> SingleUpdates | None:
    """How updates reach the weights; None: the optimizer updates all of them together."""
    if not trains_model(config) or not _by_one(config):
        return None
    return SingleUpdates(
        optimizer,
        config.seed,
        in_backward=config.fused_backward_pass,
        rounding=_rounds(config),
        max_norm=config.max_grad_norm,
    )


def tell(config: Any, run: Run) -> None:
    """What a user should know of these choices before the first step."""
    if config.full_bf16 and not config.stochastic_rounding:
        lost = "without stochastic_rounding a bf16 weight loses every update below about 1/500 of itself"
        run.emit(Warning(text=f"{lost}: most of them at a usual learning_rate"))
    if config.fused_backward_pass and config.max_grad_norm > 0:
        text = f"max_grad_norm {config.max_grad_norm:g} limits the gradient of each weight tensor by itself"
        run.emit(Note(text=f"{text}: with fused_backward_pass the length of all is known too late"))


def check(config: Any, optimizer_is_known: bool, model_is_known: bool) -> list[Problem]:
    """What is wrong with these options for this optimizer and this model; reads headers only."""
    found = _optimizer_problems(config) if optimizer_is_known else []
    return found + (_pattern_problems(config) if model_is_known else [])


def _optimizer_problems(config: Any) -> list[Problem]:
    if not _by_one(config):
        return []
    try:
        arguments = parse_assignments(config.optimizer_args)
        factory = optimizer_factory(config.optimizer_type, arguments, _TRIAL_RATE)
        reason = why_not_alone(factory, rounding=_rounds(config))
    except OptimizerError:  # told by the check of the optimizer itself
        return []
    if reason is None:
        return []
    names = ("fused_backward_pass", "shard_weights")
    wanted = next((name for name in names if getattr(config, name)), "stochastic_rounding")
    if wanted == "stochastic_rounding" and not _rounds(config):
        wanted = "shard_weights"  # a launcher asked for it
    value = str(getattr(config, wanted) or shards_weights(config)).lower()
    rule = f"cannot work with {config.optimizer_type}, which {reason}"
    return [Problem(wanted, value, rule, f"Use Adafactor, AdamW or AdamW8bit, or set {wanted} to false")]


def _pattern_problems(config: Any) -> list[Problem]:
    if config.dit is None or not (config.train_patterns or config.freeze_patterns):
        return []
    with torch.device("meta"):
        names = [name for name, _ in ZImageTransformer(transformer_config_of(config.dit)).named_parameters()]
    problems = []
    for option in ("train_patterns", "freeze_patterns"):
        for pattern in getattr(config, option):
            if not any(fits_whole_name(pattern, name) for name in names):
                rule = f"matches no weight, layer or block (a weight is {names[len(names) // 2]})"
                problems.append(Problem(option, pattern, rule, "Write one that fits a whole name"))
    if not problems and len(frozen_names(config, names)) == len(names):
        option = "freeze_patterns" if config.freeze_patterns else "train_patterns"
        shown = " ".join(getattr(config, option))
        problems.append(Problem(option, shown, "leaves no weight to train", "Freeze less"))
    return problems
