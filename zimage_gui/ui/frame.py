"""The frame around all tabs: the line of readings, the running job with Stop, and the clock that refreshes
everything.

Knows gradio, the desk and the tabs. One timer per page asks every panel for what has changed; nothing here
waits for a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gradio as gr

from zimage_gui.jobs.readings import Readings
from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import QUIET, action_of, active_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import badge, escape, meter
from zimage_gui.ui.panel import stop_action

TICK_SECONDS = 1.5


class Refreshing(Protocol):
    """What the clock needs of a panel."""

    def inputs(self) -> set[Any]: ...
    def outputs(self) -> list[Any]: ...
    def refresh(self, data: dict[Any, Any]) -> dict[Any, Any]: ...


class Frame:
    """Build the head first, the tabs after it, then `wire` with the panels of the tabs."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.head = active_html(head(self.desk), elem_id="zg-head")
        self.timer = gr.Timer(TICK_SECONDS)

    def wire(self, page: gr.Blocks, panels: list[Refreshing]) -> None:
        inputs: set[Any] = set().union(*(panel.inputs() for panel in panels)) if panels else set()
        outputs = [self.head, *(part for panel in panels for part in panel.outputs())]

        def tick(data: Mapping[Any, Any]) -> dict[Any, Any]:
            updates: dict[Any, Any] = {self.head: head(self.desk)}
            for panel in panels:
                updates |= panel.refresh(dict(data))
            return updates

        gr.on([page.load, self.timer.tick], tick, inputs, outputs, concurrency_limit=None, **QUIET)

        def act(event: gr.EventData) -> str:
            stop_action(self.desk, action_of(event))
            return head(self.desk)

        self.head.act(act, None, self.head, **QUIET)


def head(desk: Desk) -> str:
    """The whole line as HTML."""
    running = desk.states(lambda state: state.state in ("running", "stopping"))
    waiting = desk.queue.waiting()
    title = '<span class="zg-title">Z-Image <i>studio</i></span>'
    return (
        f'<div class="zg-head">{title}{readings(desk.meter.read())}{job(desk, running, len(waiting))}</div>'
    )


def readings(now: Readings) -> str:
    """Graphics cards, memory, processor, disk; what cannot be read is left out."""
    parts = []
    for gpu in now.gpus:
        details = [gpu.name, f"{gpu.free_gb:.1f} GB free"]
        if gpu.use_percent is not None:
            details.append(f"{gpu.use_percent} % busy")
        if gpu.temperature is not None:
            details.append(f"{gpu.temperature} °C")
        words = f"{gpu.used_gb:.1f} / {gpu.total_gb:.0f} GB"
        name = gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        parts.append(meter(f"{name} VRAM", words, gpu.used_gb / gpu.total_gb, " · ".join(details)))
    if not now.gpus:
        parts.append(meter("GPU", "none: computing on the CPU", None, "No NVIDIA card or driver was found"))
    parts.append(
        meter("RAM", f"{now.ram_used_gb:.1f} / {now.ram_total_gb:.0f} GB", now.ram_used_gb / now.ram_total_gb)
    )
    parts.append(meter("CPU", f"{now.cpu_percent:.0f} %", now.cpu_percent / 100))
    if now.disk_free_gb is not None:
        parts.append(
            meter("Disk", f"{now.disk_free_gb:.0f} GB free", None, "Free space where the runs are kept")
        )
    return f'<span class="zg-readings">{"".join(parts)}</span>'


def job(desk: Desk, running: list[RunState], waiting: int) -> str:
    """The running jobs in one line each, with Stop."""
    if not running:
        idle = badge("idle")
        return f'<span class="zg-job">{idle}{_waiting(waiting)}</span>'
    parts = []
    for state in running[:2]:
        view = desk.readers.of(state.folder).poll()
        words = run_html.progress(view, state)[1]
        name = f"<b>{escape(state.status.name or state.status.command)}</b>"
        tone = "warn" if state.state == "stopping" else "busy"
        stopping = (
            badge("stopping", "warn") if state.state == "stopping" else badge(state.status.command, tone)
        )
        parts.append(f"{stopping}{name}<span>{escape(words)}</span>{run_html.stop_buttons(state)}")
    return f'<span class="zg-job">{"".join(parts)}{_waiting(waiting)}</span>'


def _waiting(count: int) -> str:
    return badge(f"{count} in the queue") if count else ""
