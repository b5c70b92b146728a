"""What stands in the forms now, kept in small TOML files so that a refresh, a crash or a restart loses
nothing.

Knows raw field contents and one folder (`runs/.window`). Knows nothing of gradio, nor whether a value is
right: a half-typed number is kept as it is.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path

import tomlkit

from zimage_gui.files import atomic_write
from zimage_gui.ui.values import Raw

LARGEST_DRAFT = 1 << 20


class Drafts:
    """One file per form. Two browsers share them; the last one to type wins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()

    def load(self, name: str) -> dict[str, Raw]:
        """The saved fields of a form; empty when nothing (or nothing readable) was saved."""
        try:
            with open(self.folder / f"{name}.toml", "rb") as file:
                found = tomllib.loads(file.read(LARGEST_DRAFT).decode("utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str | bool)}

    def save(self, name: str, fields: Mapping[str, Raw]) -> None:
        """Replace what is kept of a form. A full disk must not stop a person from typing: it is silently not
        kept."""
        document = tomlkit.document()
        for key, value in fields.items():
            if value is not None:
                document[key] = value
        text = tomlkit.dumps(document)
        with self._guard:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                atomic_write(self.folder / f"{name}.toml", text.encode("utf-8", "replace"))
            except OSError:
                return

    def update(self, name: str, fields: Mapping[str, Raw]) -> None:
        """Change some fields of a form and keep the others."""
        self.save(name, {**self.load(name), **fields})
