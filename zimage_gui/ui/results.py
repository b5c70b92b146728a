"""What Generate has made: waiting requests, the newest sheet, two pictures under a wipe slider, the gallery.

Knows gradio, the history and run folders. Knows nothing of the form: settings and seeds of pictures are taken
over by the tab.
"""

from __future__ import annotations

import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.events import Sample
from zimage_gui.jobs.folder import CONFIG_FILE
from zimage_gui.jobs.resident import COMMAND, pending
from zimage_gui.jobs.state import RunState
from zimage_gui.ui.actions import Action, action_of, active_html, on_act, script
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.gallery import BAR, gallery_look
from zimage_gui.ui.history import History
from zimage_gui.ui.html import button, escape, notice, plural
from zimage_gui.ui.live import Live, Look, text_look
from zimage_gui.ui.pictures import url

SHEET = re.compile(r"_grid_[0-9a-f]{12}\.png$")
PAIR = re.compile(r"_(without|with)-LoRA_[0-9a-f]{12}\.png$")
MOST_PAIRS = 20
_SLIDER_HEIGHT = 560

Updates = dict[Any, Any]


class Results:
    """Build it in the right column; `blocks` are the parts whose presses the tab hears too."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.history = History(desk)
        self._prompts: dict[Path, str] = {}

    def build(self, live: Live, name: str) -> None:
        self.waiting = live.part(name, "waiting", lambda run: text_look(self._waiting()))
        self.pair = live.part(name, "pair", lambda run: self._pair_look())
        self.slider = gr.ImageSlider(
            visible=False, interactive=False, type="filepath", height=_SLIDER_HEIGHT,
            elem_id=f"{name}-slider", label="Drag the line to compare",
        )  # fmt: skip
        self.note = active_html(elem_id=f"{name}-note")
        self.sheet = live.part(name, "sheet", lambda run: self._sheet_look())
        with gr.Column(elem_id=f"{name}-gallery"):
            gr.HTML(BAR, js_on_load=script("gallery.js"), apply_default_css=False, elem_id="gallery-bar")
            self.list = live.part(
                "gallery", "list", lambda text: gallery_look(self.history, self.desk.pictures, text)
            )
        self.first = gr.State("")
        self.blocks = [self.waiting, self.pair, self.sheet, self.list]
        outputs = [self.slider, self.note, self.first]
        on_act([self.pair, self.list, self.note], self._act, self.first, outputs)

    # ---- presses ----------------------------------------------------------------------------------------

    def _act(self, first: str, event: gr.EventData) -> Updates:
        action = action_of(event)
        try:
            return self._done(first, action)
        except OSError as error:
            words = f"{action.get('place')} cannot be changed: {error.strerror or error}."
            return {self.note: notice(words, "bad")}

    def _done(self, first: str, action: Action) -> Updates:
        place = action.get("place")
        if action.name in ("favourite", "plain"):
            self.history.favour(place, action.name == "favourite")
        elif action.name == "delete" and self.history.delete(place):
            return {self.note: notice(f"{Path(place).name} is deleted.")}
        elif action.name == "wipe":
            return self._wipe(first, place)
        elif action.name == "pair":
            return self._show(action.get("without"), place, "Without LoRA  |  with LoRA")
        elif action.name == "close":
            return {self.slider: gr.update(value=None, visible=False), self.note: "", self.first: ""}
        return {self.note: gr.update()}

    def _wipe(self, first: str, place: str) -> Updates:
        """The first press remembers a picture, the second lays the other over it."""
        if not first or first == place or self.history.at(first) is None:
            words = f"Now press Wipe under the picture to compare {Path(place).name} with."
            return {self.first: place, self.note: notice(words)}
        return {**self._show(first, place), self.first: ""}

    def _show(self, left: str, right: str, label: str = "") -> Updates:
        made = [self.history.at(place) for place in (left, right)]
        shown = [self.desk.pictures.published(one.path) for one in made if one is not None]
        if len(shown) < 2 or None in shown:
            return {self.note: notice("One of the two pictures is gone.", "warn")}
        update = gr.update(
            value=(str(shown[0]), str(shown[1])),
            visible=True,
            label=label or f"{Path(left).name}  |  {Path(right).name}",
        )
        return {self.slider: update, self.note: button("Close the slider", "close")}

    # ---- parts ------------------------------------------------------------------------------------------

    def _waiting(self) -> str:
        """The requests whose turn has not come, each with a button that takes it back."""
        rows = [
            f"<tr><td>{number}</td><td>{escape(self._prompt(folder))}</td>"
            f"<td>{button('Remove', 'dequeue', run=folder.name)}</td></tr>"
            for number, folder in enumerate(pending(self.desk.runs_dir), 1)
        ]
        if not rows:
            return ""
        head = f"<caption>{plural(len(rows), 'request')} waiting</caption>"
        return (
            f'<div class="zg-scroll"><table class="zg-table zg-waiting">{head}{"".join(rows)}</table></div>'
        )

    def _prompt(self, folder: Path) -> str:
        if folder not in self._prompts:
            try:
                tables = tomllib.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
                found = tables.get("prompt", {})
                self._prompts[folder] = str(found.get("prompt") or found.get("from_file") or folder.name)
            except (OSError, ValueError, AttributeError):
                return folder.name
        return self._prompts[folder]

    def _samples(self, wanted: re.Pattern[str]) -> tuple[RunState, list[Sample]] | None:
        """The newest request, when it has made pictures with such names."""
        state = next((one for one in self.desk.of_command(COMMAND) if one.state != "queued"), None)
        if state is None:
            return None
        samples = self.desk.readers.of(state.folder).poll().samples
        found = [sample for sample in samples if wanted.search(sample.path)]
        return (state, found) if found else None

    def _pair_look(self) -> Look:
        found = self._samples(PAIR)
        if found is None:
            return Look("", str)
        state, samples = found
        without = [one for one in samples if "_without-LoRA_" in one.path]
        pairs = list(zip(without, (one for one in samples if "_with-LoRA_" in one.path), strict=False))
        return Look((state.folder.name, len(pairs)), partial(_pairs, state, pairs[:MOST_PAIRS]))

    def _sheet_look(self) -> Look:
        found = self._samples(SHEET)
        if found is None:
            return Look("", str)
        state, samples = found
        return Look((state.folder.name, state.state, len(samples)), partial(self._sheets, state, samples))

    def _sheets(self, state: RunState, samples: list[Sample]) -> str:
        parts = []
        for sample in samples[-MOST_PAIRS:]:
            path = state.folder / sample.path
            whole = self.desk.pictures.published(path)
            if whole is not None:
                words = escape(f"Sheet: {sample.prompt}")
                parts.append(
                    f'<img class="zg-thumb zg-sheet" src="{url(whole)}" data-full="{url(whole)}" '
                    f'alt="{words}" title="{escape(str(path))}">'
                )
        more = ""
        if state.state in ("stopped", "failed"):
            title = "Make the pictures that are missing; those that are there stay"
            more = button("Go on with this grid", "goon", run=state.folder.name, title=title, tone="good")
        return f'<div class="zg-samples zg-sheets">{"".join(parts)}</div>{more}'


def _pairs(state: RunState, pairs: list[tuple[Sample, Sample]]) -> str:
    """One button for each pair; the first presses itself, so that the slider shows what was just made."""
    buttons = []
    for number, (without, made) in enumerate(pairs):
        places = {"without": str(state.folder / without.path), "place": str(state.folder / made.path)}
        once = {"once": made.path} if not number else {}
        words = f"Without | with LoRA, seed {made.seed}"
        buttons.append(button(words, "pair", title=made.prompt, **places, **once))
    return f'<div class="zg-chips">{"".join(buttons)}</div>' if buttons else ""
