"""Training options that watch over a run: held-out pictures, the average of the weights, an early end.

This module knows single options and the rules between them; it must not know how they are measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from zimage_gui.config.common import zero_is_none
from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem


def _holds_out(config: Any) -> bool:
    return config.validation_split > 0 or config.validation_dataset is not None


AVERAGED_STEPS = 200
"""Training losses in a mean; one over fewer is too noisy to be anyone's lowest."""


def _outlasts(config: Any) -> bool:
    """How many steps an epoch has is not known here."""
    first_look = AVERAGED_STEPS if config.early_stop == "loss" else 0
    return (
        config.max_train_epochs is not None
        or config.max_train_steps > first_look + config.early_stop_patience
    )


_HELD_OUT = When("pictures are held out", _holds_out)


class Watching(Options):
    validation_split: float = option(
        0.0,
        section="validation",
        label="Held-out share",
        help="Share of the pictures that is never trained: their loss tells when training begins to learn by "
        "heart. 0.1 is usual, 0: none.",
        ge=0,
        le=0.9,
    )
    validation_dataset: Path | None = option(
        None,
        section="validation",
        label="Held-out folder",
        help="Folder of pictures (or dataset file) for the same, beside those that are trained. A folder "
        "takes the resolution and trigger word of the first that is trained.",
        path="any",
    )
    validate_every_n_epochs: int | None = option(
        1,
        section="validation",
        label="Every … epochs",
        help="Measure after so many epochs, before the first step and at the end; empty or 0: not by epochs.",
        unit="epochs",
        matters=_HELD_OUT,
        ge=1,
    )
    validate_every_n_steps: int | None = option(
        None,
        section="validation",
        label="Every … steps",
        help="Measure each time so many steps are done; empty or 0: not by steps.",
        unit="steps",
        matters=_HELD_OUT,
        ge=1,
    )
    validation_levels: int = option(
        4,
        section="validation",
        label="Noise levels",
        help="Evenly spread noise levels at which each held-out picture is measured, with the same noise "
        "every time.",
        advanced=True,
        matters=_HELD_OUT,
        ge=1,
        le=100,
    )
    ema_decay: float = option(
        0.0,
        section="validation",
        label="Average of the weights",
        help="Save, show and validate a running average of the weights (EMA) that forgets so slowly: 0.99 "
        "for short runs, 0.999 for long ones, 0: off.",
        advanced=True,
        ge=0,
        lt=1,
    )
    ema_device: Literal["device", "cpu"] = option(
        "device",
        section="validation",
        label="Average kept on",
        help="The device that trains, or the cpu to save its memory. Always fp32.",
        advanced=True,
        matters=When("ema_decay is above 0", lambda c: c.ema_decay),
    )
    early_stop: Literal["none", "validation", "loss"] = option(
        "none",
        section="validation",
        label="Early end",
        help="End the run when the loss of the held-out pictures (validation) or the mean training loss of "
        "200 steps (loss) has stopped falling.",
        advanced=True,
        values={"no": "none", "false": "none"},
        matters=When("the run is longer than early_stop_patience, with loss by over 200 steps", _outlasts),
    )
    early_stop_patience: int = option(
        500,
        section="validation",
        label="Patience",
        help="So many steps without a new lowest value end the run.",
        unit="steps",
        advanced=True,
        matters=When("early_stop is on", lambda c: c.early_stop != "none"),
        ge=1,
    )

    _never_validates = field_validator("validate_every_n_steps", "validate_every_n_epochs", mode="before")(
        zero_is_none
    )


def _unused(config: Any, names: tuple[str, ...], rule: str, remedy: str) -> list[Problem]:
    return [
        Problem(name, show(getattr(config, name)), rule, remedy)
        for name in names
        if getattr(config, name) != Watching.model_fields[name].default
    ]


def watching_problems(config: Any) -> list[Problem]:
    """Rules between the options above."""
    found = []
    held_out = _holds_out(config)
    if config.validation_split > 0 and config.validation_dataset is not None:
        rule = "excludes validation_dataset: held-out pictures come from one of the two"
        found.append(
            Problem("validation_split", show(config.validation_split), rule, "Leave one of them out")
        )
    if held_out and config.validate_every_n_steps is None and config.validate_every_n_epochs is None:
        name = "validation_split" if config.validation_split > 0 else "validation_dataset"
        rule = "is never used: nothing says when to measure"
        remedy = "Set validate_every_n_epochs or validate_every_n_steps"
        found.append(Problem(name, show(getattr(config, name)), rule, remedy))
    if not held_out:
        names = ("validate_every_n_epochs", "validate_every_n_steps", "validation_levels")
        rule, remedy = (
            "needs held-out pictures",
            "Set validation_split or validation_dataset, or leave it out",
        )
        found += _unused(config, names, rule, remedy)
        if config.early_stop == "validation":
            found.append(Problem("early_stop", "validation", rule, f"{remedy.split(',')[0]}, or use loss"))
    if not config.ema_decay:
        found += _unused(config, ("ema_device",), "needs ema_decay", "Set it, or leave this out")
    if config.early_stop == "none":
        found += _unused(config, ("early_stop_patience",), "needs early_stop", "Set it, or leave this out")
    return found
