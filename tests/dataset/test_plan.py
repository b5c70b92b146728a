"""The order of training data is a pure function of seed, epoch and sample."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_gui.engine.dataset.plan import CachedItem, CachedText, DatasetIndex, epoch_batches

VARIED = {
    "other_texts": (CachedText(Path("d"), 50, "d"), CachedText(Path("e"), 90, "e")),
    "empty": CachedText(Path("g"), 8, ""), "dropout": 0.25, "flipped_path": Path("f"),
}  # fmt: skip
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
                **draw(st.sampled_from([{}, VARIED, {"flipped_path": Path("f")}])),
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
    assert [batch.number for batch in batches] == list(range(index.batches_in(seed, epoch)))


@settings(max_examples=60, deadline=None)
@given(indexes(), seeds, epochs)
def test_a_batch_holds_one_entry_one_shape_and_one_padded_length(index, seed, epoch):
    small: dict[object, int] = {}
    for batch in epoch_batches(index, seed, epoch):
        groups = {(item.source, item.latent_shape, item.padded_tokens) for item in batch.items}
        assert len(groups) == 1 and 1 <= len(batch.items) <= batch.items[0].batch_size
        (group,) = groups
        small[group] = small.get(group, 0) + (len(batch.items) < batch.items[0].batch_size)
        owners = [index.items[_owner(index, sample)] for sample in batch.indices]
        assert [item.key for item in owners] == [item.key for item in batch.items]
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


def test_each_caption_and_side_comes_as_often_as_it_should_and_depends_on_nothing_but_its_numbers():
    item = plain(1, **VARIED).items[0]
    seen = [item.seen_as(7, epoch, sample) for epoch in range(200) for sample in range(10)]
    share = {path: sum(one.text_path == Path(path) for one in seen) / len(seen) for path in "cdeg"}
    assert abs(share["g"] - 0.25) < 0.03 and all(abs(share[path] - 0.25) < 0.03 for path in "cde")
    assert all(one.tokens == {"c": 30, "d": 50, "e": 90, "g": 8}[str(one.text_path)] for one in seen)
    flipped = [one for one in seen if one.flipped]
    assert abs(len(flipped) / len(seen) - 0.5) < 0.03 and all(one.latent_path == Path("f") for one in flipped)
    assert seen[37] == item.seen_as(7, 3, 7) != item.seen_as(8, 3, 7) or seen[38] != item.seen_as(8, 3, 8)


def test_a_picture_without_variants_is_the_very_same_in_every_sample():
    item = plain(1).items[0]
    assert item.seen_as(1, 2, 3) is item and not item.variants


def test_the_fingerprint_tells_other_variants_apart_and_is_the_old_one_without():
    assert plain(2).fingerprint == "20356c7483ead1b60bd209aab8fd83b7"  # states of older runs know it
    kinds = [{}, {"flipped_path": Path("f")}, {"empty": VARIED["empty"], "dropout": 0.1}, VARIED]
    assert len({plain(2, **kind).fingerprint for kind in kinds}) == 4
