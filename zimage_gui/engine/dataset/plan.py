"""The order of training data: which samples form which batch of which epoch.

Knows cached items and whole numbers only. Must not read files or import torch. Everything here is a pure
function of (seed, epoch, sample): it does not matter what ran before, on which machine, or with how many
workers.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.sources import Source
from zimage_gui.errors import UserError

TOKEN_STEP = 32
"""Captions are padded to a multiple of this inside the transformer."""


@dataclass(frozen=True)
class CachedText:
    """Another caption of a picture, encoded."""

    path: Path
    tokens: int
    caption: str


@dataclass(frozen=True)
class CachedItem:
    """One picture with its caches in place. latent_shape is (16, h, w); tokens counts the caption's real
    tokens.

    Of other_texts and the item's own caption each is equally likely; `empty` takes their place in a share
    `dropout` of the samples; flipped_path is the mirrored latent, for half of the samples. `flipped` says
    that latent_path already is that one. mask_path: weights of an unmirrored picture.
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
    other_texts: tuple[CachedText, ...] = ()
    empty: CachedText | None = None
    dropout: float = 0.0
    flipped_path: Path | None = None
    flipped: bool = False
    mask_path: Path | None = None

    @property
    def padded_tokens(self) -> int:
        return _padded(self.tokens)

    @property
    def padded_lengths(self) -> set[int]:
        """Of every caption it may have."""
        others = (*self.other_texts, *([self.empty] if self.empty else []))
        return {self.padded_tokens, *(_padded(text.tokens) for text in others)}

    def seen_as(self, seed: int, epoch: int, sample: int) -> "CachedItem":
        """What a sample of an epoch sees: one caption, mirrored or not."""
        item = self
        if self.empty and _share(seed, epoch, "dropout", sample) < self.dropout:
            item = item.with_text(self.empty)
        elif self.other_texts:
            number = int(_share(seed, epoch, "caption", sample) * (len(self.other_texts) + 1))
            item = item.with_text(self.other_texts[number - 1]) if number else item
        if self.flipped_path and _share(seed, epoch, "flip", sample) < 0.5:
            item = replace(item, latent_path=self.flipped_path, flipped=True)
        return item

    def with_text(self, text: CachedText) -> "CachedItem":
        return replace(self, text_path=text.path, tokens=text.tokens, caption=text.caption)

    @property
    def variants(self) -> tuple[object, ...]:
        """What decides how it is seen beside its plain files; empty for most."""
        texts = [text.tokens for text in self.other_texts]
        found = (texts, self.dropout if self.empty else 0.0, self.flipped_path is not None)
        return found if found != ([], 0.0, False) else ()


