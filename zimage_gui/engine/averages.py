"""The running average of trained weights (EMA).

Knows parameters by name. Must not know what they belong to or when they change.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def decay_at(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n updates: a young average forgets its beginning quickly."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """a <- d a + (1 - d) w after each update, in fp32. device: where it is kept; None: beside each weight.
    at_home: has every weight where it may be changed, called before."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        decay: float,
        device: torch.device | None = None,
        at_home: Callable[[], object] = lambda: None,
    ) -> None:
        self._parameters, self._decay, self._device = parameters, decay, device
        self._at_home = at_home
        self._updates = 0
        self.averages: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Start anew from the weights as they are."""
        self._updates = 0
        self.averages = {
            name: value.detach().to(self._device or value.device, torch.float32, copy=True)
            for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        self._at_home()
        weight = 1 - decay_at(self._decay, self._updates)
        self._updates += 1
        for name, average in self.averages.items():
            average.lerp_(self._parameters[name].detach().to(average.device, torch.float32), weight)

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """The average stands in the parameters; afterwards they are what they were. They wait on the CPU."""
        self._at_home()
        waiting = {name: value.detach().to("cpu", copy=True) for name, value in self._parameters.items()}
        try:
            self._fill(self.averages)
            yield
        finally:
            self._fill(waiting)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        self._at_home()
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": dict(self.averages)}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises ValueError when it is of other weights."""
        saved = values["averages"]
        shapes = {name: tensor.shape for name, tensor in self.averages.items()}
        if {name: tensor.shape for name, tensor in saved.items()} != shapes:
            raise ValueError("its averages are of other weights")
        self._updates = int(values["updates"])
        for name, average in self.averages.items():
            average.copy_(saved[name])
