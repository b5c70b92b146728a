"""The picture in the making: its rough picture of the last step, and a button that skips it.

Knows run folders and HTML. The engine replaces one small file at each step; nothing else is read.
"""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

from zimage_gui.events import SKIP_FILE, STEP_PICTURE
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import button, escape
from zimage_gui.ui.live import Look

_LARGEST = 1 << 20
"""Bytes; a step's picture has one pixel per latent and is far smaller."""


def making_look(desk: Desk) -> Look:
    """What is being made now; nothing while no picture is."""
    for state in desk.of_command("generate"):
        file = state.folder / STEP_PICTURE
        if state.state != "running" or not file.is_file():
            continue
        try:
            stamp, content = file.stat().st_mtime_ns, file.read_bytes()
        except OSError:  # it was finished just now
            continue
        if len(content) <= _LARGEST:
            return Look((state.folder.name, stamp), partial(_card, state.folder.name, content))
    return Look("", str)


def _card(run: str, content: bytes) -> str:
    source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    skip = button("Skip this picture", "skip", run=run, title="Leave it within one step and begin the next")
    return (
        f'<div class="zg-making"><img src="{source}" alt="{escape("The picture in the making, roughly")}">'
        f'<div><span class="zg-muted">In the making, roughly</span>{skip}</div></div>'
    )


def ask_to_skip(folder: Path) -> None:
    """The picture in hand is left within one step; the run goes on with the next."""
    (folder / SKIP_FILE).touch()
