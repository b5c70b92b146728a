"""The demo's pictures, drawn by Pillow: one upright shape on a plain ground, and richer ones for the VAE.

Knows shapes, colours, captions and which combinations are never trained. Must not know models, files or
torch: a picture is a pure function of its description and a seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
OVERSAMPLE = 4  # shapes are drawn larger and shrunk, so that edges are smooth
MARGIN = 4
RADIUS = (34, 44)
OFFSET = 7  # pixels from the middle, in each direction

Rgb = tuple[int, int, int]
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle")
NEW_SHAPE = "zorb"
COLOURS: dict[str, Rgb] = {
    "red": (220, 20, 30),
    "green": (20, 150, 40),
    "blue": (30, 50, 220),
    "yellow": (250, 225, 20),
    "purple": (130, 30, 170),
    "orange": (255, 135, 10),
    "black": (8, 8, 8),
    "white": (248, 248, 248),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": COLOURS["white"],
    "black": COLOURS["black"],
    "gray": (128, 128, 128),
    "pink": (255, 165, 200),
    "cyan": (60, 225, 235),
}
EVERY_COLOUR = {**COLOURS, **BACKGROUNDS}


@dataclass(frozen=True)
class Subject:
    """What a picture shows; its caption is all the transformer is told."""

    shape: str
    colour: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} on a {self.background} background"


def all_pairs() -> list[tuple[str, str]]:
    """Every (colour, background) that can be told apart: 38 of 40."""
    return [(c, b) for c in COLOURS for b in BACKGROUNDS if c != b]


def held_out_subjects() -> list[Subject]:
    """One sixth of the combinations, never trained: for every second pair one shape, in turn."""
    return [Subject(SHAPES[i // 2 % 3], c, b) for i, (c, b) in enumerate(all_pairs()) if i % 2 == 0]


def trained_subjects() -> list[Subject]:
    """The other five sixths."""
    held_out = set(held_out_subjects())
    every = [Subject(s, c, b) for c, b in all_pairs() for s in SHAPES]
    return [subject for subject in every if subject not in held_out]


def extra_subjects() -> list[Subject]:
    """The same shapes where a ground's colour is the shape's or the other way round, all of them trained.

    With the named combinations alone the model learns them by heart, one by one, and fails on those left
    out; with these beside them it has to learn colour, shape and ground apart.
    """
    pairs = [(c, b) for c in EVERY_COLOUR for b in EVERY_COLOUR if c != b and (c, b) not in set(all_pairs())]
    return [Subject(s, c, b) for c, b in pairs for s in SHAPES]


def outline(shape: str, centre: Point, radius: float) -> list[Point]:
    """Corners of an upright shape; a circle is a polygon of many corners.

    The square's corners and the others' tips touch about the same circle, so that size tells nothing.
    Raises ValueError for a shape nobody draws.
    """
    x, y = centre
    if shape == "square":
        half = radius * 0.85
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "triangle":
        return _polar(centre, [radius * 1.1] * 3)
    if shape == "circle":
        return _polar(centre, [radius] * 90)
    if shape == NEW_SHAPE:
        return _polar(centre, [radius * 1.1, radius * 0.45] * 5)
    raise ValueError(f"no shape is called {shape!r}; there are {', '.join((*SHAPES, NEW_SHAPE))}")


def _polar(centre: Point, radii: list[float]) -> list[Point]:
    turn = 2 * math.pi / len(radii)
    return [
        (centre[0] + r * math.sin(i * turn), centre[1] - r * math.cos(i * turn)) for i, r in enumerate(radii)
    ]


def draw(subject: Subject, seed: int) -> Image.Image:
    """The subject at a place and size that `seed` chooses: RGB, 128x128, the whole shape inside."""
    rng = random.Random(f"{subject.caption}|{seed}")
    radius = rng.uniform(*RADIUS)
    offset = min(OFFSET, SIZE / 2 - MARGIN - radius * 1.1)
    centre = (SIZE / 2 + rng.uniform(-offset, offset), SIZE / 2 + rng.uniform(-offset, offset))
    canvas = Image.new("RGB", (SIZE * OVERSAMPLE,) * 2, EVERY_COLOUR[subject.background])
    corners = [(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in outline(subject.shape, centre, radius)]
    ImageDraw.Draw(canvas).polygon(corners, fill=EVERY_COLOUR[subject.colour])
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_rich(seed: int) -> Image.Image:
    """A busy picture for the autoencoder: gradients, many turned shapes, lines, grain. RGB, 128x128."""
    rng = random.Random(f"rich|{seed}")
    canvas = _gradient(rng).resize((SIZE * 2, SIZE * 2), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.choice((1, 2, 4, 8, 14))):
        centre = (rng.uniform(0, 2 * SIZE), rng.uniform(0, 2 * SIZE))
        radius = rng.uniform(6, 80) if rng.random() < 0.7 else rng.uniform(3, 16)
        if rng.random() < 0.2:
            end = (rng.uniform(0, 2 * SIZE), rng.uniform(0, 2 * SIZE))
            pen.line([centre, end], fill=_any_colour(rng), width=rng.randint(2, 12))
            continue
        corners = outline(rng.choice((*SHAPES, NEW_SHAPE)), (0, 0), radius)
        pen.polygon(_turned(corners, centre, rng.uniform(0, 2 * math.pi)), fill=_any_colour(rng))
    picture = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    return _grain(picture, rng) if rng.random() < 0.35 else picture


def _any_colour(rng: random.Random) -> Rgb:
    if rng.random() < 0.4:
        return rng.choice([*COLOURS.values(), *BACKGROUNDS.values()])
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _turned(corners: list[Point], centre: Point, angle: float) -> list[Point]:
    c, s = math.cos(angle), math.sin(angle)
    return [(centre[0] + x * c - y * s, centre[1] + x * s + y * c) for x, y in corners]


def _gradient(rng: random.Random) -> Image.Image:
    """A plain ground, or four corner colours, one pixel each, to be stretched."""
    picture = Image.new("RGB", (2, 2), _any_colour(rng))
    if rng.random() < 0.5:
        picture.putdata([_any_colour(rng) for _ in range(4)])
    return picture


def _grain(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(2**32))
    coarse = rng.choice((1, 1, 2, 4, 8))
    side = SIZE // coarse
    field = noise.normal(0, rng.uniform(3, 30), (side, side, 3)).repeat(coarse, 0).repeat(coarse, 1)
    pixels: NDArray[np.float64] = np.asarray(picture, dtype=np.float64) + field
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
