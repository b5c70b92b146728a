"""The order of training data: which samples form which batch of which epoch.

Knows cached items and whole numbers only. Must not read files or import torch. Everything here is a pure
function of (seed, epoch, sample): it does not matter what ran before, on which machine, or with how many
workers.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.sources import Source

TOKEN_STEP = 32
"""Captions are padded to a multiple of this inside the transformer."""


@dataclass(frozen=True)
class CachedItem:
    """One picture with both caches in place. latent_shape is (16, h, w); tokens counts the caption's real
    tokens.
    """

    key: str
    picture: Path
    latent_path: Path
    text_path: Path
    bucket: Size
    latent_shape: tuple[int, int, int]
    tokens: int
    caption: str = ""
    num_repeats: int = 1
    batch_size: int = 1
    source: int = 0

    @property
    def padded_tokens(self) -> int:
        return -(-self.tokens // TOKEN_STEP) * TOKEN_STEP


@dataclass(frozen=True)
class DatasetIndex:
    """All items of a run. A sample is one appearance of an item in an epoch; samples are numbered from 0.

    latent_shift and latent_scale are the VAE's: model space = (latent - shift) * scale. The defaults are
    those of the real model. sources: the dataset entries by the items' `source` number, for the record only.
    """

    items: tuple[CachedItem, ...]
    latent_shift: float = 0.1159
    latent_scale: float = 0.3611
    sources: tuple[Source, ...] = ()

    @cached_property
    def first_sample(self) -> tuple[int, ...]:
        """Number of each item's first sample; its repeats follow."""
        return (0, *accumulate(item.num_repeats for item in self.items))[:-1]

    @property
    def samples_per_epoch(self) -> int:
        return sum(item.num_repeats for item in self.items)

    @cached_property
    def batches_per_epoch(self) -> int:
        """The same for every epoch: groups never change, only their order."""
        counts: dict[_Group, int] = {}
        for item in self.items:
            group = _group(item)
            counts[group] = counts.get(group, 0) + item.num_repeats
        return sum(-(-count // group.batch_size) for group, count in counts.items())

    @property
    def fingerprint(self) -> str:
        """Changes when the order of samples would change; saved with a training state and compared on
        resume.
        """
        facts = [
            (item.key, item.latent_shape, item.tokens, item.num_repeats, item.batch_size, item.source)
            for item in self.items
        ]
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class BatchPlan:
    """One batch: items of one dataset entry, one latent shape and one padded caption length.

    indices: sample numbers within the epoch, the third part of (seed, epoch, index) for noise and timesteps.
    """

    number: int
    items: tuple[CachedItem, ...]
    indices: tuple[int, ...]


def epoch_batches(index: DatasetIndex, seed: int, epoch: int) -> list[BatchPlan]:
    """All batches of an epoch in order. Every sample appears exactly once; the last batch of a group may be
    partial.
    """
    groups: dict[_Group, list[int]] = {}
    owner: list[int] = []
    for position, item in enumerate(index.items):
        for _ in range(item.num_repeats):
            groups.setdefault(_group(item), []).append(len(owner))
            owner.append(position)
    batches: list[tuple[int, ...]] = []
    for group, samples in groups.items():
        size = group.batch_size
        shuffled = sorted(samples, key=lambda sample: _rank(seed, epoch, "sample", sample))
        batches += [tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    batches.sort(key=lambda batch: _rank(seed, epoch, "batch", batch[0]))
    return [
        BatchPlan(number, tuple(index.items[owner[sample]] for sample in batch), batch)
        for number, batch in enumerate(batches)
    ]


class _Group(NamedTuple):
    """What the items of a batch share."""

    source: int
    latent_shape: tuple[int, int, int]
    padded_tokens: int
    batch_size: int


def _group(item: CachedItem) -> _Group:
    return _Group(item.source, item.latent_shape, item.padded_tokens, item.batch_size)


def _rank(seed: int, epoch: int, what: str, number: int) -> bytes:
    """A random-looking sort key. Hashes give the same order in every Python and on every platform."""
    return hashlib.blake2b(f"{seed} {epoch} {what} {number}".encode(), digest_size=16).digest()
