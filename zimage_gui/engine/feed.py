"""Batches grouped into optimizer updates. Knows the loader and gradient accumulation; must not know what an
update does."""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

from zimage_gui.engine.loader import Batch, Loader


@dataclass(frozen=True)
class LoaderFeed:
    """The groups of batches of an epoch, in the loader's order. The last group of an epoch may be smaller.

    Of `processes` processes each takes the batches of its `rank` in turn: all together have the groups of one
    process with so many times the accumulation.
    """

    loader: Loader
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def batches_per_update(self) -> int:
        return self.accumulation * self.processes

    def updates(self, epoch: int) -> int:
        """Number of groups in an epoch."""
        return -(-self.loader.index.batches_in(self.loader.seed, epoch) // self.batches_per_update)

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
        """This process's part of the groups of an epoch from number `start` on; the last may be empty."""
        size, total = self.batches_per_update, self.loader.index.batches_in(self.loader.seed, epoch)
        batches = self.loader.epoch(epoch, start * size + self.rank, self.processes)
        for first in range(start * size, total, size):
            mine = range(first + self.rank, min(first + size, total), self.processes)
            yield list(islice(batches, len(mine)))
