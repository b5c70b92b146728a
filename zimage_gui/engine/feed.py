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
        """Number of groups in any epoch."""
        return -(-self.loader.index.batches_per_epoch // self.accumulation)

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
