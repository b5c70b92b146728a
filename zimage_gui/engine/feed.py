"""Batches grouped into optimizer updates. Knows the loader and gradient accumulation; must not know what an
update does."""

from collections.abc import Generator
from dataclasses import dataclass

from zimage_gui.engine.loader import Batch, Loader


@dataclass(frozen=True)
class LoaderFeed:
    """The groups of batches of an epoch, in the loader's order. The last group of an epoch may be smaller."""

    loader: Loader
    accumulation: int = 1

    def updates(self, epoch: int) -> int:
        """Number of groups in an epoch."""
        return -(-self.loader.index.batches_in(self.loader.seed, epoch) // self.accumulation)

    def updates_until(self, epochs: int) -> int:
        """Number of groups in so many epochs."""
        if not self.loader.index.varies:
            return epochs * self.updates(0)
        return sum(map(self.updates, range(epochs)))

    def epochs_until(self, updates: int) -> int:
        """Number of epochs, the last perhaps not whole, in which there are so many groups."""
        if not self.loader.index.varies:
            return -(-updates // self.updates(0))
        epochs = 0
        while updates > 0:
            updates, epochs = updates - self.updates(epochs), epochs + 1
        return epochs

    def groups(self, epoch: int, start: int) -> Generator[list[Batch], None, None]:
        """The groups of an epoch from number `start` on."""
        group: list[Batch] = []
        for batch in self.loader.epoch(epoch, start * self.accumulation):
            group.append(batch)
            if len(group) == self.accumulation:
                yield group
                group = []
        if group:
            yield group
