"""Whether the modules of one LoRA can belong to one transformer: its blocks are all of one size.

Knows that layers with one name have one shape in every block. Must not know torch, files or real sizes.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial

Shape = tuple[int, ...]

_BLOCK = re.compile(r"(?:layers|noise_refiner|context_refiner)\.\d+\.(.+)")
_SHOWN = 6


def size_problem(shapes: Mapping[str, Shape]) -> str:
    """Which modules {path: (out, in)} differ in size from their like in most blocks; empty when none does."""
    kinds: dict[str, Counter[Shape]] = defaultdict(Counter)
    for path, shape in shapes.items():
        if match := _BLOCK.fullmatch(path):
            kinds[match[1]][shape] += 1
    wanted = {kind: max(found, key=partial(_weight, kind, kinds)) for kind, found in kinds.items()}
    wrong = [
        f"{path} is made for a weight {list(shape)}, in other blocks it is {list(wanted[match[1]])}"
        for path, shape in sorted(shapes.items())
        if (match := _BLOCK.fullmatch(path)) and shape != wanted[match[1]]
    ]
    if not wrong:
        return ""
    more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
    return f"{len(wrong)} of {len(shapes)} modules differ from the others: {'; '.join(wrong[:_SHOWN])}{more}"


def _weight(kind: str, kinds: Mapping[str, Counter[Shape]], shape: Shape) -> tuple[int, int]:
    """How often a shape is found in its own place, then in its neighbours, which may lie the other way."""
    around = [found for other, found in kinds.items() if other.partition(".")[0] == kind.partition(".")[0]]
    return kinds[kind][shape], sum(found[shape] + found[shape[::-1]] for found in around)


def split(size: int, factor: int) -> tuple[int, int]:
    """`size` as (small, large), as a LoKr cuts a side: `factor` is one of them where it divides, else the
    largest divisor up to it is the small one; -1 splits as evenly as can be."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = math.isqrt(size) if factor < 1 else min(factor, math.isqrt(size))
    small = next(number for number in range(most, 0, -1) if size % number == 0)
    return small, size // small
