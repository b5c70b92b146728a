"""Line charts as plain SVG text: loss (raw and smoothed) and learning rate.

Knows points and axes. Knows nothing of gradio or of runs; the caller thins long curves. SVG of our own
because it needs no network, costs the same for ten steps and for a hundred thousand, and keeps NaN steps
visible as marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zimage_gui.ui.html import escape, number

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26


@dataclass(frozen=True)
class Line:
    """One curve: `xs` ascending, `ys` of the same length, NaN allowed."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str  # CSS class: raw, smooth, rate or held


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover low..high."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[Line], empty: str) -> str:
    """The chart as one `<figure>`; with no finite point, the sentence `empty` instead."""
    values = [y for line in lines for y in line.ys if math.isfinite(y)]
    if not values:
        return (
            f'<figure class="zg-chart"><figcaption>{escape(title)}</figcaption><p '
            f'class="zg-empty">{escape(empty)}</p></figure>'
        )
    positions = [x for line in lines for x in line.xs]
    scale = _Scale(min(positions), max(positions), *_y_limits(lines, values))
    body = _grid(scale) + "".join(_curve(line, scale) for line in lines)
    legend = "".join(
        f'<span class="zg-key zg-line-{line.style}">{escape(line.name)}</span>' for line in lines
    )
    return (
        f'<figure class="zg-chart"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def _y_limits(lines: Sequence[Line], values: Sequence[float]) -> tuple[float, float]:
    """All values, except that a few spikes of a raw curve (over its 99th percentile) may leave the
    picture."""
    low, high = min(values), max(values)
    ordered = sorted(values)
    if len(ordered) > 50 and any(line.style == "raw" for line in lines):
        high = min(high, ordered[int(len(ordered) * 0.99)] * 1.25) if ordered[0] >= 0 else high
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * 0.05
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _grid(scale: _Scale) -> str:
    parts = []
    for tick in nice_ticks(scale.y_low, scale.y_high):
        y = scale.y(tick)
        parts.append(f'<line class="zg-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(scale.x_low, scale.x_high, 6):
        if float(tick).is_integer():
            x = scale.x(tick)
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"  # the last one must not leave the picture
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{int(tick):,}</text>')
    return "".join(parts)


def _curve(line: Line, scale: _Scale) -> str:
    pieces: list[str] = []
    marks: list[str] = []
    pen_down = False
    for x, y in zip(line.xs, line.ys, strict=True):
        if not math.isfinite(y):
            pen_down = False
            marks.append(
                f'<text class="zg-nan" x="{scale.x(x):.1f}" y="{TOP + 10}">'
                f"{'NaN' if math.isnan(y) else '∞'}</text>"
            )
            continue
        pieces.append(f"{'L' if pen_down else 'M'}{scale.x(x):.1f} {scale.y(y):.1f}")
        pen_down = True
    dot = ""
    if len(pieces) == 1:  # a path of one point draws nothing
        left, down = pieces[0][1:].split()
        dot = f'<circle class="zg-dot-{line.style}" cx="{left}" cy="{down}" r="2.5"/>'
    return f'<path class="zg-line-{line.style}" d="{"".join(pieces)}"/>{dot}{"".join(marks[:3])}'
