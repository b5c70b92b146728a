"""The frame around all tabs: the line of readings, the running job with Stop, and the queue.

Knows the desk and live parts. Nothing here waits for a run.
"""

from __future__ import annotations

import gradio as gr

from zimage_gui.jobs.readings import Readings
from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import action_of, on_act
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import badge, escape, meter
from zimage_gui.ui.live import Live, text_look
from zimage_gui.ui.panel import stop_action


class Frame:
    """The line above the tabs."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self, live: Live) -> None:
        line = live.part("zg", "head", lambda run: text_look(head(self.desk)), head(self.desk))
        on_act([line], self._act, None, None)

    def _act(self, event: gr.EventData) -> None:
        stop_action(self.desk, action_of(event))


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
    parts.append(meter("CPU", f"{now.cpu_percent:.0f} %", now.cpu_percent / 100, full_is_bad=False))
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
        words = run_html.progress(view, state, short=True)[1]
        name = f"<b>{escape(state.status.name or state.status.command)}</b>"
        tone = "warn" if state.state == "stopping" else "busy"
        word = "stopping" if state.state == "stopping" else state.status.command
        parts.append(f"{badge(word, tone)}{name}<span>{escape(words)}</span>{run_html.stop_buttons(state)}")
    return f'<span class="zg-job">{"".join(parts)}{_waiting(waiting)}</span>'


def _waiting(count: int) -> str:
    return badge(f"{count} in the queue") if count else ""
