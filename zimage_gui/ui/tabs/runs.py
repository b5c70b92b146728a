"""The Runs tab: the queue and every run of the runs folder, whoever started it.

Knows gradio and the desk. Shows, reorders, stops; changes no run's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import QUIET, action_of, active_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import button, duration, escape
from zimage_gui.ui.panel import stop_action

MOST_ROWS = 100


@dataclass
class Shown:
    """What a page's table shows already."""

    text: str = ""


class RunsPanel:
    """The part that the clock refreshes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.table = active_html(elem_id="runs-table")
        self.shown = gr.State(Shown())

    def inputs(self) -> set[Any]:
        return {self.shown}

    def outputs(self) -> list[Any]:
        return [self.table, self.shown]

    def refresh(self, data: dict[Any, Any]) -> dict[Any, Any]:
        shown: Shown = data[self.shown]
        text = runs_table(self.desk)
        if text == shown.text:
            return {}
        shown.text = text
        return {self.table: text, self.shown: shown}


class RunsTab:
    name = "runs"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.panel = RunsPanel(desk)

    def build(self, page: gr.Blocks) -> None:
        self.panel.build()
        self.panel.table.act(self._act, None, self.panel.table, **QUIET)

    def _act(self, event: gr.EventData) -> str:
        action = action_of(event)
        folder = self.desk.folder_of(action.get("run"))
        waiting = self.desk.queue.waiting()
        if action.name in ("up", "down") and folder in waiting:
            self.desk.queue.move(folder, waiting.index(folder) + (-1 if action.name == "up" else 1))
        else:
            stop_action(self.desk, action)
        return runs_table(self.desk)


def runs_table(desk: Desk) -> str:
    """Waiting runs in their order, then all others, newest first."""
    waiting = desk.queue.waiting()
    states = desk.states()
    if not states:
        return '<p class="zg-empty">No run yet. What you start here or in a terminal is listed here.</p>'
    by_folder = {state.folder: state for state in states}
    queued = [by_folder[folder] for folder in waiting if folder in by_folder]
    others = [state for state in states if state not in queued][:MOST_ROWS]
    rows = [_row(state, place, len(queued)) for place, state in enumerate(queued)] + [
        _row(state, None, 0) for state in others
    ]
    head = "<tr><th>State</th><th>Name</th><th>Command</th><th>Begun</th><th>Progress</th><th>Took</th><th>Result</th><th></th></tr>"
    where = f'<p class="zg-muted">Folder: {escape(str(desk.runs_dir))}</p>'
    return f'{where}<div class="zg-scroll"><table class="zg-table">{head}{"".join(rows)}</table></div>'


def _row(state: RunState, place: int | None, waiting: int) -> str:
    status = state.status
    made = run_html.title(state).rpartition(" · ")[2]
    steps = f"{status.step:,} / {status.total_steps:,}" if status.total_steps else ""
    took = duration(status.ended - status.created) if status.ended else ""
    result = (
        escape(state.message.splitlines()[0][:160])
        if state.state == "failed" and state.message
        else _result(status.results)
    )
    cells = [
        run_html.state_badge(state), f"<b>{escape(status.name)}</b>", escape(status.command), made, steps, took, result,
        _buttons(state, place, waiting),
    ]  # fmt: skip
    return f'<tr title="{escape(state.folder.name)}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _result(results: tuple[str, ...]) -> str:
    if not results:
        return ""
    last = results[-1].replace("\\", "/").rpartition("/")[2]
    return escape(last) + (f" and {len(results) - 1} more" if len(results) > 1 else "")


def _buttons(state: RunState, place: int | None, waiting: int) -> str:
    run = state.folder.name
    if place is not None:
        up = button("Up", "up", run=run) if place else ""
        down = button("Down", "down", run=run) if place < waiting - 1 else ""
        return up + down + button("Remove", "dequeue", run=run)
    if not state.ended:
        return (
            run_html.stop_buttons(state) if state.state != "queued" else button("Remove", "dequeue", run=run)
        )
    return button("Copy folder path", "copy", copy=str(state.folder))
