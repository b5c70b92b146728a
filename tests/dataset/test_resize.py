"""Resized pixels equal musubi's byte for byte, and the area average is one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zimage_gui.engine.dataset.buckets import Fit, fit
from zimage_gui.engine.dataset.images import read_pixels
from zimage_gui.engine.dataset.resize import area_average, resize_and_crop

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
EXPECTED = json.loads((MUSUBI / "expected.json").read_text(encoding="utf-8"))["images"]
OPAQUE = [
    entry for entry in EXPECTED if "alpha" not in entry["image"]
]  # we put transparency on white, musubi drops it


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("entry", OPAQUE, ids=lambda entry: f"{entry['dataset_config']}-{entry['image']}")
def test_pixels_equal_musubis(entry):
    info, pixels = read_pixels(MUSUBI / entry["image"])
    found = resize_and_crop(pixels, fit(info.size, tuple(entry["bucket_w_h"])))
    np.testing.assert_array_equal(found, pixels_of(MUSUBI / entry["resized"]))


def exact_average(pixels, size):
    """The area average by its definition: every fine cell of both grids once."""
    height, width = pixels.shape[:2]
    fine = pixels.astype(np.float64).repeat(size[1], axis=0).repeat(size[0], axis=1)
    return fine.reshape(size[1], height, size[0], width, 3).mean(axis=(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_pixel_is_the_mean_of_the_area_it_covers(data):
    height, width = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 23))
    size = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    seed = data.draw(st.integers(0, 2**32 - 1))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = area_average(pixels, size)
    assert found.shape == (size[1], size[0], 3) and found.dtype == np.uint8
    assert np.abs(found - exact_average(pixels, size)).max() <= 0.5 + 1e-3


def test_halving_rounds_half_up_and_quartering_half_to_even_like_opencv():
    two = np.array([[0, 1], [0, 1]], dtype=np.uint8)[:, :, None].repeat(3, axis=2)
    assert area_average(two, (1, 1)).tolist() == [[[1, 1, 1]]]
    four = np.zeros((4, 4, 3), dtype=np.uint8)
    four[:2] = 1
    assert area_average(four, (1, 1)).tolist() == [[[0, 0, 0]]]


def test_a_plain_colour_stays_itself_at_any_scale():
    pixels = np.full((97, 151, 3), (1, 128, 255), dtype=np.uint8)
    for bucket in ((96, 144), (32, 16), (256, 256)):
        found = resize_and_crop(pixels, fit((151, 97), bucket))
        assert found.shape == (bucket[1], bucket[0], 3) and np.unique(
            found.reshape(-1, 3), axis=0
        ).tolist() == [[1, 128, 255]]


def test_a_picture_of_another_size_than_planned_is_refused():
    with pytest.raises(ValueError, match="plan was made for"):
        resize_and_crop(np.zeros((4, 4, 3), np.uint8), Fit((8, 8), (4, 4), 0.5, (4, 4), 0, 0))
