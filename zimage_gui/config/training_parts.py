"""Training options for how it is learned: length, optimizer, timesteps. `saving_parts.py` has the others.

This module knows single options; rules between them are in `training.py`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator

from zimage_gui.config.common import FOLDER
from zimage_gui.config.schema import Options, When, option

TimestepSampling = Literal[
    "sigma", "uniform", "sigmoid", "shift", "flux_shift", "qwen_shift", "logsnr",
    "flux2_shift", "krea2_shift", "ideogram4_shift", "qinglong_flux", "qinglong_qwen",
]  # fmt: skip
SHAPED_SCHEDULES = ("rex", "piecewise_constant")
"""Named schedules that lr_scheduler_args shape."""
WeightingScheme = Literal["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"]


def _amount(value: object) -> object:
    """ "10%" becomes 0.1."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("must be a whole number of steps, or a share below 1 such as 0.05 or 5%")
    return value


def steps_of(amount: float, total_steps: int) -> int:
    """An amount of steps: from 1 on a number of steps, below 1 a share of `total_steps`."""
    return int(amount) if amount >= 1 else int(amount * total_steps)


class Length(Options):
    max_train_steps: int = option(
        1600,
        section="length",
        label="Steps",
        help="Number of optimizer updates. Epochs, when given, decide instead.",
        unit="steps",
        aliases=("steps", "max_steps"),
        ge=1,
        le=100_000_000,
        matters=When("max_train_epochs is empty", lambda c: c.max_train_epochs is None),
    )
    max_train_epochs: int | None = option(
        None,
        section="length",
        label="Epochs",
        help="Number of passes over all pictures; takes the place of the number of steps.",
        unit="epochs",
        aliases=("epochs", "num_epochs"),
        ge=1,
        le=10_000_000,
    )
    batch_size: int = option(
        1,
        section="length",
        label="Batch size",
        help="Pictures per step on one device. A dataset file sets it per folder.",
        unit="pictures",
        aliases=("train_batch_size",),
        ge=1,
        le=4096,
        matters=FOLDER,
    )
    gradient_accumulation_steps: int = option(
        1,
        section="length",
        label="Gradient accumulation",
        help="Batches whose gradients are averaged for one update.",
        unit="batches",
        ge=1,
        le=100_000,
    )
    seed: int | None = option(
        None,
        section="length",
        label="Seed",
        help="Number that fixes the order of pictures, the noise and the timesteps. Empty: a random "
        "one, which is "
        "written into the run.",
        ge=0,
        lt=2**63,
    )


_CYCLED = ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")
_LOWERED = ("cosine_with_min_lr", "warmup_stable_decay", "rex")


def _course(words: str, *names: str) -> When:
    """Where one of these named courses is followed."""
    return When(words, lambda c: not c.lr_scheduler_type and c.lr_scheduler in names)


def _finds_its_rate(config: Any) -> bool:
    given = {argument.replace(" ", "").lower() for argument in config.optimizer_args}
    return config.optimizer_type.lower() == "adafactor" and "relative_step=true" in given


class Optimizing(Options):
    learning_rate: float = option(
        1e-4,
        section="optimizer",
        label="Learning rate",
        help="Step size of the optimizer.",
        aliases=("lr",),
        ge=0,
        le=1000,
        matters=When(
            "Adafactor is not told to find its own (relative_step=True)", lambda c: not _finds_its_rate(c)
        ),
    )
    optimizer_type: str = option(
        "AdamW",
        section="optimizer",
        label="Optimizer",
        help="AdamW, AdamW8bit (less memory), Adafactor, Prodigy (finds the rate itself: learning rate 1), "
        "AdamWScheduleFree, Lion, CAME, Muon, a class of torch.optim, or a dotted class path.",
        aliases=("optimizer",),
    )
    optimizer_args: tuple[str, ...] = option(
        (),
        section="optimizer",
        label="Optimizer arguments",
        help='Further arguments as name=value, e.g. "weight_decay=0.01" "betas=0.9,0.99".',
        advanced=True,
    )
    max_grad_norm: float = option(
        1.0,
        section="optimizer",
        label="Gradient clipping",
        help="Longest gradient that is let through, as a global norm; 0 switches clipping off.",
        advanced=True,
        ge=0,
    )
    lr_scheduler: str = option(
        "constant",
        section="optimizer",
        label="LR scheduler",
        help="Course of the learning rate: constant, constant_with_warmup, linear, cosine, "
        "cosine_with_restarts, polynomial, inverse_sqrt, cosine_with_min_lr, warmup_stable_decay, rex "
        "(long high, then steep), piecewise_constant (steps by lr_scheduler_args).",
        matters=When("lr_scheduler_type is empty", lambda c: not c.lr_scheduler_type),
    )
    lr_warmup_steps: float = option(
        0,
        section="optimizer",
        label="Warm-up",
        help="Steps in which the learning rate rises from 0; below 1 a share of all steps.",
        unit="steps",
        ge=0,
    )
    lr_decay_steps: float = option(
        0,
        section="optimizer",
        label="Decay",
        help="Steps of the falling end of warmup_stable_decay; below 1 a share of all steps.",
        unit="steps",
        advanced=True,
        matters=_course("the scheduler is warmup_stable_decay", "warmup_stable_decay"),
        ge=0,
    )
    lr_scheduler_num_cycles: int = option(
        1,
        section="optimizer",
        label="LR cycles",
        help="Number of restarts of cosine_with_restarts.",
        advanced=True,
        matters=_course("the scheduler has cycles", *_CYCLED),
        ge=1,
        le=1_000_000,
    )
    lr_scheduler_power: float = option(
        1.0,
        section="optimizer",
        label="LR power",
        help="Exponent of the polynomial scheduler.",
        advanced=True,
        matters=_course("the scheduler is polynomial", "polynomial"),
        ge=0,
    )
    lr_scheduler_timescale: int | None = option(
        None,
        section="optimizer",
        label="LR timescale",
        help="Time scale of inverse_sqrt; empty: the number of warm-up steps.",
        unit="steps",
        advanced=True,
        matters=_course("the scheduler is inverse_sqrt", "inverse_sqrt"),
        ge=1,
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        section="optimizer",
        label="Lowest LR",
        help="Lowest learning rate as a share of the highest.",
        advanced=True,
        matters=_course("the scheduler is cosine_with_min_lr, warmup_stable_decay or rex", *_LOWERED),
        ge=0,
        le=1,
    )
    lr_scheduler_type: str = option(
        "",
        section="optimizer",
        label="LR scheduler class",
        help="A scheduler class instead of a named course: a class of torch.optim.lr_scheduler or a "
        "dotted path.",
        advanced=True,
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (),
        section="optimizer",
        label="LR scheduler arguments",
        help='Further arguments of the scheduler as name=value, e.g. "T_max=100" of a class, '
        '"rex_alpha=0.1" of rex, "step_rules=\'1:100,0.1\'" of piecewise_constant.',
        advanced=True,
    )

    _percent = field_validator("lr_warmup_steps", "lr_decay_steps", mode="before")(_amount)
    _whole = field_validator("lr_warmup_steps", "lr_decay_steps")(_whole_or_share)

    @field_validator("lr_scheduler")
    @classmethod
    def _without_rate(cls, value: str) -> str:
        """adafactor:0.0001 is what the first seed itself writes for an Adafactor with relative steps."""
        return "adafactor" if value.startswith("adafactor:") else value

    @field_validator("optimizer_args", "lr_scheduler_args")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """One name=value each; several in one text, with spaces between them, are taken apart."""
        value = tuple(part for item in value for part in re.split(r"\s+(?=[A-Za-z_]\w*\s*=)", item.strip()))
        for item in value:
            if not re.fullmatch(r"\s*[A-Za-z_]\w*\s*=.+", item, re.DOTALL):
                raise ValueError(f"must be name=value, which {item!r} is not")
        return value


