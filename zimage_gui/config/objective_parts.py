"""Training options for what is minimised: stratified noise levels, their picture, the loss and its weights.

This module knows single options and the rules between them; how noise levels are drawn is `Timesteps` of
`training_parts.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from zimage_gui.config.common import zero_is_none
from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem

LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
_HUBER = When("loss_type is huber or smooth_l1", lambda c: c.loss_type in ("huber", "smooth_l1"))


class Objectives(Options):
    num_timestep_buckets: int | None = option(
        None,
        section="timesteps",
        label="Stratified timesteps",
        help="Cut the draw into so many equal parts and give each its share of every epoch: the loss is less "
        "noisy. Empty, 0 or 1: each timestep is drawn by itself.",
        unit="parts",
        advanced=True,
        ge=0,
        le=100_000,
    )
    show_timesteps: Literal["image", "console"] | None = option(
        None,
        section="timesteps",
        label="Show the timesteps",
        help="Train nothing: draw 100,000 timesteps and show how often each comes and what it weighs, as a "
        "picture or as text.",
        advanced=True,
    )
    loss_type: LossType = option(
        "l2",
        section="timesteps",
        label="Loss",
        help="l2 (squared error, usual), l1, or what lies between them and forgives outliers: huber (smooth, "
        "pseudo-Huber) and smooth_l1.",
        advanced=True,
        values={"mse": "l2", "pseudo_huber": "huber"},
    )
    huber_c: float = option(
        0.1,
        section="timesteps",
        label="Huber threshold",
        help="Errors well below it count squared, those well above it by their size.",
        advanced=True,
        matters=_HUBER,
        gt=0,
        le=100,
    )
    huber_schedule: HuberSchedule = option(
        "constant",
        section="timesteps",
        label="Huber schedule",
        help="Threshold over the noise levels: constant, or from 1 for a clean picture down to huber_c for "
        "pure noise (exponential, or snr: by the ratio of signal to noise).",
        advanced=True,
        matters=_HUBER,
    )
    min_snr_gamma: float | None = option(
        None,
        section="timesteps",
        label="Min-SNR gamma",
        help="Weigh noise levels by their ratio of signal to noise, at most this: pure noise counts little. "
        "5 is usual; empty or 0: off.",
        advanced=True,
        gt=0,
        le=10_000,
    )
    noise_offset: float = option(
        0.0,
        section="timesteps",
        label="Noise offset",
        help="Shift each channel of the noise by a random amount of this size, for darker and brighter "
        "pictures; 0.03 to 0.1 where wanted, 0: off.",
        advanced=True,
        ge=0,
        le=1,
    )

    _zero_gamma = field_validator("min_snr_gamma", mode="before")(zero_is_none)


def objective_problems(config: Any) -> list[Problem]:
    """Rules between the options above and the timesteps'."""
    found = []
    if config.loss_type in ("l2", "l1"):
        for name in ("huber_c", "huber_schedule"):
            value = getattr(config, name)
            if value != Objectives.model_fields[name].default:
                rule = f"has no effect with loss_type {config.loss_type}"
                found.append(
                    Problem(name, show(value), rule, "Set loss_type to huber or smooth_l1, or leave it out")
                )
    if config.huber_schedule != "constant" and config.huber_c > 1:
        rule = f"must be at most 1 with huber_schedule {config.huber_schedule}, which begins at 1"
        found.append(Problem("huber_c", show(config.huber_c), rule, "Lower it, or use constant"))
    if config.min_snr_gamma is not None and config.weighting_scheme in ("cosmap", "sigma_sqrt"):
        rule = f"excludes weighting_scheme {config.weighting_scheme}: both weigh the loss by noise level"
        found.append(Problem("min_snr_gamma", show(config.min_snr_gamma), rule, "Leave one of the two out"))
    return found
