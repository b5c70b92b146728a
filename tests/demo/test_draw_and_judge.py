"""The judge reads drawn pictures rightly, blurred and compressed ones too, and does not flatter bad ones."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from zimage_gui.demo.draw import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZE,
    Subject,
    draw,
    draw_rich,
    extra_subjects,
    held_out_subjects,
    outline,
    trained_subjects,
)
from zimage_gui.demo.judge import judge


def compressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(1)).save(file, "JPEG", quality=40)
    return Image.open(file)


def test_every_combination_is_read_rightly() -> None:
    for seed, subject in enumerate(trained_subjects() + held_out_subjects()):
        assert judge(draw(subject, seed)).agrees(subject) == (True, True, True), subject


def test_blurred_and_compressed_pictures_are_read_rightly() -> None:
    subjects = trained_subjects()[::5]
    right = [all(judge(compressed(draw(s, seed))).agrees(s)) for seed, s in enumerate(subjects)]
    assert sum(right) == len(subjects)


def test_a_star_is_a_star_and_nothing_else_is() -> None:
    for seed, background in enumerate(BACKGROUNDS):
        star = judge(draw(Subject("zorb", "red", background), seed))
        assert star.is_star() and star.shape == "zorb"
        assert not any(judge(draw(Subject(s, "red", background), seed)).is_star() for s in SHAPES)


def test_an_empty_picture_shows_nothing() -> None:
    seen = judge(Image.new("RGB", (SIZE, SIZE), BACKGROUNDS["pink"]))
    assert (seen.background, seen.colour, seen.shape, seen.is_star()) == ("pink", None, None, False)


def test_a_flattened_circle_is_no_shape() -> None:
    picture = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS["white"])
    ImageDraw.Draw(picture).ellipse((20, 50, 108, 80), fill=COLOURS["red"])
    assert judge(picture).shape is None


def test_noise_has_no_shape() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert judge(Image.fromarray(noise)).shape is None


def test_a_drawing_depends_on_its_seed_alone() -> None:
    subject = held_out_subjects()[0]
    assert draw(subject, 3).tobytes() == draw(subject, 3).tobytes() != draw(subject, 4).tobytes()
    assert draw_rich(3).tobytes() == draw_rich(3).tobytes() != draw_rich(4).tobytes()


def test_one_sixth_of_the_combinations_is_held_out_evenly() -> None:
    held_out, trained = held_out_subjects(), trained_subjects()
    assert len(held_out) * 6 == len(held_out) + len(trained) == 114
    assert not set(held_out) & set(trained)
    assert {s.colour for s in held_out} == set(COLOURS) and {s.shape for s in held_out} == set(SHAPES)
    assert all(s.colour != s.background for s in held_out + trained)
    assert held_out[0].caption == "a red circle on a white background"


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape is called 'hexagon'"):
        outline("hexagon", (0, 0), 1)


def test_extra_combinations_leave_the_held_out_ones_alone() -> None:
    extra = extra_subjects()
    assert not set(extra) & set(held_out_subjects() + trained_subjects())
    assert len(set(extra)) == 216