_MIXED = ("qinglong_flux", "qinglong_qwen")
_NOT_SQUASHED = ("sigma", "uniform", "logsnr", "ideogram4_shift")
_SQUASHED = When(
    "timestep_sampling is sigmoid, qinglong or a shift other than ideogram4_shift",
    lambda c: c.timestep_sampling not in _NOT_SQUASHED,
)
_NORMAL = When(
    "weighting_scheme is logit_normal or timestep_sampling is logsnr or qinglong",
    lambda c: c.weighting_scheme == "logit_normal" or c.timestep_sampling in ("logsnr", *_MIXED),
)


class Timesteps(Options):
    timestep_sampling: TimestepSampling = option(
        "shift",
        section="timesteps",
        label="Timestep sampling",
        help="How the noise level of each sample is drawn.",
    )
    discrete_flow_shift: float = option(
        2.0,
        section="timesteps",
        label="Shift",
        help="Above 1 draws more high noise levels (structure), below 1 more low ones (detail).",
        gt=0,
        le=1000,
        matters=When("timestep_sampling is shift", lambda c: c.timestep_sampling == "shift"),
    )
    sigmoid_scale: float = option(
        1.0,
        section="timesteps",
        label="Sigmoid scale",
        help="Width of the normal distribution before the sigmoid.",
        advanced=True,
        matters=_SQUASHED,
        gt=0,
        le=1000,
    )
    weighting_scheme: WeightingScheme = option(
        "none",
        section="timesteps",
        label="Weighting",
        help="Density of the draw (logit_normal, mode: with sigma sampling) or weight of the loss "
        "(cosmap, sigma_sqrt).",
        advanced=True,
    )
    logit_mean: float = option(
        0.0,
        section="timesteps",
        label="Logit mean",
        help="Mean of logit_normal and logsnr.",
        advanced=True,
        matters=_NORMAL,
        ge=-100,
        le=100,
    )
    logit_std: float = option(
        1.0,
        section="timesteps",
        label="Logit width",
        help="Standard deviation of logit_normal and logsnr.",
        advanced=True,
        matters=_NORMAL,
        gt=0,
        le=100,
    )
    mode_scale: float = option(
        1.29,
        section="timesteps",
        label="Mode scale",
        help="Strength of the mode weighting.",
        advanced=True,
        matters=When("weighting_scheme is mode", lambda c: c.weighting_scheme == "mode"),
        ge=-100,
        le=100,
    )
    min_timestep: int | None = option(
        None,
        section="timesteps",
        label="Lowest timestep",
        help="Lowest noise level trained, of 1000.",
        advanced=True,
        ge=0,
        le=999,
    )
    max_timestep: int | None = option(
        None,
        section="timesteps",
        label="Highest timestep",
        help="Highest noise level trained, of 1000.",
        advanced=True,
        ge=1,
        le=1000,
    )
    preserve_distribution_shape: bool = option(
        False,
        section="timesteps",
        label="Keep the distribution",
        help="Draw again outside the lowest and highest timestep instead of squeezing all draws "
        "between them.",
        advanced=True,
        matters=When(
            "min_timestep or max_timestep is set", lambda c: (c.min_timestep, c.max_timestep) != (None, None)
        ),
    )