def _padded(tokens: int) -> int:
    return -(-tokens // TOKEN_STEP) * TOKEN_STEP


@dataclass(frozen=True)
class DatasetIndex:
    """All items of a run. A sample is one appearance of an item in an epoch; samples are numbered from 0.

    latent_shift and latent_scale are the VAE's: model space = (latent - shift) * scale. The defaults are
    those of the real model. sources: the dataset entries by the items' `source` number, for the record only.
    held_out: pictures that are never trained, for validation.
    """

    items: tuple[CachedItem, ...]
    latent_shift: float = 0.1159
    latent_scale: float = 0.3611
    sources: tuple[Source, ...] = ()
    held_out: tuple[CachedItem, ...] = ()

    def without_held_out(self, trained_sources: int, share: float) -> "DatasetIndex":
        """The same with pictures moved to `held_out`: those of the entries behind the trained ones, or a
        share of all, at least one, by a hash of their names: the same ones in every run. Raises UserError
        when nothing is left to train, or nothing to hold out though it was asked for.
        """
        held = {item for item in self.items if item.source >= trained_sources}
        if share:
            ranked = sorted(self.items, key=lambda item: _rank(0, item.source, "held out", item.key))
            held = set(ranked[: max(1, round(share * len(ranked)))])
        kept = tuple(item for item in self.items if item not in held)
        if not kept:
            rule = "leaves no picture to train" if share else "holds all pictures that could be encoded"
            option, value = ("validation_split", f"{share:g}") if share else ("validation_dataset", "")
            raise UserError.one(option, value, rule, "Add pictures, or leave it out")
        if not held and len(self.sources) > trained_sources:
            rule = "holds no picture that could be encoded"
            raise UserError.one("validation_dataset", "", rule, "See the warnings above")
        held_out = tuple(item for item in self.items if item in held)
        return replace(self, items=kept, sources=self.sources[:trained_sources], held_out=held_out)

    @cached_property
    def first_sample(self) -> tuple[int, ...]:
        """Number of each item's first sample; its repeats follow."""
        return (0, *accumulate(item.num_repeats for item in self.items))[:-1]

    @property
    def samples_per_epoch(self) -> int:
        return sum(item.num_repeats for item in self.items)

    @cached_property
    def batches_per_epoch(self) -> int:
        """Of plain captions: groups never change then, only their order."""
        counts: dict[_Group, int] = {}
        for item in self.items:
            group = _group(item)
            counts[group] = counts.get(group, 0) + item.num_repeats
        return sum(-(-count // group.batch_size) for group, count in counts.items())

    @cached_property
    def varies(self) -> bool:
        """Whether captions of one picture differ in padded length, so that epochs differ in batches."""
        return any(len(item.padded_lengths) > 1 for item in self.items)

    def batches_in(self, seed: int, epoch: int) -> int:
        """Number of batches of an epoch."""
        if not self.varies:
            return self.batches_per_epoch
        groups, _ = _grouped(self, seed, epoch)
        return sum(-(-len(samples) // group.batch_size) for group, samples in groups.items())

    @property
    def fingerprint(self) -> str:
        """Changes when the order of samples would change; saved with a training state and compared on
        resume.
        """
        facts = [
            (
                item.key,
                item.latent_shape,
                item.tokens,
                item.num_repeats,
                item.batch_size,
                item.source,
                *item.variants,
            )
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
    groups, seen = _grouped(index, seed, epoch)
    batches: list[tuple[int, ...]] = []
    for group, samples in groups.items():
        size = group.batch_size
        shuffled = sorted(samples, key=lambda sample: _rank(seed, epoch, "sample", sample))
        batches += [tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    batches.sort(key=lambda batch: _rank(seed, epoch, "batch", batch[0]))
    return [
        BatchPlan(number, tuple(seen[sample] for sample in batch), batch)
        for number, batch in enumerate(batches)
    ]


_Groups = dict["_Group", list[int]]


def _grouped(index: DatasetIndex, seed: int, epoch: int) -> tuple[_Groups, list[CachedItem]]:
    """The samples of each group, and how each sample's picture is seen."""
    groups: dict[_Group, list[int]] = {}
    seen: list[CachedItem] = []
    for item in index.items:
        for _ in range(item.num_repeats):
            shown = item.seen_as(seed, epoch, len(seen))
            groups.setdefault(_group(shown), []).append(len(seen))
            seen.append(shown)
    return groups, seen


class _Group(NamedTuple):
    """What the items of a batch share."""

    source: int
    latent_shape: tuple[int, int, int]
    padded_tokens: int
    batch_size: int


def _group(item: CachedItem) -> _Group:
    return _Group(item.source, item.latent_shape, item.padded_tokens, item.batch_size)


def _share(seed: int, epoch: int, what: str, number: int) -> float:
    """A random-looking number from 0 up to, not including, 1."""
    return int.from_bytes(_rank(seed, epoch, what, number)[:6]) / 2**48


def _rank(seed: int, epoch: int, what: str, number: int | str) -> bytes:
    """A random-looking sort key. Hashes give the same order in every Python and on every platform."""
    words = f"{seed} {epoch} {what} {number}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(words, digest_size=16).digest()
