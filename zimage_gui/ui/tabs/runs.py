"""The Runs tab: the queue and every run of the runs folder, whoever started it.

Knows gradio and the desk. Shows, reorders, stops; changes no run's files.
"""

from __future__ import annotations

import gradio as gr

from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import action_of, on_act
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import button, duration, escape
from zimage_gui.ui.live import Live, text_look
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import stop_action

MOST_ROWS = 100


class RunsTab:
    name = "runs"

    def __init__(self, desk: Desk, live: Live) -> None:
        self.desk = desk
        self.live = live

    def build(self, page: Page) -> None:
        table = self.live.part(self.name, "table", lambda run: text_look(runs_table(self.desk)))
        on_act([table], self._act, None, None)

    def _act(self, event: gr.EventData) -> None:
        action = action_of(event)
        folder = self.desk.folder_of(action.get("run"))
        waiting = self.desk.queue.waiting()
        if action.name in ("up", "down") and folder in waiting:
            self.desk.queue.move(folder, waiting.index(folder) + (-1 if action.name == "up" else 1))
        else:
            stop_action(self.desk, action)


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
    head = (
        "<tr><th>State</th><th>Name</th><th>Command</th><th>Begun</th><th>Progress</th>"
        "<th>Took</th><th>Result</th><th></th></tr>"
    )
    where = f'<p class="zg-muted">Folder: {escape(str(desk.runs_dir))}</p>'
    table = f'<table class="zg-table zg-runs">{head}{"".join(rows)}</table>'
    return f'{where}<div class="zg-scroll">{table}</div>'


def _row(state: RunState, place: int | None, waiting: int) -> str:
    status = state.status
    made = run_html.title(state).rpartition(" · ")[2]
    steps = f"{status.step:,} / {status.total_steps:,}" if status.total_steps else ""
    took = duration(status.ended - status.begun) if status.ended else ""
    result = (
        escape(state.message.splitlines()[0][:160])
        if state.state == "failed" and state.message
        else _result(status.results)
    )
    cells = [
        run_html.state_badge(state),
        f"<b>{escape(status.name)}</b>",
        escape(status.command),
        made,
        steps,
        took,
        result,
        _buttons(state, place, waiting),
    ]
    return f'<tr title="{escape(state.folder.name)}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _result(results: tuple[str, ...]) -> str:
    if not results:
        return ""
    # a training's last word is its state's folder, and what a person looks for is the LoRA
    files = [one for one in results if one.endswith(".safetensors")] or results
    last = files[-1].replace("\\", "/").rpartition("/")[2]
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
