"""The pictures of a dataset as they will be trained, resized and cropped, shown instead of encoded.

Knows prepared pictures, PNG files and characters. Must not know models or caches.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from zimage_gui.engine.cache_files import CacheItem
from zimage_gui.engine.cache_run import prepare, stop_if_asked, worker_count
from zimage_gui.engine.dataset.images import PictureProblem, read_pixels
from zimage_gui.engine.dataset.resize import Pixels, resize_and_crop
from zimage_gui.engine.dataset.scan import shown_name
from zimage_gui.engine.dataset.sources import Source
from zimage_gui.events import Note, Run, Stage, Warning

_SHADES = " .:-=+*#%@"
Way = Literal["image", "console", "video"]


def show_pictures(
    sources: tuple[Source, ...], run: Run, way: Way, width: int, most: int | None, workers: int | None
) -> list[Path]:
    """Show at most `most` pictures of each dataset (None: all): as PNG files in the run's folder, or in
    characters, `width` of them in a line. Returns the files."""
    prepared = prepare(sources, run, worker_count(workers))
    folder = run.folder / "resized"
    run.emit(Stage(name="show", text="Showing the pictures as they are trained; nothing is encoded"))
    files = []
    items = list(_first_of_each(prepared.items, most))
    for number, item in enumerate(items, 1):
        stop_if_asked(run, number - 1, len(items), "pictures")
        name = shown_name(item.picture.path)
        try:
            pixels = _pixels(item)
        except (PictureProblem, OSError, ValueError) as error:
            run.emit(Warning(text=f"{name} cannot be shown: {error}"))
            continue
        size = f"{item.picture.bucket[0]}x{item.picture.bucket[1]}"
        if way == "console":
            run.emit(Note(text=f"{name}, {size}:\n{shaded(pixels, width)}"))
        else:
            files.append(folder / f"{number:05}_{item.picture.path.stem}_{size}.png")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(files[-1])
    if files:
        run.emit(Note(text=f"resized pictures are in {folder}"))
    return files


def _first_of_each(items: list[CacheItem], most: int | None) -> Iterator[CacheItem]:
    seen: dict[Source, int] = {}
    for item in items:
        source = item.picture.source
        seen[source] = seen.get(source, 0) + 1
        if most is None or seen[source] <= most:
            yield item


def _pixels(item: CacheItem) -> Pixels:
    _, pixels = read_pixels(item.picture.path)
    return resize_and_crop(pixels, item.picture.fit)


def shaded(pixels: Pixels, width: int) -> str:
    """A picture (H, W, 3) uint8 in characters from dark to bright, which are about twice as high as wide."""
    height = max(1, round(pixels.shape[0] / pixels.shape[1] * width / 2))
    grey = Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.BOX)
    rows = np.asarray(grey).astype(int) * len(_SHADES) // 256
    return "\n".join("".join(_SHADES[value] for value in row) for row in rows.tolist())
