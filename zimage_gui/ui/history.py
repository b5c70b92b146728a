"""Every generated picture that is still on the disk: listed, searched, marked as favourite, deleted.

Knows the folders that runs of `generate` wrote into, file names and PNG headers. Knows nothing of gradio. A
file is listed, and can be deleted, only when it lies directly in one of these folders and is a picture that a
run has made; nothing else is ever touched. Favourites are a small file in the pictures' own folder, so that
they survive this window and move with the folder.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_gui.engine.png_head import head_texts
from zimage_gui.engine.png_settings import settings_in
from zimage_gui.files import atomic_write
from zimage_gui.jobs.folder import CONFIG_FILE
from zimage_gui.jobs.lock import exclusive
from zimage_gui.jobs.state import RunState
from zimage_gui.ui.desk import WINDOW_FOLDER, Desk

FAVOURITES = ".favourites.json"
SAMPLES = "samples"
SEARCH_SECONDS = 0.4
"""A search reads headers for so long at a time and goes on at the next look."""
_OURS = re.compile(r"\d{8}-\d{6}-\d{3}_\d+_.*\.png$")
_SETTLED = 2_000_000_000
"""Nanoseconds after which a folder's time tells that nothing was added since: clocks of disks are coarse."""
_LOCK_WAIT = 5.0
_SAVE_PATH = re.compile(r"^(?:save_path|output)\s*=", re.MULTILINE)


@dataclass(frozen=True)
class Made:
    """A picture on the disk; time in nanoseconds since 1970."""

    path: Path
    time: int
    size: int
    favourite: bool = False


@dataclass(frozen=True)
class Found:
    """What a search has found so far: pictures newest first; `looked` of `total` headers are read."""

    pictures: list[Made]
    looked: int
    total: int


@dataclass
class _Folder:
    """One folder as it was at `time`; `whole`: every PNG in it is ours, else only those named as ours."""

    time: int
    pictures: list[Made]


