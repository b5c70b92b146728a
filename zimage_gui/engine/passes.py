"""The passes of a training run through its model. Knows how a batch becomes a loss: its draws, the type
computed in, and which blocks are run again in the backward pass. Must not know optimizers, steps or files.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zimage_gui.engine.devices import computing_in
from zimage_gui.engine.loader import Batch
from zimage_gui.engine.losses import flow_loss
from zimage_gui.engine.methods import Method
from zimage_gui.engine.objective import Objective, draw, sample_sigmas
from zimage_gui.engine.validation import Validation
from zimage_gui.model import flow
from zimage_gui.model.boundaries import BoundaryOffload
from zimage_gui.model.transformer import Factors, RunBlock, call_block, call_block_keeping_products


class Passes:
    """A method's model, run for one objective.

    recomputed: how many of the first main blocks are run again in the backward pass instead of keeping what
    they compute; None also for no other block. boundaries: where the inputs of these blocks wait, if not on
    the device. whole: whether this process has all weights, so that the part without gradients can be run as
    such. epoch_samples: as `draw` has it.
    """

    def __init__(
        self,
        method: Method,
        objective: Objective,
        seed: int,
        *,
        epoch_samples: int | None = None,
        recomputed: int | None = None,
        boundaries: BoundaryOffload | None = None,
        whole: bool = True,
    ) -> None:
        self.method, self.objective = method, objective
        self.device = method.model.device
        self.boundaries = boundaries
        self._seed, self._epoch_samples = seed, epoch_samples
        self._recomputed, self._whole = recomputed, whole

    def loss(self, batch: Batch, epoch: int) -> Tensor:
        """The weighted flow-matching loss of one batch, a scalar in fp32."""
        latents = batch.latents.to(self.device, torch.float32, non_blocking=True)
        captions = [caption.to(self.device, non_blocking=True) for caption in batch.captions]
        shape = tuple(latents.shape[1:])
        draws = draw(self.objective, self._seed, epoch, batch.indices, shape, self._epoch_samples)
        sigma = sample_sigmas(self.objective, draws, latents.shape[-2] * latents.shape[-1] // 4)
        noise, sigma = (item.to(self.device, non_blocking=True) for item in (draws.noise, sigma))
        with computing_in(self.device, self.method.autocast_dtype):
            prediction = self.predict(flow.noisy(latents, noise, sigma), flow.time_of_sigma(sigma), captions)
        masks = batch.masks.to(self.device, non_blocking=True) if batch.masks is not None else None
        return flow_loss(prediction, latents, noise, sigma, self.objective, masks)

    def validation_loss(self, validation: Validation) -> float:
        """Of the weights as they are; draws no random number that training would miss."""
        model = self.method.model

        def predict(noisy: Tensor, time_B: Tensor, captions: list[Tensor]) -> Tensor:
            with torch.no_grad(), computing_in(self.device, self.method.autocast_dtype):
                output: Tensor = model(noisy, time_B, captions)
            return output

        model.eval()
        try:
            return validation.loss(predict, self.device)
        finally:
            model.train()

    def smallest(self) -> Tensor:
        """The model's output for the smallest picture."""
        config = self.method.model.config
        side = config.patch_size
        latents = torch.zeros(1, config.in_channels, side, 2 * side, device=self.device)
        caption = torch.zeros(1, config.cap_feat_dim, device=self.device)
        with computing_in(self.device, self.method.autocast_dtype):
            return self.predict(latents, torch.ones(1, device=self.device), [caption])

    def accompany(self, _: object = None) -> None:
        """Have the weights come for a pass without gradients of another process."""
        with torch.no_grad():
            self.smallest()

    def predict(self, noisy: Tensor, time_B: Tensor, captions: list[Tensor]) -> Tensor:
        """The model's output (B, C, H, W) for noisy latents (B, C, H, W) at times (B,), with gradients."""
        model, run_block = self.method.model, self.run_block
        if not self._whole:
            output: Tensor = model(noisy, time_B, captions, run_block=run_block)
            return output
        with nullcontext() if self.method.trains_embedding else torch.no_grad():
            hidden = model.embed(
                noisy, time_B, captions, run_block=run_block if self.method.trains_embedding else call_block
            )
        return model.decode(hidden, run_block)

    @property
    def run_block(self) -> RunBlock:
        """How a block with gradients is run: plainly, or recomputed in the backward pass (one level, never
        nested). The last block never is: its backward pass comes at once, so nothing would be gained. Of a
        share the first ones are: when their turn comes, nothing is kept of the others any more."""
        layers = list(self.method.model.layers)
        if self._recomputed is None:
            return call_block_keeping_products
        count = min(self._recomputed, len(layers) - 1)
        if count == 0 and len(layers) > 1:
            return call_block_keeping_products
        # a block without dropout draws nothing: saving generators would cost a sync
        keeps_rng = self.method.uses_dropout
        plain = set(layers[count:])
        away = self.boundaries

        def run(block: nn.Module, x: Tensor, rope: Tensor, modulation: Tensor | Factors | None) -> Tensor:
            if block in plain:
                return call_block_keeping_products(block, x, rope, modulation)
            with away.sending(x) if away is not None else nullcontext():
                return _recomputed(block, x, rope, modulation, keeps_rng)

        return run


def _recomputed(
    block: Any, x: Tensor, rope: Tensor, modulation: Tensor | Factors | None, keeps_rng: bool
) -> Tensor:
    result = checkpoint(block, x, rope, modulation, use_reentrant=False, preserve_rng_state=keeps_rng)
    assert isinstance(result, Tensor)
    return result
