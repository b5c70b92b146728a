"""Thumbnails and published pictures: the only files the window serves to a browser.

Knows Pillow and one cache folder. A picture of a dataset, a sample or a result is never served from where it
lies: a small WebP of it (or, on a click, a copy of it) is put under a name made from its contents into the
cache folder, and that folder is the only one gradio may read. Knows nothing of runs, forms or models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import quote

from PIL import Image

from zimage_gui.engine.dataset.images import EXTENSIONS, PictureProblem, read_pixels
from zimage_gui.files import atomic_write

THUMB_EDGE = 384  # px of the longer side: sharp on a 2x screen in a 190 px cell
MOST_CACHED = 20_000  # thumbnails kept over restarts, about 300 MB


class PictureCache:
    """A folder of thumbnails and published copies, named by path, size and time of the original."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)

    def thumbnail(self, picture: Path, edge: int = THUMB_EDGE) -> Path | None:
        """The cached WebP of `picture`, made when missing; None when the file is no readable picture, or the
        cache has no room."""
        target = self._target(picture, f"{edge}", ".webp")
        if target is None or target.is_file():
            return target
        try:
            small = Image.fromarray(read_pixels(picture)[1])
        except PictureProblem:
            return None
        small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        return _written(target, lambda file: small.save(file, "WEBP", quality=82, method=2))

    def published(self, picture: Path) -> Path | None:
        """A copy (a hard link where the disk allows it) of the whole picture inside the cache folder."""
        target = self._target(picture, "full", picture.suffix.lower())
        if target is None or target.is_file() or picture.suffix.lower() not in EXTENSIONS:
            return target if target is not None and target.is_file() else None
        try:
            os.link(picture, target)
            return target
        except FileExistsError:  # another page was faster
            return target
        except OSError:
            return _copied(picture, target)

    def forget(self, picture: Path) -> None:
        """Remove what was made of a picture, so that deleting it frees its room."""
        for kind, suffix in ((f"{THUMB_EDGE}", ".webp"), ("full", picture.suffix.lower())):
            target = self._target(picture, kind, suffix)
            if target is not None:
                target.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the oldest files over the limit; called once at the window's start."""
        files = sorted(
            (entry for entry in os.scandir(self.folder) if entry.is_file()), key=lambda e: e.stat().st_mtime
        )
        for entry in files[: max(len(files) - MOST_CACHED, 0)]:
            Path(entry.path).unlink(missing_ok=True)

    def _target(self, picture: Path, kind: str, suffix: str) -> Path | None:
        try:
            stat = picture.stat()
        except OSError:
            return None
        key = f"{picture.resolve()}|{stat.st_mtime_ns}|{stat.st_size}|{kind}"
        return self.folder / (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32] + suffix)


def _copied(picture: Path, target: Path) -> Path | None:
    try:
        with open(picture, "rb") as source:
            return _written(target, lambda file: shutil.copyfileobj(source, file))
    except OSError:
        return None


def _written(target: Path, write: Callable[[IO[bytes]], object]) -> Path | None:
    try:
        return atomic_write(target, write)
    except OSError:
        return None


def url(served: Path) -> str:
    """Where a browser finds a file of the cache folder (relative, so that it works behind a proxy path)."""
    return "gradio_api/file=" + quote(served.as_posix(), safe="/:")
