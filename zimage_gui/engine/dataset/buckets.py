"""Which training size a picture gets, and how it is scaled and cropped to it.

Knows only whole numbers: sizes in pixels, always (width, height). Must not know files, pixels or captions.
The bucket list and its choice are musubi-tuner's, so that cache files can be exchanged.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

STEP = 16
"""Bucket sides are multiples of this: the VAE divides by 8, the transformer's patches by 2."""

Size = tuple[int, int]


def floor_to_step(length: int) -> int:
    """The largest multiple of 16 that is not longer than `length`."""
    return length - length % STEP


@lru_cache(maxsize=64)
def bucket_sizes(resolution: Size) -> tuple[Size, ...]:
    """All bucket sizes of a resolution, sorted: area at most that of the resolution, aspect about 1:4 to
    4:1.
    """
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    sizes: set[Size] = set()
    for width in range(max(floor_to_step(side // 2), STEP), side + STEP, STEP):
        height = floor_to_step(area // width)
        if height > 0:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def choose_bucket(size: Size, resolution: Size, *, enable_bucket: bool, no_upscale: bool) -> Size:
    """The bucket of a picture of `size`. A side of 0 in the answer means the picture is smaller than 16
    pixels.
    """
    if not enable_bucket:
        return resolution
    width, height = size
    if no_upscale and width * height <= resolution[0] * resolution[1]:
        return floor_to_step(width), floor_to_step(height)
    aspect = width / height
    return min(bucket_sizes(resolution), key=lambda bucket: abs(bucket[0] / bucket[1] - aspect))


@dataclass(frozen=True)
class Fit:
    """How a picture reaches its bucket: scaled to `resized`, then a window of bucket size cut at (left,
    top).
    """

    original: Size
    bucket: Size
    scale: float
    resized: Size
    left: int
    top: int

    @property
    def upscaled(self) -> bool:
        return self.scale > 1

    @property
    def crop_box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the part that is kept, in pixels of the original picture."""
        across, down = self.original[0] / self.resized[0], self.original[1] / self.resized[1]
        right, bottom = self.left + self.bucket[0], self.top + self.bucket[1]
        return self.left * across, self.top * down, right * across, bottom * down

    @property
    def lost_share(self) -> float:
        """Share of the picture's area that the crop cuts away, 0 to 1."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


def fit(original: Size, bucket: Size) -> Fit:
    """Scale so that the bucket is covered, round half up, and centre the window (offsets rounded down)."""
    if original == bucket:
        return Fit(original, bucket, 1.0, original, 0, 0)
    scale = max(bucket[0] / original[0], bucket[1] / original[1])
    resized = (int(original[0] * scale + 0.5), int(original[1] * scale + 0.5))
    return Fit(original, bucket, scale, resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)
