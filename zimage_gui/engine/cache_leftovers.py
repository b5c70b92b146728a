"""Cache files of pictures that are gone: which may be deleted and which may belong to another dataset.

Knows names and headers of cache files. Deletes nothing itself, and never imports torch.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.cache_files import (
    ARCHITECTURE,
    MASK_KEY,
    SOURCE,
    TENSOR_KEYS,
    CacheItem,
    Kind,
    OpenedCache,
    opened_cache,
    relative_source,
)
from zimage_gui.engine.dataset.discover import folded_name

# Ours with a variant, which musubi-tuner's patterns pass over.
_LATENT_NAME = re.compile(
    r"^(?P<key>.+)_(?P<width>\d{4,})x(?P<height>\d{4,})_zi(?P<variant>_flip|_mask)?\.safetensors$"
)
_TEXT_NAME = re.compile(r"^(?P<key>.+)_zi_te(?P<variant>_[0-9a-f]{12})?\.safetensors$")


@dataclass(frozen=True)
class Leftovers:
    """Cache files that belong to no picture of the dataset: to be removed, and to be kept because another
    dataset may own them."""

    removable: tuple[Path, ...]
    kept: tuple[Path, ...]


def find_leftovers(items: list[CacheItem], refused: Iterable[Path], kind: Kind) -> Leftovers:
    """Cache files of this kind beside the current ones that no current picture owns.

    Only files with a cache file's name, our architecture and the right tensor key count. Of our own, those
    stay whose picture still exists outside this dataset. Of other programs' files, those stay whose stem a
    refused picture has, and all of them where none belongs to this dataset: the folder may have been named
    by mistake.
    """
    removable: list[Path] = []
    kept: list[Path] = []
    spared = {folded_name(path.stem) for path in refused}
    for folder in sorted({item.picture.source.cache_directory for item in items}):
        mine = [item for item in items if item.picture.source.cache_directory == folder]
        owned = {item.path(kind).name for item in mine}
        sources = {relative_source(item.picture.path, folder) for item in mine}
        candidates = _caches_in(folder, kind)
        at_home = any(path.name in owned and SOURCE not in metadata for path, _, metadata in candidates)
        for path, match, metadata in candidates:
            origin, key = metadata.get(SOURCE), match["key"]
            if path.name in owned or (match["variant"] and origin in sources):
                continue  # a variant may be another run's, even one that trains now
            if origin is not None:
                gone = origin in sources or not (folder / origin).exists()
            else:
                gone = at_home and folded_name(key) not in spared
            (removable if gone else kept).append(path)
    return Leftovers(tuple(removable), tuple(kept))


def _caches_in(folder: Path, kind: Kind) -> list[tuple[Path, re.Match[str], dict[str, str]]]:
    name = _LATENT_NAME if kind is Kind.LATENT else _TEXT_NAME
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = name.match(path.name)
        if match is None or path.is_symlink() or not path.is_file():
            continue
        opened = opened_cache(path, MASK_KEY if match["variant"] == "_mask" else TENSOR_KEYS[kind])
        if isinstance(opened, OpenedCache) and opened.metadata.get("architecture") == ARCHITECTURE:
            found.append((path, match, opened.metadata))
    return found
