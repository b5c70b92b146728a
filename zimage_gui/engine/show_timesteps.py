"""`--show_timesteps`: how often each noise level would be drawn and what it would weigh, told or drawn.

Knows objectives and Pillow. Must not know models, pictures or training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from zimage_gui.engine.losses import sample_weights
from zimage_gui.engine.objective import Objective, draw, sample_sigmas
from zimage_gui.events import Note, Run, Sample
from zimage_gui.files import atomic_write

DRAWS = 100_000
BINS = 40
_BAR = 50
_SIZE, _EDGE = (960, 480), (70, 50, 70, 50)  # left, top, right, bottom
_INK, _BARS, _LINE = (40, 40, 48), (92, 138, 196), (214, 106, 46)


@dataclass(frozen=True)
class Histogram:
    """shares: of all draws, one per bin of equal width from timestep 0 to 1000; weights: of the loss at the
    bins' middles."""

    shares: tuple[float, ...]
    weights: tuple[float, ...]


def histogram(objective: Objective, seed: int, sizes: Sequence[tuple[int, int]]) -> Histogram:
    """Draw for pictures of these sizes (pixels) in turn, exactly as training would."""
    numbers = list(range(DRAWS))
    draws = draw(objective, seed, 0, numbers, (1, 0, 0), DRAWS)
    counts = torch.zeros(BINS)
    for index, (width, height) in enumerate(sizes):
        rows = slice(index, None, len(sizes))
        part = type(draws)(draws.normal[rows], draws.uniform[rows], draws.noise[rows])
        sigma = sample_sigmas(objective, part, max(1, width // 16 * (height // 16)))
        counts += torch.bincount((sigma * BINS).long().clamp(0, BINS - 1), minlength=BINS)
    middles = (torch.arange(BINS) + 0.5) / BINS
    weights = sample_weights(objective, middles)
    return Histogram(tuple((counts / DRAWS).tolist()), tuple(weights.tolist()))


def as_text(shown: Histogram) -> str:
    """A table with bars, one line per bin."""
    width, most = 1000 // BINS, max(shown.shares)
    lines = ["timesteps     share  weight"]
    for number, (share, weight) in enumerate(zip(shown.shares, shown.weights, strict=True)):
        bar = "#" * round(_BAR * share / most)
        place = f"{number * width:4}-{(number + 1) * width:4}"
        lines.append(f"{place}  {share:6.2%} {weight:8.3g}  {bar}".rstrip())
    return "\n".join(lines)


def as_picture(shown: Histogram, title: str) -> Image.Image:
    """Bars of the shares and a line of the weights over the timesteps."""
    image = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    left, top, right, bottom = _EDGE[0], _EDGE[1], _SIZE[0] - _EDGE[2], _SIZE[1] - _EDGE[3]
    step = (right - left) / BINS
    most, heaviest = max(shown.shares), max(shown.weights)
    for number, share in enumerate(shown.shares):
        x = left + number * step
        pen.rectangle((x + 1, bottom - (bottom - top) * share / most, x + step - 1, bottom), fill=_BARS)
    points = [
        (left + (number + 0.5) * step, bottom - (bottom - top) * weight / heaviest)
        for number, weight in enumerate(shown.weights)
    ]
    pen.line(points, fill=_LINE, width=2)
    pen.line((left, top, left, bottom, right, bottom), fill=_INK)
    for timestep in range(0, 1001, 250):
        x = left + (right - left) * timestep / 1000
        pen.text((x, bottom + 8), str(timestep), fill=_INK, font=font, anchor="ma")
    pen.text((left, top - 8), f"{most:.2%} of the draws", fill=_BARS, font=font, anchor="lb")
    pen.text((right, top - 8), f"loss weight {heaviest:.3g}", fill=_LINE, font=font, anchor="rb")
    pen.text((_SIZE[0] / 2, 8), title, fill=_INK, font=font, anchor="ma")
    words = "timestep (1000: pure noise)"
    pen.text(((left + right) / 2, _SIZE[1] - 6), words, fill=_INK, font=font, anchor="mb")
    return image


def show(objective: Objective, seed: int, sizes: Sequence[tuple[int, int]], how: str, run: Run) -> list[Path]:
    """Tell the histogram as `how` says: "console" or "image" (`timesteps.png` in the run's folder)."""
    shown = histogram(objective, seed, sizes)
    if how == "console":
        run.emit(Note(text=as_text(shown)))
        return []
    title = f"{objective.timestep_sampling}, weighting {objective.weighting_scheme}, {DRAWS:,} draws"
    data = BytesIO()
    as_picture(shown, title).save(data, "PNG")
    path = run.folder / "timesteps.png"
    atomic_write(path, data.getvalue())
    run.emit(Sample(path=str(path), step=0, prompt="timesteps", seed=seed))
    return [path]
