"""Optimizers beyond torch's own: those with a package of their own, Muon with AdamW for what Muon cannot
take, and the weights that Schedule-Free means. Knows names and packages; must not know what is trained or
what is saved.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


@dataclass(frozen=True)
class Extra:
    """An optimizer with a short name: the package that brings it, and its class by module and name."""

    package: str
    module: str
    name: str


EXTRAS = {
    "prodigy": Extra("prodigyopt", "prodigyopt", "Prodigy"),
    "adamwschedulefree": Extra("schedulefree", "schedulefree", "AdamWScheduleFree"),
    "radamschedulefree": Extra("schedulefree", "schedulefree", "RAdamScheduleFree"),
    "sgdschedulefree": Extra("schedulefree", "schedulefree", "SGDScheduleFree"),
    "lion": Extra("lion-pytorch", "lion_pytorch", "Lion"),
    "came": Extra("came-pytorch", "came_pytorch", "CAME"),
}


_LEAST_FACTOR = 0.05  # of what Prodigy finds


def load_extra(extra: Extra) -> type:
    """The class. Raises ImportError with a sentence that says what to install."""
    try:
        found = getattr(importlib.import_module(extra.module), extra.name)
    except ImportError as error:
        way = f"pip install {extra.package}"
        raise ImportError(f"needs the package {extra.package}, which is not installed: {way}") from error
    assert isinstance(found, type)
    return found


class MuonWithAdamW(Optimizer):
    """Muon for matrices and AdamW for every other tensor, at the same rate.

    Muon makes the update of a matrix nearly orthogonal, which no vector can be. `match_rms_adamw` scales its
    updates to the size of AdamW's, so that one learning rate serves both. Arguments are Muon's.
    """

    def __init__(self, params: Any, lr: float = 1e-3, **muon: Any) -> None:
        muon = {"adjust_lr_fn": "match_rms_adamw"} | muon
        super().__init__(params, {"lr": lr})
        given, self.param_groups = self.param_groups, []
        for group in given:
            rest = {name: value for name, value in group.items() if name != "params"}
            matrices = [one for one in group["params"] if one.ndim == 2]
            others = [one for one in group["params"] if one.ndim != 2]
            if matrices:
                self.param_groups += Muon([{**rest, "params": matrices}], lr=lr, **muon).param_groups
            if others:
                decay = muon.get("weight_decay", 0.1)
                inner = AdamW([{**rest, "params": others}], lr=lr, weight_decay=decay)
                self.param_groups += inner.param_groups
        self._empty = torch.nn.Parameter(torch.zeros(1, 1))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        # groups are looked up at each step: loading a state replaces them
        for kind, is_kind in ((Muon, True), (AdamW, False)):
            inner = kind([self._empty])
            inner.state = self.state
            inner.param_groups = [one for one in self.param_groups if ("momentum" in one) is is_kind]
            inner.step()  # type: ignore[no-untyped-call]
        return loss


def effective_rate(optimizer: Optimizer) -> float | None:
    """The rate of the first group at this moment, with the factor d that Prodigy finds. None where the
    optimizer keeps its rate to itself."""
    group = optimizer.param_groups[0]
    rate = group["lr"]
    return None if rate is None else float(rate) * float(group.get("d", 1.0))


def rate_warning(optimizer: Optimizer) -> str | None:
    """What to tell of a rate with which the optimizer would hardly move."""
    group = optimizer.param_groups[0]
    if "d" not in group or group["lr"] >= _LEAST_FACTOR:
        return None
    return (
        f"Prodigy finds the learning rate itself and multiplies it by learning_rate, here {group['lr']:g}: "
        "the usual value is 1"
    )


def has_two_faces(optimizer: Optimizer) -> bool:
    """Whether the weights it trains are not the weights it means (Schedule-Free's y and x)."""
    return "train_mode" in optimizer.param_groups[0]


def set_training(optimizer: Optimizer) -> None:
    """Before the first update: Schedule-Free refuses to step on the weights it means."""
    if has_two_faces(optimizer):
        optimizer.train()  # type: ignore[attr-defined]


@contextmanager
def meant_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters are those to look at and to keep; afterwards exactly what they were.

    Schedule-Free (Defazio et al. 2024) trains y = (1 - beta) z + beta x and means the average x. Its own way
    back from x to y rounds, so y is kept aside: a run must not depend on how often it was looked at.
    """
    if not has_two_faces(optimizer):
        yield
        return
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
