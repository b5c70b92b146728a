"""The loss of held-out pictures, and when a value has stopped falling.

Knows cached pictures, noise levels and numbers. Must not know what is trained or when it is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zimage_gui.engine.dataset.plan import BatchPlan, CachedItem
from zimage_gui.engine.loader import Batch
from zimage_gui.engine.losses import LossSpec, flow_loss
from zimage_gui.engine.objective import stream_seed
from zimage_gui.model import flow

Predict = Callable[[Tensor, Tensor, list[Tensor]], Tensor]
"""(noisy latents, time, captions) -> model output, without gradients."""


@dataclass(frozen=True)
class ValidationTimes:
    """When held-out pictures are measured; the options' names."""

    validate_every_n_steps: int | None = None
    validate_every_n_epochs: int | None = None


@dataclass(frozen=True)
class Validation:
    """Plain squared error of each picture at evenly spread noise levels. Its noise depends on nothing but its
    place, so that measurements of any step, run and seed compare."""

    items: Sequence[CachedItem]
    load: Callable[[BatchPlan], Batch]
    levels: int

    def loss(self, predict: Predict, device: torch.device) -> float:
        """The mean over pictures and levels."""
        losses = [self._one(number, item, predict, device) for number, item in enumerate(self.items)]
        return sum(losses) / len(losses)

    def _one(self, number: int, item: CachedItem, predict: Predict, device: torch.device) -> float:
        batch = self.load(BatchPlan(0, (item,), (0,)))
        latents = batch.latents.to(device, torch.float32).expand(self.levels, -1, -1, -1)
        generator = torch.Generator().manual_seed(stream_seed(0, 0, number))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        sigma = ((torch.arange(self.levels) + 0.5) / self.levels).to(device)
        captions = [batch.captions[0].to(device)] * self.levels
        noisy = flow.noisy(latents, noise, sigma)
        prediction = predict(noisy, flow.time_of_sigma(sigma), captions)
        return float(flow_loss(prediction, latents, noise, sigma, LossSpec()))


@dataclass
class Patience:
    """Whether a value has gone so many `steps` without a new lowest; `over` holds until it finds one."""

    steps: int
    lowest: float = float("inf")
    lowest_step: int | None = None
    over: bool = False

    def look(self, step: int, value: float) -> None:
        if value < self.lowest or self.lowest_step is None:
            self.lowest = min(self.lowest, value)  # NaN is no lowest
            self.lowest_step, self.over = step, False
        else:
            self.over = step - self.lowest_step >= self.steps

    def sentence(self) -> str:
        return f"the lowest was {self.lowest:.4g} at step {self.lowest_step}"

    def state(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "lowest_step": self.lowest_step}

    def restore(self, values: Mapping[str, Any]) -> None:
        self.lowest, self.lowest_step = float(values["lowest"]), values["lowest_step"]
