"""Parts of the page that follow files: drawn again when what they show has changed, on every open page.

Knows one small protocol: the page says which parts it shows and at which mark, the answer holds the parts
whose mark has moved. It goes through a server function of one hidden HTML block and not through gradio
events, because an event walks the whole page once per output on every tick. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_gui.ui.actions import active_html, script

Draw = Callable[[], str]


@dataclass(frozen=True)
class Look:
    """The state of a part: `mark` differs exactly when `draw` would give another picture."""

    mark: object
    draw: Draw


LookAt = Callable[[str], Look | None]
"""From the run chosen on the page ("" for the newest) to what there is to see; None when there is nothing."""


class Live:
    """All live parts of a page. Create parts while building, then `build` once at the end."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[str, LookAt]] = {}

    def part(self, group: str, name: str, look: LookAt, first: str = "") -> gr.HTML:
        """An HTML block that follows `look`; parts of one group share the run chosen for the group."""
        key = f"{group}:{name}"
        self._parts[key] = (group, look)
        return active_html(f'<div data-live="{key}">{first}</div>', elem_id=f"{group}-{name}")

    def build(self) -> gr.HTML:
        """The block whose script asks for what has changed."""

        def poll(asked: Any) -> list[dict[str, str]]:
            return self.changes(asked)

        return gr.HTML(
            "",
            js_on_load=script("live.js"),
            server_functions=[poll],
            elem_id="zg-live",
            elem_classes=["zg-hidden"],
        )

    def changes(self, asked: Any) -> list[dict[str, str]]:
        """The parts that moved, from what a page shows: {"marks": {part: mark}, "chosen": {group: run}}."""
        marks = _texts(asked, "marks")
        chosen = _texts(asked, "chosen")
        found = []
        for key, mark in marks.items():
            if key not in self._parts:
                continue
            group, look = self._parts[key]
            try:
                seen = look(chosen.get(group, ""))
                if seen is not None and (now := repr(seen.mark)) != mark:
                    found.append({"part": key, "mark": now, "html": seen.draw()})
            except OSError as error:  # a disk that hiccups must not blank the other parts
                print(f"{key} cannot be shown: {error}")
        return found


def text_look(text: str) -> Look:
    """A part that is cheap to draw: its text is its own mark."""
    return Look(hash(text), lambda: text)


def _texts(asked: Any, name: str) -> dict[str, str]:
    found = asked.get(name) if isinstance(asked, dict) else None
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}
