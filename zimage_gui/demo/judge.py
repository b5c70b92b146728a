"""Say by pixels alone what a demo picture shows: ground, colour and shape.

Knows the demo's colours and outlines. Must not know models, prompts or torch: the judge never sees the
caption, so that it cannot be kind.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from zimage_gui.demo.draw import BACKGROUNDS, COLOURS, NEW_SHAPE, SHAPES, Point, Rgb, Subject, outline

FRAME = 3  # pixels at the border that are surely ground: shapes keep a margin
VISIBLE = 40.0  # RGB distance from which a pixel may belong to the shape; white and pink lie 96 apart
SAME_COLOUR = 90.0  # a colour further than this from every named one has no name
LEAST_AREA = 0.02  # of the picture; less is a speck
SAME_SHAPE = 0.8  # least overlap (intersection over union) with the best of the ideal outlines
STAR_SOLIDITY = 0.75

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """What is seen. None where nothing fits; `solidity` is area over convex hull, 0 without a shape."""

    background: str | None
    colour: str | None
    shape: str | None
    solidity: float
    overlap: float

    def is_star(self) -> bool:
        """The criterion of the LoRA's figures: something is there and its hull is far from full."""
        return 0 < self.solidity < STAR_SOLIDITY

    def agrees(self, subject: Subject) -> tuple[bool, bool, bool]:
        """(background, colour, shape) right."""
        return (
            self.background == subject.background,
            self.colour == subject.colour,
            self.shape == subject.shape,
        )


def judge(picture: Image.Image) -> Judgement:
    """Judge a square RGB picture of at least 32 pixels."""
    pixels: Pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    ground = _ground(pixels)
    background = _named(ground, BACKGROUNDS)
    rough = _largest_part(_distance(pixels, ground) > VISIBLE)
    if rough.sum() < LEAST_AREA * rough.size:
        return Judgement(background, None, None, 0.0, 0.0)
    colour = np.median(pixels[_core(rough)], axis=0)
    along = (pixels - ground) @ (colour - ground) / max(1.0, float(((colour - ground) ** 2).sum()))
    mask = _largest_part(along > 0.5)
    if mask.sum() < LEAST_AREA * mask.size:
        return Judgement(background, _named(colour, COLOURS), None, 0.0, 0.0)
    shape, overlap = _best_shape(mask)
    return Judgement(background, _named(colour, COLOURS), shape, solidity(mask), overlap)


def solidity(mask: Mask) -> float:
    """Area over the area of the convex hull of the pixels' corners."""
    rows, columns = np.nonzero(mask)
    edges: list[Point] = []
    for row in np.unique(rows):
        xs = columns[rows == row]
        edges += [(float(x), float(y)) for x in (xs.min(), xs.max() + 1) for y in (row, row + 1)]
    return float(mask.sum()) / _polygon_area(_convex_hull(edges))


def _ground(pixels: Pixels) -> Pixels:
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    middle: Pixels = np.median(pixels[~inside], axis=0)
    return middle


def _distance(pixels: Pixels, colour: Pixels) -> Pixels:
    length: Pixels = np.sqrt(((pixels - colour) ** 2).sum(-1))
    return length


def _named(colour: Pixels, names: dict[str, Rgb]) -> str | None:
    distances = {name: float(_distance(colour, np.array(rgb, dtype=float))) for name, rgb in names.items()}
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] <= SAME_COLOUR else None


def _core(mask: Mask) -> Mask:
    """The mask without its edge pixels, whose colours are mixed; the mask itself when nothing is left."""
    padded = np.pad(mask, 2)
    core = mask.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        core &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return core if core.any() else mask


def _largest_part(mask: Mask) -> Mask:
    """The largest 4-connected region; empty stays empty."""
    left = mask.copy()
    best: list[tuple[int, int]] = []
    while left.any():
        start = divmod(int(left.argmax()), left.shape[1])
        part = _flood(left, (start[0], start[1]))
        best = max(best, part, key=len)
    out = np.zeros_like(mask)
    for y, x in best:
        out[y, x] = True
    return out


def _flood(left: Mask, start: tuple[int, int]) -> list[tuple[int, int]]:
    """Take the region of `start` out of `left` and return its pixels."""
    height, width = left.shape
    queue, part = deque([start]), []
    left[start] = False
    while queue:
        y, x = queue.popleft()
        part.append((y, x))
        for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= ny < height and 0 <= nx < width and left[ny, nx]:
                left[ny, nx] = False
                queue.append((ny, nx))
    return part


def _best_shape(mask: Mask) -> tuple[str | None, float]:
    """The shape whose ideal outline, moved and scaled to the mask's box, overlaps it best."""
    overlaps = {shape: _overlap(mask, shape) for shape in (*SHAPES, NEW_SHAPE)}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return (best if overlaps[best] >= SAME_SHAPE else None), overlaps[best]


def _overlap(mask: Mask, shape: str) -> float:
    rows, columns = np.nonzero(mask)
    corners = np.array(outline(shape, (0.0, 0.0), 1.0))
    size = corners.max(0) - corners.min(0)
    box = np.array([np.ptp(columns) + 1.0, np.ptp(rows) + 1.0])
    # One scale for both directions: a flattened circle is not a circle.
    scale = float(np.sqrt((box / size).prod()))
    middle = np.array([columns.min(), rows.min()]) + box / 2
    placed = (corners - (corners.max(0) + corners.min(0)) / 2) * scale + middle
    fine = 4
    ideal = Image.new("L", (mask.shape[1] * fine, mask.shape[0] * fine))
    ImageDraw.Draw(ideal).polygon([(x * fine, y * fine) for x, y in placed.tolist()], fill=255)
    filled = np.asarray(ideal.resize(mask.shape[::-1], Image.Resampling.BOX)) > 127
    return float((filled & mask).sum() / (filled | mask).sum())


def _convex_hull(points: list[Point]) -> list[Point]:
    """Andrew's monotone chain, anticlockwise."""
    ordered = sorted(set(points))
    halves = []
    for sequence in (ordered, ordered[::-1]):
        half: list[Point] = []
        for p in sequence:
            while len(half) > 1 and _turn(half[-2], half[-1], p) <= 0:
                half.pop()
            half.append(p)
        halves += half[:-1]
    return halves


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _polygon_area(corners: list[Point]) -> float:
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2
