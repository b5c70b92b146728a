"""What is told before a file is converted: where the result goes, how large it is, whether it has room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.ui.convert_actions import FileAction, needed_bytes
from zimage_gui.ui.html import file_size, notice
from zimage_gui.ui.values import Raw


def plan_words(action: FileAction, found: FileReport, raw: Mapping[str, Raw], working: Path) -> str:
    """One line of HTML; empty where nothing is written."""
    name = str(raw.get(action.output) or "").strip().strip("\"'") if action.output else ""
    if not name:
        return ""
    target = working / Path(name).expanduser()
    needed = needed_bytes(action, found, raw)
    free = _free(target.parent)
    size = f", about {file_size(needed)}" if needed is not None else ""
    room = f"; {file_size(free)} free there" if free is not None else ""
    words = f"Writes {target.name} in {target.parent}{size}{room}."
    if os.path.lexists(target):
        then = "it will be replaced." if raw.get("overwrite") else "choose another name, or set Overwrite."
        return notice(f"{words} That name is taken: {then}", "warn")
    if needed is not None and free is not None and needed > free:
        return notice(f"{words} That is too little room.", "warn")
    return notice(words)


def _free(folder: Path) -> int | None:
    """Bytes free where a folder is or would be made."""
    while not folder.is_dir() and folder.parent != folder:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
