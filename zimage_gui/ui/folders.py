"""The server-side folder browser: which folders there are, and how many pictures each holds.

Knows directories. A native file dialog would open on the machine of the server, which is another one over SSH
or in a container, so the window lists folders itself. Browsing starts from a few roots and never leaves them;
a path typed by hand is the user's own choice and is not limited.
"""

from __future__ import annotations

import os
import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.dataset.images import EXTENSIONS
from zimage_gui.files import is_folder

MOST_ENTRIES = 20_000  # a listing looks at no more entries of one folder
MOST_FOLDERS = 500


@dataclass(frozen=True)
class FolderEntry:
    """One line of the browser; `pictures` counts direct children only and stops at `MOST_ENTRIES`."""

    path: Path
    pictures: int
    files: int


@dataclass(frozen=True)
class Listing:
    """What stands in one folder: `parent` is None at a root, `problem` is a sentence or empty."""

    path: Path
    parent: Path | None
    folders: tuple[FolderEntry, ...]
    files: tuple[Path, ...]
    pictures: int
    problem: str = ""


def default_roots(working: Path) -> tuple[Path, ...]:
    """The working folder, the home folder and every disk; only those that exist, most useful first."""
    found = [working, Path.home()]
    if sys.platform == "win32":
        found += [Path(f"{letter}:\\") for letter in string.ascii_uppercase if os.path.exists(f"{letter}:\\")]
    else:
        for parent in ("/mnt", "/media", "/Volumes", "/run/media", "/data", "/workspace"):
            found.append(Path(parent))
    unique: dict[Path, None] = {}
    for path in found:
        if path.is_dir():
            unique.setdefault(path.resolve(), None)
    return tuple(unique)


def inside(path: Path, roots: tuple[Path, ...]) -> bool:
    """Whether the resolved path (links followed) is one of the roots or below one."""
    resolved = path.resolve()
    return any(resolved == root or resolved.is_relative_to(root) for root in roots)


def list_folder(path: Path, roots: tuple[Path, ...], suffixes: tuple[str, ...] = ()) -> Listing:
    """Sub-folders (hidden ones left out) and the files that end in `suffixes`, sorted as people sort
    names."""
    if not inside(path, roots):
        path = roots[0]
    resolved = path.resolve()
    parent = resolved.parent if resolved.parent != resolved and inside(resolved.parent, roots) else None
    try:
        folders, files, pictures = _read(resolved, suffixes)
    except OSError as error:
        return Listing(resolved, parent, (), (), 0, f"{resolved} cannot be read: {error.strerror}.")
    problem = "" if len(folders) <= MOST_FOLDERS else f"Only the first {MOST_FOLDERS} folders are shown."
    entries = tuple(FolderEntry(one, *_count(one)) for one in folders[:MOST_FOLDERS])
    return Listing(resolved, parent, entries, tuple(files), pictures, problem)


def _read(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path], int]:
    folders, files, pictures = [], [], 0
    with os.scandir(folder) as entries:
        for index, entry in enumerate(entries):
            if index >= MOST_ENTRIES:
                break
            if entry.name.startswith((".", "$")):
                continue
            if is_folder(entry):
                folders.append(Path(entry.path))
                continue
            extension = os.path.splitext(entry.name)[1].lower()
            pictures += extension in EXTENSIONS
            if extension in suffixes:
                files.append(Path(entry.path))
    return sorted(folders, key=natural), sorted(files, key=natural), pictures


def _count(folder: Path) -> tuple[int, int]:
    pictures = files = 0
    try:
        with os.scandir(folder) as entries:
            for index, entry in enumerate(entries):
                if index >= 2000:  # enough for the badge; a big folder must not slow its parent's listing
                    break
                files += 1
                pictures += os.path.splitext(entry.name)[1].lower() in EXTENSIONS
    except OSError:
        return 0, 0
    return pictures, files


def natural(path: Path) -> tuple[tuple[int, str], ...]:
    """`img2` before `img10`: runs of digits compare as numbers (by length, then digits)."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (-1, part) for part in parts
    )
