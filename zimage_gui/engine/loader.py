"""Cached pictures and captions as batches for the transformer.

Knows cache files and batch plans. Must not know the network, noise or losses. What a batch holds depends
only on its plan; threads change when it is read, never what it is.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from zimage_gui.engine.cache_files import Kind, open_cache
from zimage_gui.engine.dataset.plan import BatchPlan, CachedItem, DatasetIndex, epoch_batches
from zimage_gui.errors import UserError
from zimage_gui.model.tensor_files import read_tensor
from zimage_gui.model.vae import VaeConfig, to_model_space

__all__ = ["Batch", "BatchPlan", "CachedItem", "DatasetIndex", "Loader", "epoch_batches", "load_batch"]


_REAL_VAE = VaeConfig()


@dataclass(frozen=True)
class Batch:
    """latents (B, 16, h, w) fp32 in model space; captions: one (tokens, width) tensor each, as stored (bf16).

    masks: (B, 1, h, w) fp32 in [0, 1], None when no picture has one.
    keys: cache keys for messages; indices: sample numbers within the epoch; number: place of the batch in
    its epoch.
    """

    latents: Tensor
    captions: list[Tensor]
    keys: list[str]
    indices: list[int]
    number: int = 0
    masks: Tensor | None = None

    def pinned(self) -> "Batch":
        """The same in page-locked memory, from where copies to a GPU need not be waited for."""
        captions = [caption.pin_memory() for caption in self.captions]
        masks = self.masks.pin_memory() if self.masks is not None else None
        return Batch(self.latents.pin_memory(), captions, self.keys, self.indices, self.number, masks)


def load_batch(plan: BatchPlan, vae: VaeConfig = _REAL_VAE) -> Batch:
    """Read one batch; `vae` gives the shift and scale to model space.

    Raises UserError naming the cache file that is missing, damaged or of another shape than planned.
    """
    latents = torch.stack([_latent(item) for item in plan.items])
    return Batch(
        latents=to_model_space(latents, vae),
        captions=[_caption(item) for item in plan.items],
        keys=[item.key for item in plan.items],
        indices=list(plan.indices),
        number=plan.number,
        masks=_masks(plan),
    )


def _masks(plan: BatchPlan) -> Tensor | None:
    if all(item.mask_path is None for item in plan.items):
        return None
    return torch.stack([_mask(item) for item in plan.items])


def _mask(item: CachedItem) -> Tensor:
    """(1, h, w); a picture without a mask counts everywhere."""
    shape = item.latent_shape[1:]
    if item.mask_path is None:
        return torch.ones(1, *shape)
    found = open_cache(item.mask_path, Kind.MASK)
    if found.tensor.shape != shape:
        raise _changed(item.mask_path)
    with item.mask_path.open("rb") as file:
        mask = read_tensor(file, found.tensor)[None]
    return mask.flip(-1) if item.flipped else mask


def _changed(path: Path) -> UserError:
    return UserError.one("cache", path, "was changed while training", "Start again: it is then remade")


def _latent(item: CachedItem) -> Tensor:
    found = open_cache(item.latent_path, Kind.LATENT)
    if found.tensor.shape != item.latent_shape:
        raise _changed(item.latent_path)
    with item.latent_path.open("rb") as file:
        return read_tensor(file, found.tensor).float()


def _caption(item: CachedItem) -> Tensor:
    found = open_cache(item.text_path, Kind.TEXT)
    if found.tensor.shape[0] != item.tokens:
        raise _changed(item.text_path)
    with item.text_path.open("rb") as file:
        return read_tensor(file, found.tensor)


class Loader:
    """Batches of an epoch in their planned order, read ahead by threads.

    workers: threads that read, kept between epochs; 0 reads each batch when it is asked for. pin: page-lock
    the batches (needs a GPU). Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        index: DatasetIndex,
        seed: int,
        *,
        vae: VaeConfig | None = None,
        workers: int = 2,
        persistent: bool = True,
        pin: bool = False,
    ) -> None:
        self.index, self.seed = index, seed
        self._workers, self._persistent, self._pin = workers, persistent, pin
        self._vae = vae or VaeConfig(shift_factor=index.latent_shift, scaling_factor=index.latent_scale)
        self._pool: ThreadPoolExecutor | None = None

    def epoch(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, which is how a run resumes inside an epoch; only
        each `every`th, which is how several processes share it."""
        plans = epoch_batches(self.index, self.seed, epoch)[start::every]
        if self._workers < 1:
            for plan in plans:
                yield self.load(plan)
            return
        pool = self._pool or ThreadPoolExecutor(self._workers, thread_name_prefix="loader")
        self._pool = pool
        ahead: deque[Future[Batch]] = deque()
        try:
            for plan in plans:
                ahead.append(pool.submit(self.load, plan))
                if len(ahead) > self._workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            if not self._persistent:
                self.close()

    def load(self, plan: BatchPlan) -> Batch:
        """Read one batch now."""
        batch = load_batch(plan, self._vae)
        return batch.pinned() if self._pin else batch

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
