"""A model whose weights the processes share out, as the first of them samples with it.

Knows what a sampler asks of a model and how to have the other processes come along. Must not know how
weights are shared out, or pictures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zimage_gui.engine.processes import Processes
from zimage_gui.errors import ProcessLost
from zimage_gui.model.transformer import ZImageTransformer


class Together:
    """What a sampler computes beforehand is left to the passes: weights come for whole passes only."""

    def __init__(self, model: ZImageTransformer, processes: Processes) -> None:
        self._model, self._processes = model, processes

    @property
    def device(self) -> torch.device:
        return self._model.device

    def eval(self) -> object:
        return self._model.eval()

    def train(self) -> object:
        return self._model.train()

    def modulations(self, times_S: Tensor) -> Sequence[Tensor]:
        return torch.split(times_S, 1)

    def refine_captions(self, captions: Sequence[Tensor]) -> Sequence[Tensor]:
        return captions

    def __call__(self, latents: Tensor, time: Tensor, captions: Sequence[Tensor]) -> Tensor:
        self._processes.ask(("pass", None))
        try:
            output: Tensor = self._model(latents, time, captions)
        except (RuntimeError, MemoryError) as error:
            words = f"A picture failed amid the work of all processes, which cannot go on: {error}"
            raise ProcessLost(words) from error
        return output

    def forward_any(
        self, latents: Sequence[Tensor], time: Tensor, captions: Sequence[Tensor]
    ) -> list[Tensor]:
        """Each by itself; a time for all or one each."""
        times = torch.split(time.expand(len(latents)), 1)
        return [
            self(latent[None], one, [caption])[0]
            for latent, one, caption in zip(latents, times, captions, strict=True)
        ]
