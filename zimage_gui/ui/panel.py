"""The panel that watches one run of a tab: which run, its state, curves, pictures and log, and what can be
done.

Knows `Live` parts and `run_html`. Reads run folders through the desk and never waits: everything shown comes
from files, so a reloaded page, a second browser and a restarted window show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from zimage_gui.jobs.launch import kill, terminate
from zimage_gui.jobs.reader import RunView
from zimage_gui.jobs.state import RunState
from zimage_gui.ui import run_html
from zimage_gui.ui.actions import Action
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import escape
from zimage_gui.ui.live import Live, Look, text_look

MOST_CHOICES = 60


class JobPanel:
    """Watches the runs of some commands. `parts` says what is drawn besides state and log: curves, samples.

    reuse: the tab can take a run's settings over and resume it. look: it can look into what a run wrote.
    """

    def __init__(
        self,
        desk: Desk,
        commands: tuple[str, ...],
        parts: tuple[str, ...],
        empty: str,
        *,
        reuse: bool = True,
        look: bool = False,
    ) -> None:
        self.desk = desk
        self.commands = commands
        self.parts = parts
        self.empty = empty
        self.reuse = reuse
        self.look = look

    def build(self, live: Live, name: str) -> None:
        self.choice = live.part(name, "run", lambda run: text_look(self._choices(name, run)))
        empty = f'<p class="zg-empty">{self.empty}</p>'
        self.status = live.part(name, "status", lambda run: self._look(run, self._status), empty)
        if "curves" in self.parts:
            live.part(name, "curves", lambda run: self._look(run, self._curves))
        if "samples" in self.parts:
            with gr.Accordion("Pictures during training", open=True):
                live.part(name, "samples", lambda run: self._look(run, self._samples), run_html.NO_SAMPLES)
        with gr.Accordion("Log", open=False):
            live.part(name, "log", lambda run: self._look(run, self._log))

    def _look(self, run: str, part: Callable[[RunView], Look]) -> Look | None:
        states = self.desk.of_command(*self.commands)
        state = next((one for one in states if one.folder.name == run), _first(states))
        if state is None:
            return None
        look = part(self.desk.readers.of(state.folder).poll())
        return Look((state.folder.name, look.mark), look.draw)

    def _choices(self, name: str, run: str) -> str:
        """The list of runs to watch; nothing while there is only one."""
        states = self.desk.of_command(*self.commands)[:MOST_CHOICES]
        if len(states) < 2:
            return ""
        first = '<option value="">the running one, or the newest</option>'
        options = [first, *(_choice(state, run) for state in states)]
        return (
            f'<label class="zg-watched">Watched run <select data-choice="{name}">'
            f"{''.join(options)}</select></label>"
        )

    # ---- parts ------------------------------------------------------------------------------------------

    def _status(self, view: RunView) -> Look:
        state = view.state
        if state is None:
            return Look("gone", lambda: run_html.status(view, reuse=self.reuse, look=self.look))
        # A living run is drawn again at every heartbeat, so that its clock goes on between steps.
        beat = None if state.ended else round(state.status.heartbeat or 0)
        return Look(
            (view.version, state.state, beat, bool(state.silent)),
            lambda: run_html.status(view, reuse=self.reuse, look=self.look),
        )

    def _curves(self, view: RunView) -> Look:
        return Look((len(view.curves.steps), view.version // 2), lambda: run_html.curves(view))

    def _samples(self, view: RunView) -> Look:
        return Look(len(view.samples), lambda: run_html.samples(view, self.desk.pictures))

    def _log(self, view: RunView) -> Look:
        file = view.folder / "console.log"
        size = file.stat().st_size if file.is_file() else 0
        return Look(size, lambda: run_html.log(self.desk.readers.of(view.folder).log()))


def _first(states: Sequence[RunState]) -> RunState | None:
    """The run to watch when none was chosen: the one that computes, else the newest. Of several that were
    put into the queue at once, the newest is the one that begins last."""
    running = [state for state in states if state.state in ("running", "stopping")]
    return next(iter([*running, *states]), None)


def _choice(state: RunState, run: str) -> str:
    chosen = " selected" if state.folder.name == run else ""
    words = f"{run_html.title(state)} ({run_html.WORDS[state.state][0].split(':')[0]})"
    return f'<option value="{escape(state.folder.name)}"{chosen}>{escape(words)}</option>'


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
