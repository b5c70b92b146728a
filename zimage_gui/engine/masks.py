"""Masks of pictures: how much each part counts in the loss. Made once, at the latent's resolution, and cached
beside it.

Knows pictures and cache files. Must not know encoders, losses or torch.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zimage_gui.engine.cache_files import (
    ARCHITECTURE,
    BUCKET,
    DOWNSCALE,
    FORMAT_VERSION,
    IMAGE_HASH,
    MASK_KEY,
    SOURCE,
    CacheItem,
    Verdict,
    bucket_text,
    image_hash,
    judge_data,
    opened_cache,
    relative_source,
    write_cache,
)
from zimage_gui.engine.dataset.discover import file_names, folded_name
from zimage_gui.engine.dataset.images import PictureProblem, extensions, read_alpha, read_pixels
from zimage_gui.engine.dataset.report import count_of, listing
from zimage_gui.engine.dataset.resize import Pixels, resize_and_crop
from zimage_gui.engine.dataset.scan import shown_name
from zimage_gui.errors import Interrupted
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.files import unwritten

_SAME_SHAPE = 0.02
"""A mask may be smaller or larger than its picture, but not of another aspect ratio, rounding aside."""


def make_masks(items: Iterable[CacheItem], run: Run) -> dict[CacheItem, Path]:
    """Bring the masks of these pictures up to date; returns the file of each picture that has one.

    A mask that cannot be used is warned about and its picture counts whole. Raises Interrupted.
    """
    wanted = [item for item in items if _wants(item)]
    if not wanted:
        return {}
    run.emit(Stage(name="masks", text=f"Looking at the masks of {count_of(len(wanted), 'picture')}"))
    named = {folder: _by_stem(folder) for item in wanted if (folder := item.picture.source.mask_directory)}
    found: dict[CacheItem, Path] = {}
    wrong: list[str] = []
    for item in wanted:
        if run.stop_requested():
            raise Interrupted("stopped while making masks; what is done is saved")
        try:
            if _made(item, named):
                found[item] = item.mask_path
        except (PictureProblem, OSError) as problem:
            wrong.append(f"{shown_name(item.picture.path)}: its mask {problem}")
        except ValueError as error:
            wrong.append(f"{shown_name(item.picture.path)}: its mask changed while it was read ({error})")
    if wrong:
        run.emit(Warning(text=f"{len(wrong)} masks cannot be used, so all counts: {listing(wrong)}"))
    run.emit(Note(text=f"{len(found)} of {count_of(len(wanted), 'picture')} have a mask"))
    return found


def _wants(item: CacheItem) -> bool:
    return item.picture.source.alpha_mask or item.picture.source.mask_directory is not None


def _by_stem(folder: Path) -> dict[str, Path]:
    endings = extensions()
    return {
        folded_name(stem): folder / name
        for name in file_names(folder)
        for stem, ending in (os.path.splitext(name),)
        if ending.lower() in endings
    }


def _made(item: CacheItem, named: Mapping[Path, Mapping[str, Path]]) -> bool:
    """Whether the picture has a mask, which is then in place."""
    folder = item.picture.source.mask_directory
    file = item.picture.path if folder is None else named[folder].get(folded_name(item.picture.path.stem))
    if file is None:
        return False
    digest = image_hash(file)
    if _holds(item, digest):
        return True
    levels = read_alpha(file) if folder is None else _levels(file, item)
    if levels is None:
        return False
    mask = _at_latents(levels, item)
    if float(mask.max()) == 0.0:
        raise PictureProblem("is black or transparent everywhere")
    _write(item, mask, digest)
    return True


def _holds(item: CacheItem, digest: str) -> bool:
    found = opened_cache(item.mask_path, MASK_KEY)
    if isinstance(found, Verdict):
        return False
    known = (found.metadata.get(IMAGE_HASH), found.metadata.get(BUCKET))
    if known != (digest, bucket_text(item.picture.bucket)) or found.tensor.shape != item.latent_shape[1:]:
        return False
    return judge_data(item.mask_path, found).state.usable


def _levels(file: Path, item: CacheItem) -> Pixels:
    """A mask's gray levels at the size of its picture."""
    info, pixels = read_pixels(file)
    size, mine = info.size, item.picture.original
    gray = Image.fromarray(pixels).convert("L")
    if abs(size[0] * mine[1] / (size[1] * mine[0]) - 1) > _SAME_SHAPE:
        raise PictureProblem(f"is {size[0]}x{size[1]}, another shape than {mine[0]}x{mine[1]}")
    scaled = gray if size == mine else gray.resize(mine, Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.uint8)


def _at_latents(levels: Pixels, item: CacheItem) -> npt.NDArray[np.float32]:
    """(h, w) in [0, 1]: the mean level of the pixels that each latent stands for."""
    pixels = resize_and_crop(np.repeat(levels[:, :, None], 3, axis=2), item.picture.fit)
    height, width = item.latent_shape[1:]
    blocks = pixels[:, :, 0].reshape(height, DOWNSCALE, width, DOWNSCALE)
    mask: npt.NDArray[np.float32] = (blocks.mean(axis=(1, 3)) / 255).astype("<f4")
    return mask


def _write(item: CacheItem, mask: npt.NDArray[np.float32], digest: str) -> None:
    height, width = mask.shape
    metadata = {
        "architecture": ARCHITECTURE,
        "format_version": FORMAT_VERSION,
        IMAGE_HASH: digest,
        BUCKET: bucket_text(item.picture.bucket),
        SOURCE: relative_source(item.picture.path, item.picture.source.cache_directory),
    }
    key = f"mask_{height}x{width}_float32"
    try:
        write_cache(item.mask_path, key, "F32", (height, width), mask.tobytes(), metadata)
    except OSError as error:  # no fault of the picture
        raise unwritten(error, item.mask_path, "cache_directory") from error
