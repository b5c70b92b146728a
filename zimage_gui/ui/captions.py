"""Captions edited in the window: which files a page may write, and how they are saved.

Knows caption files. A page names a picture by a token that was given out with its card, never by a path; only
pictures of a scan that someone asked for have tokens. A caption that changed on disk meanwhile is not
overwritten.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.dataset.captions import MAX_CAPTION_BYTES, read_caption
from zimage_gui.files import atomic_write

MOST_TOKENS = 5000


@dataclass(frozen=True)
class Saved:
    """The answer to a save: `text` is what the file holds now."""

    ok: bool
    message: str
    text: str


class CaptionFiles:
    """Tokens of the caption files that were shown; the oldest are forgotten."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._tokens: dict[Path, str] = {}
        self._guard = threading.Lock()

    def token(self, file: Path) -> str:
        """The token of a caption file (which need not exist yet)."""
        with self._guard:
            token = self._tokens.get(file)
            if token is None:
                token = secrets.token_urlsafe(12)
                self._tokens[file], self._files[token] = token, file
            self._files.move_to_end(token)
            while len(self._files) > MOST_TOKENS:
                _, forgotten = self._files.popitem(last=False)
                del self._tokens[forgotten]
            return token

    def save(self, token: str, before: str, text: str) -> Saved:
        """Write the caption whole or not at all; `before` is what the page had read."""
        with self._guard:
            file = self._files.get(token)
        if file is None:
            return Saved(False, "This page is too old: look at the folder again.", before)
        wanted = text.replace("\r\n", "\n").strip()
        if len(wanted.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
            return Saved(False, "Longer than 1 MB, which is no caption.", before)
        now = read_caption(file).text if file.exists() else ""
        if now not in (before.strip(), wanted):
            return Saved(
                False,
                "Changed on disk meanwhile. The text here was not saved; the file's text is shown.",
                now,
            )
        try:
            atomic_write(file, wanted.encode("utf-8", "replace"))
        except OSError as error:
            return Saved(False, f"Not saved: {error.strerror or error}.", before)
        return Saved(True, "saved", wanted)
