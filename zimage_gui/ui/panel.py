"""The panel that watches one run of a tab: which run, its state, curves, pictures and log, and what can be
done.

Knows gradio and `run_html`. Reads run folders through the desk and never waits: everything shown comes from
files, so a reloaded page, a second browser and a restarted window show the same. Starts nothing itself but
stops and resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.jobs.launch import kill, terminate
from zimage_gui.jobs.reader import RunView
from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import Action, active_html, plain_html
from zimage_gui.ui.desk import Desk

Updates = dict[Any, Any]
NEWEST = ""  # value of the choice "the newest run"
MOST_CHOICES = 60


@dataclass
class Seen:
    """What one page already shows, so that a tick sends only what has changed."""

    choices: tuple[str, ...] = ()
    chosen: str = NEWEST
    folder: str = ""
    marks: dict[str, object] = field(default_factory=dict)


class JobPanel:
    """Watches the runs of some commands. `parts` says what is drawn: curves, samples, log."""

    def __init__(self, desk: Desk, commands: tuple[str, ...], parts: tuple[str, ...], empty: str) -> None:
        self.desk = desk
        self.commands = commands
        self.parts = parts
        self.empty = empty

    def build(self, name: str) -> None:
        self.choice = gr.Dropdown(
            [("newest run", NEWEST)],
            value=NEWEST,
            label="Watched run",
            interactive=True,
            elem_id=f"{name}-run",
            filterable=True,
        )
        self.status = active_html(f'<p class="zg-empty">{self.empty}</p>', elem_id=f"{name}-status")
        self.bodies: dict[str, Any] = {}
        if "curves" in self.parts:
            self.bodies["curves"] = plain_html(elem_id=f"{name}-curves")
        if "samples" in self.parts:
            with gr.Accordion("Pictures during training", open=True):
                self.bodies["samples"] = plain_html(elem_id=f"{name}-samples")
        with gr.Accordion("Log", open=False):
            self.bodies["log"] = plain_html(elem_id=f"{name}-log")
        self.seen = gr.State(Seen())

    def outputs(self) -> list[Any]:
        return [self.choice, self.status, *self.bodies.values(), self.seen]

    def inputs(self) -> set[Any]:
        return {self.choice, self.seen}

    # ---- showing ----------------------------------------------------------------------------------------

    def refresh(self, data: dict[Any, Any]) -> Updates:
        """Updates of everything that changed since this page's last tick; empty when nothing did."""
        seen: Seen = data[self.seen]
        states = self.desk.of_command(*self.commands)
        chosen = data[self.choice] or NEWEST
        updates = self._choices(states, chosen, seen)
        state = next((one for one in states if one.folder.name == chosen), states[0] if states else None)
        if state is None:
            return updates
        view = self.desk.readers.of(state.folder).poll()
        if seen.folder != state.folder.name:
            seen.folder, seen.marks = state.folder.name, {}
        for name, mark in self._marks(view).items():
            if seen.marks.get(name) != mark:
                seen.marks[name] = mark
                updates |= self._draw(name, view)
        return updates | {self.seen: seen}

    def _choices(self, states: list[RunState], chosen: str, seen: Seen) -> Updates:
        newest = tuple(f"{state.folder.name}|{state.state}" for state in states[:MOST_CHOICES])
        if newest == seen.choices:
            return {}
        seen.choices = newest
        words = [
            (f"{run_html.title(state)} ({run_html.WORDS[state.state][0].split(':')[0]})", state.folder.name)
            for state in states
        ]
        kept = chosen if any(state.folder.name == chosen for state in states) else NEWEST
        return {
            self.choice: gr.update(choices=[("newest run", NEWEST), *words[:MOST_CHOICES]], value=kept),
            self.seen: seen,
        }

    def _marks(self, view: RunView) -> dict[str, object]:
        """Per part, a value that differs exactly when the part must be drawn again."""
        state = view.state
        if state is None:
            return {"status": None}
        alive = None if state.ended else round(state.status.heartbeat or 0)
        marks: dict[str, object] = {
            "status": (view.version, state.state, alive, len(view.warnings), bool(state.silent))
        }
        if "curves" in self.bodies:
            marks["curves"] = len(view.curves.steps)
        if "samples" in self.bodies:
            marks["samples"] = len(view.samples)
        log = view.folder / "console.log"
        marks["log"] = log.stat().st_size if log.is_file() else 0
        return marks

    def _draw(self, name: str, view: RunView) -> Updates:
        if name == "status":
            return {self.status: run_html.status(view)}
        if name == "curves":
            return {self.bodies[name]: run_html.curves(view)}
        if name == "samples":
            return {self.bodies[name]: run_html.samples(view, self.desk.pictures)}
        return {self.bodies[name]: run_html.log(self.desk.readers.of(view.folder).log())}


def stop_action(desk: Desk, action: Action) -> bool:
    """Do one of the stopping actions; False when the action is none of them or names no run."""
    folder = desk.folder_of(action.get("run"))
    if folder is None:
        return False
    grades: dict[str, Callable[[Path], object]] = {
        "stop": desk.stop, "terminate": terminate, "kill": kill, "dequeue": desk.dequeue
    }  # fmt: skip
    if action.name not in grades:
        return False
    grades[action.name](folder)
    words = {
        "stop": "Stopping: the step is finished and everything is saved first.",
        "terminate": "The run was told to leave at once.",
        "kill": "The process was killed.",
        "dequeue": "Removed from the queue.",
    }
    gr.Info(words[action.name])
    return True


def run_config_file(desk: Desk, action: Action) -> Path | None:
    """The settings file of the run that an action names."""
    folder = desk.folder_of(action.get("run"))
    file = folder / "config.toml" if folder is not None else None
    return file if file is not None and file.is_file() else None