class History:
    """The pictures of one runs folder. Safe for several threads."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._guard = threading.RLock()
        self._folders: dict[Path, _Folder] = {}
        self._places: dict[str, tuple[Path, ...]] = {}
        self._named: set[Path] = set()
        self._all: list[Made] = []
        self._by_path: dict[str, Made] = {}
        self._settings: dict[Path, tuple[int, dict[str, Any], str]] = {}

    # ---- the list ---------------------------------------------------------------------------------------

    def pictures(self) -> list[Made]:
        """All of them, newest first. Costs one look per folder, and a listing of those that changed."""
        with self._guard:
            changed = False
            folders = self._known_folders()
            for folder, whole in folders.items():
                changed |= self._look(folder, whole)
            for gone in self._folders.keys() - folders.keys():
                del self._folders[gone]
                changed = True
            if changed:
                merged = [made for known in self._folders.values() for made in known.pictures]
                self._all = sorted(merged, key=lambda made: (made.time, made.path.name), reverse=True)
                self._by_path = {str(made.path): made for made in self._all}
            return self._all

    def at(self, place: str) -> Made | None:
        """The picture of a path that came from a page; None unless it is one of the list."""
        with self._guard:
            self.pictures()
            return self._by_path.get(place)

    def _known_folders(self) -> dict[Path, bool]:
        """Folder -> whether every picture in it was generated."""
        folders: dict[Path, bool] = {}
        for state in self.desk.of_command("generate"):
            own = state.folder / SAMPLES
            folders[own] = True
            for place in self._places_of(state):
                folders.setdefault(place, False)
        return folders

    def _places_of(self, state: RunState) -> tuple[Path, ...]:
        """Where else a run wrote: told by its results, or by its settings while it has none."""
        key = f"{state.folder.name}/{len(state.status.results)}"
        if key not in self._places:
            results = [Path(result) for result in state.status.results]
            self._named |= {path for path in results if not _OURS.match(path.name)}
            found = [path.parent for path in results] or _places_in(state.folder / CONFIG_FILE)
            self._places[key] = tuple(dict.fromkeys(path for path in found if path != state.folder / SAMPLES))
        return self._places[key]

    def _look(self, folder: Path, whole: bool) -> bool:
        """Whether the folder's pictures are others than at the last look."""
        known = self._folders.get(folder)
        try:
            stamp = folder.stat().st_mtime_ns
        except OSError:
            stamp = 0
        if known is not None and known.time == stamp:
            return False
        pictures = list(self._listed(folder, whole)) if stamp else []
        settled = time.time_ns() - stamp > _SETTLED
        self._folders[folder] = _Folder(stamp if settled else -1, pictures)
        return known is None or known.pictures != pictures

    def _listed(self, folder: Path, whole: bool) -> Iterable[Made]:
        favourites = read_favourites(folder)
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return
        for entry in entries:
            if not entry.name.lower().endswith(".png") or entry.name.startswith("."):
                continue
            path = folder / entry.name
            if not whole and not _OURS.match(entry.name) and path not in self._named:
                continue
            try:
                if not entry.is_file(follow_symlinks=False):
                    continue
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            yield Made(path, stat.st_mtime_ns, stat.st_size, entry.name in favourites)

    # ---- search -----------------------------------------------------------------------------------------

    def search(self, query: str = "", favourites: bool = False, seconds: float = SEARCH_SECONDS) -> Found:
        """Pictures whose name, prompt and settings hold every word of the query, upper and lower case alike.

        Headers are read once each and for at most about so many seconds; ask again for the rest.
        """
        words = query.casefold().split()
        with self._guard:
            asked = [made for made in self.pictures() if made.favourite or not favourites]
            if not words:
                return Found(asked, len(asked), len(asked))
            end = time.monotonic() + seconds
            found: list[Made] = []
            looked = 0
            for made in asked:
                known = self._settings.get(made.path)
                if (known is None or known[0] != made.time) and time.monotonic() > end:
                    continue
                looked += 1
                text = self._read(made)[1]
                if all(word in text for word in words):
                    found.append(made)
            return Found(found, looked, len(asked))

    def settings(self, made: Made) -> dict[str, Any]:
        """The settings in a picture's header; empty when it carries none."""
        with self._guard:
            return self._read(made)[0]

    def _read(self, made: Made) -> tuple[dict[str, Any], str]:
        known = self._settings.get(made.path)
        if known is None or known[0] != made.time:
            found = settings_in(head_texts(made.path))
            words = [made.path.name, *(f"{name}={_plain(value)}" for name, value in found.items())]
            known = self._settings[made.path] = (made.time, found, "\n".join(words).casefold())
        return known[1], known[2]

    # ---- changes ----------------------------------------------------------------------------------------

    def favour(self, place: str, on: bool) -> bool:
        """Marks a picture of the list, or takes the mark back; False when it is none. Raises OSError."""
        made = self.at(place)
        if made is None:
            return False
        self._mark(made.path, on)
        return True

    def delete(self, place: str) -> bool:
        """Removes a picture of the list from the disk; False when it is none. Raises OSError."""
        made = self.at(place)
        if made is None:
            return False
        self.desk.pictures.forget(made.path)
        made.path.unlink(missing_ok=True)
        if made.favourite:
            self._mark(made.path, False)
        with self._guard:
            self._settings.pop(made.path, None)
            self._folders.pop(made.path.parent, None)
        return True

    def _mark(self, path: Path, on: bool) -> None:
        # Two windows may do this at once: read, change and write under one lock.
        with exclusive(self.desk.runs_dir / WINDOW_FOLDER / "favourites.lock", _LOCK_WAIT):
            names = read_favourites(path.parent)
            names = names | {path.name} if on else names - {path.name}
            text = json.dumps({"favourites": sorted(names)}, ensure_ascii=False, indent=1)
            atomic_write(path.parent / FAVOURITES, text.encode("utf-8", "surrogateescape"))
        with self._guard:
            self._folders.pop(path.parent, None)


def read_favourites(folder: Path) -> frozenset[str]:
    """Names of the marked pictures of a folder; none when there is no such file or it is damaged."""
    try:
        found = json.loads((folder / FAVOURITES).read_text(encoding="utf-8", errors="surrogateescape"))
        return frozenset(name for name in found["favourites"] if isinstance(name, str))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def _places_in(config_file: Path) -> list[Path]:
    """The folders that a run's settings name for its pictures. Read as text: there may be thousands."""
    try:
        text = config_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    if _SAVE_PATH.search(text) is None:
        return []
    try:
        output = tomllib.loads(text).get("output", {})
    except ValueError:
        return []
    found = [Path(output["save_path"])] if isinstance(output.get("save_path"), str) else []
    return [*found, Path(output["output"]).parent] if isinstance(output.get("output"), str) else found


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
