"""Rough pictures of a picture in the making, one file that is replaced, for whoever watches the run.

Knows the colour map and one file. Must not know samplers, and never ends a run: a disk that refuses is
nothing.
"""

import io
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zimage_gui.events import STEP_PICTURE
from zimage_gui.files import temp_path
from zimage_gui.model.latent_rgb import colours

EVERY = 0.25
"""Seconds between two pictures, so that they cost nothing where steps are fast."""


class StepPictures:
    """Writes at most one file each quarter of a second; without a map it writes none."""

    def __init__(self, folder: Path, matrix: Tensor | None) -> None:
        self.path = folder / STEP_PICTURE
        self._matrix = matrix
        self._next = time.monotonic()

    def show(self, latents_BCHW: Tensor) -> None:
        """The pictures of a batch side by side, one pixel per latent."""
        now = time.monotonic()
        if self._matrix is None or now < self._next:
            return
        self._next = now + EVERY
        row = torch.cat([colours(latent, self._matrix) for latent in latents_BCHW], dim=1)
        buffer = io.BytesIO()
        Image.fromarray(row.numpy()).save(buffer, "PNG", compress_level=1)
        temp = temp_path(self.path)
        with suppress(OSError):  # no fsync: the next one is a moment away
            temp.write_bytes(buffer.getvalue())
            os.replace(temp, self.path)

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
