"""Buckets and crops are those of musubi-tuner, and hold their rules for any picture."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.engine.dataset.buckets import bucket_sizes, choose_bucket, fit

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
EXPECTED = json.loads((MUSUBI / "expected.json").read_text(encoding="utf-8"))["images"]

sides = st.integers(1, 9000)
resolutions = st.tuples(st.integers(2, 128), st.integers(2, 128)).map(
    lambda cells: (cells[0] * 16, cells[1] * 16)
)


@pytest.mark.parametrize(
    ("resolution", "count", "first"),
    [
        ((1024, 1024), 65, (512, 2048)),
        ((512, 512), 33, (256, 1024)),
        ((768, 768), 49, (384, 1536)),
        ((960, 544), 47, (352, 1472)),
    ],
)
def test_bucket_lists_have_the_known_lengths(resolution, count, first):
    found = bucket_sizes(resolution)
    assert len(found) == count and found[0] == first and found[-1] == first[::-1]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1920, 1080), (1360, 768)),
        ((1080, 1920), (768, 1360)),
        ((3000, 1000), (1760, 592)),
        ((6000, 1000), (2048, 512)),
        ((100, 100), (1024, 1024)),
    ],
)
def test_known_pictures_take_their_known_buckets(size, bucket):
    assert choose_bucket(size, (1024, 1024), enable_bucket=True, no_upscale=False) == bucket


@pytest.mark.parametrize("entry", EXPECTED, ids=lambda entry: f"{entry['dataset_config']}-{entry['image']}")
def test_scale_and_crop_equal_musubis(entry):
    size = tuple(entry["original_w_h"])
    no_upscale = "no_upscale" in entry["dataset_config"]
    bucket = choose_bucket(size, (128, 128), enable_bucket=True, no_upscale=no_upscale)
    found = fit(size, bucket)
    assert [*bucket] == entry["bucket_w_h"]
    assert [*found.resized] == entry["resized_to"]
    assert [found.left, found.top] == entry["crop_left_top"]


@given(resolutions)
def test_every_bucket_is_a_multiple_of_16_within_the_area_and_exists_turned_too(resolution):
    found = bucket_sizes(resolution)
    area = resolution[0] * resolution[1]
    assert found == tuple(sorted(set(found)))
    for width, height in found:
        assert width % 16 == height % 16 == 0 and 0 < width * height <= area
        assert (height, width) in found


@given(sides, sides, resolutions)
def test_the_chosen_bucket_has_the_nearest_aspect_and_the_scaled_picture_covers_it(width, height, resolution):
    bucket = choose_bucket((width, height), resolution, enable_bucket=True, no_upscale=False)
    nearest = min(abs(w / h - width / height) for w, h in bucket_sizes(resolution))
    assert abs(bucket[0] / bucket[1] - width / height) == nearest
    found = fit((width, height), bucket)
    assert found.resized[0] >= bucket[0] and found.resized[1] >= bucket[1]
    assert bucket[0] == found.resized[0] or bucket[1] == found.resized[1]
    assert 0 <= found.left <= found.resized[0] - bucket[0] and 0 <= found.top <= found.resized[1] - bucket[1]


@given(sides, sides, resolutions)
def test_no_upscale_never_enlarges(width, height, resolution):
    bucket = choose_bucket((width, height), resolution, enable_bucket=True, no_upscale=True)
    if 0 not in bucket and width * height <= resolution[0] * resolution[1]:
        found = fit((width, height), bucket)
        assert not found.upscaled and bucket == (width // 16 * 16, height // 16 * 16)


def test_without_buckets_the_resolution_itself_is_used():
    assert choose_bucket((300, 100), (640, 480), enable_bucket=False, no_upscale=False) == (640, 480)


def test_the_crop_box_is_told_in_pixels_of_the_original():
    found = fit((400, 100), (64, 32))
    assert found.crop_box == (100.0, 0.0, 300.0, 100.0) and found.lost_share == 0.5
