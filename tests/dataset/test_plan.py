"""The order of training data is a pure function of seed, epoch and sample."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_gui.engine.dataset.plan import CachedItem, DatasetIndex, epoch_batches

batch_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@st.composite
def indexes(draw):
    sizes = draw(batch_sizes)
    items = []
    for number in range(draw(st.integers(1, 25))):
        source = draw(st.integers(0, len(sizes) - 1))
        shape = draw(st.sampled_from([(16, 8, 8), (16, 8, 12), (16, 12, 8)]))
        items.append(
            CachedItem(
                key=str(number), picture=Path("a"), latent_path=Path("b"), text_path=Path("c"),
                bucket=(shape[2] * 8, shape[1] * 8), latent_shape=shape, tokens=draw(st.integers(1, 100)),
                num_repeats=draw(st.integers(1, 4)), batch_size=sizes[source], source=source,
            )
        )  # fmt: skip
    return DatasetIndex(tuple(items))


seeds, epochs = st.integers(0, 2**63 - 1), st.integers(0, 1000)


@settings(max_examples=60, deadline=None)
@given(indexes(), seeds, epochs)
def test_every_sample_is_seen_exactly_once_in_each_epoch(index, seed, epoch):
    batches = epoch_batches(index, seed, epoch)
    seen = sorted(sample for batch in batches for sample in batch.indices)
    assert seen == list(range(index.samples_per_epoch))
    assert [batch.number for batch in batches] == list(range(index.batches_per_epoch))


@settings(max_examples=60, deadline=None)
@given(indexes(), seeds, epochs)
def test_a_batch_holds_one_entry_one_shape_and_one_padded_length(index, seed, epoch):
    small: dict[object, int] = {}
    for batch in epoch_batches(index, seed, epoch):
        groups = {(item.source, item.latent_shape, item.padded_tokens) for item in batch.items}
        assert len(groups) == 1 and 1 <= len(batch.items) <= batch.items[0].batch_size
        (group,) = groups
        small[group] = small.get(group, 0) + (len(batch.items) < batch.items[0].batch_size)
        assert [index.items[_owner(index, sample)] for sample in batch.indices] == [*batch.items]
    assert all(count <= 1 for count in small.values())


def _owner(index, sample):
    return max(number for number, first in enumerate(index.first_sample) if first <= sample)


@settings(max_examples=30, deadline=None)
@given(indexes(), seeds, epochs)
def test_the_same_seed_and_epoch_give_the_same_order_whatever_ran_before(index, seed, epoch):
    first = epoch_batches(index, seed, epoch)
    epoch_batches(index, seed, epoch + 1)
    assert epoch_batches(DatasetIndex(index.items), seed, epoch) == first


def plain(count, **changes):
    item = CachedItem("k", Path("a"), Path("b"), Path("c"), (64, 64), (16, 8, 8), 30, batch_size=2)
    return DatasetIndex(tuple(replace(item, key=str(number), **changes) for number in range(count)))


def test_the_order_is_the_known_one():
    orders = [[batch.indices for batch in epoch_batches(plain(5), 43, epoch)] for epoch in (0, 1)]
    assert orders == [[(3,), (0, 1), (2, 4)], [(1, 0), (2, 4), (3,)]]


def test_seeds_and_epochs_change_the_order():
    orders = {
        tuple(batch.indices for batch in epoch_batches(plain(12), seed, epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_captions_are_padded_to_multiples_of_32():
    assert [plain(1, tokens=count).items[0].padded_tokens for count in (1, 32, 33, 512)] == [32, 32, 64, 512]


def test_the_fingerprint_changes_with_what_decides_the_order():
    base = plain(3)
    assert plain(3).fingerprint == base.fingerprint
    changed = [
        plain(4),
        plain(3, num_repeats=2),
        plain(3, tokens=40),
        plain(3, batch_size=3),
        plain(3, latent_shape=(16, 8, 12)),
    ]
    assert len({base.fingerprint, *(index.fingerprint for index in changed)}) == 6
