"""The page that trains: a form from the schema on the left, what to do and the watched run on the right.

Knows gradio, the form and the panel. LoRA training and finetuning are the same page over two schemas; nothing
here runs a training, it only puts a validated config into the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.schema import Options, options_of
from zimage_gui.config.toml_io import dump
from zimage_gui.config.training import FinetuneConfig, TrainingConfig, TrainLoraConfig
from zimage_gui.config.trust import foreign_classes
from zimage_gui.errors import UserError, raise_if_any
from zimage_gui.events import Failed, follow
from zimage_gui.jobs.folder import EVENTS_FILE
from zimage_gui.ui.actions import QUIET, Action, action_of, active_html, on_act
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Form, Updates, guarded, merged
from zimage_gui.ui.html import escape, notice
from zimage_gui.ui.live import Live
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, run_config_file, stop_action
from zimage_gui.ui.preset_bar import PresetBar
from zimage_gui.ui.presets import Presets
from zimage_gui.ui.summary import before_training, quick_problems
from zimage_gui.ui.tabs.generate import GenerateTab
from zimage_gui.ui.trust import question
from zimage_gui.ui.values import Raw, to_widget

# other spellings, and secrets: these reach no file, so no run that is started here; the environment has them
HIDDEN = (
    "runs_dir", "network_args", "dynamo_backend", "resume_from_huggingface", "wandb_api_key",
    "huggingface_token",
)  # fmt: skip
OPEN = ("models", "dataset", "lora", "length", "optimizer", "saving", "previews")


class TrainingTab:
    """One training page. `commands` are those whose runs it watches."""

    def __init__(
        self, desk: Desk, live: Live, config_class: type[TrainingConfig], commands: tuple[str, ...]
    ) -> None:
        self.desk = desk
        self.live = live
        self.name = config_class.command
        self.form = Form(config_class, self.name, desk.drafts, hidden=HIDDEN)
        self.bar = PresetBar(self.form, Presets(desk.presets_dir, config_class))
        empty = (
            "No run yet. Fill in the form and press Train: what it does is shown here, live.<br>"
            "The first start fills in the built-in demo. To train a real model, see the tab <b>Models</b>: "
            "it names the files and the pages they are on."
        )
        self.panel = JobPanel(desk, commands, ("curves", "samples"), empty)

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self.bar.build()
                self.form.build(open_sections=OPEN)
            with gr.Column(scale=6, min_width=480, elem_classes=["zg-watch"]):
                self._buttons()
                self.form.finish()
                self.panel.build(self.live, self.name)
        self._wire(page)

    def _buttons(self) -> None:
        with gr.Row(elem_classes=["zg-actions"]):
            self.train = gr.Button("Train", variant="primary", elem_id=f"{self.name}-start", scale=2)
            self.check = gr.Button("Check", elem_id=f"{self.name}-check")
            self.command = gr.Button("Command line", elem_id=f"{self.name}-command")
        self.answer = active_html(elem_id=f"{self.name}-answer")
        self.trusted = gr.State(frozenset())
        self.shown_command = gr.Code(
            visible=False, language="shell", label="The same from a terminal", interactive=False, max_lines=16
        )

    def _wire(self, page: Page) -> None:
        form = self.form
        form.wire(page)
        self.bar.wire(page)
        inputs = {*form.inputs(), self.trusted}
        answers = [form.problems, self.answer, self.trusted]
        silent: Updates = {self.answer: "", self.shown_command: gr.update(visible=False)}
        answers.append(self.shown_command)
        for button, action in (
            (self.train, self._train), (self.check, self._check), (self.command, self._command)
        ):  # fmt: skip
            button.click(guarded(form, partial(_after, silent, action), silent), inputs, answers, **QUIET)
        filled = [*form.outputs(), self.answer, self.trusted]
        on_act([self.panel.status, self.answer], self._act, inputs, filled)

    def wire_generate(self, generate: GenerateTab, tabs: gr.Tabs) -> None:
        """`Use in Generate` puts a saved LoRA into the first LoRA row of the other tab, a finetuned model in
        the place of its transformer, and goes there."""
        adapts = issubclass(self.form.config_class, TrainLoraConfig)
        take = generate.take_lora if adapts else generate.take_model

        def use(event: gr.EventData) -> Updates:
            action = action_of(event)
            path = Path(action.get("place"))
            if action.name != "generate" or path.suffix != ".safetensors" or not path.is_file():
                return {tabs: gr.update()}
            return {tabs: gr.update(selected=generate.name), **take(path)}

        outputs = [tabs, *generate.form.outputs()]
        self.panel.status.act(use, None, outputs, **QUIET)

    # ---- handlers ---------------------------------------------------------------------------------------

    def _train(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data, runs_dir=self.desk.runs_dir)
        return self._start(config, data[self.trusted])

    def _start(self, config: Options, trusted: frozenset[str]) -> Updates:
        """Queue the run, unless its files will not do or it would import code that nobody has agreed to
        yet."""
        assert isinstance(config, TrainingConfig)
        raise_if_any(quick_problems(config))
        unknown = [name for name in foreign_classes(config).values() if name not in trusted]
        if unknown:
            return {self.answer: question(unknown)}
        name = str(getattr(config, "output_name", ""))
        folder = self.desk.submit(config, name)
        waiting = self.desk.queue.waiting()
        words = (
            "Started."
            if folder not in waiting
            else f"In the queue at place {waiting.index(folder) + 1}: runs compute one after the other."
        )
        # has the page watch the new run; without its name a second answer would be no change of the page
        sign = f'<span data-newest="{self.name}" data-run="{escape(folder.name)}"></span>'
        noted = self.form.noted(config)
        return merged(noted, {self.answer: notice(escape(words) + sign, "good", raw=True)})

    def _check(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data, runs_dir=self.desk.runs_dir)
        assert isinstance(config, TrainingConfig)
        card = before_training(config, self.desk.meter.read())
        return merged(self.form.noted(config), {self.answer: card})

    def _command(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data)
        lines = (
            f"{self.form.command_line(data)}\n\n# or as a file: python -m zimage_gui "
            f"{self.name} run.toml\n{dump(config)}"
        )
        return {self.shown_command: gr.update(value=lines, visible=True)}

    def _act(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        action = action_of(event)
        if stop_action(self.desk, action):
            return {self.answer: gr.update()}
        return guarded(self.form, lambda inputs: self._do(inputs, action), {self.answer: ""})(data)

    def _do(self, data: Mapping[Any, Any], action: Action) -> Updates:
        if action.name == "trust":
            agreed: frozenset[str] = data[self.trusted] | set(action.get("names").split("|"))
            return {**self._train({**data, self.trusted: agreed}), self.trusted: agreed}
        file = run_config_file(self.desk, action)
        if file is None:
            return {self.answer: gr.update()}
        contents = self.bar.presets.read(file)
        if action.name == "settings":
            return self._take(contents, f"The settings of {file.parent.name} are in the form now.")
        if action.name == "less":
            words = "The settings that need less memory are in the form now; press Train."
            return self._take({**contents, **self._advised(file.parent)}, words)
        if action.name == "further":
            words = (
                "Its settings are in the form, with its last state in Resume from: raise Steps, press Train."
            )
            return self._take({**contents, "resume": action.get("place")}, words)
        if action.name == "resume":
            return self._resume(contents, Path(action.get("place")), data[self.trusted])
        return {self.answer: gr.update()}

    def _advised(self, run: Path) -> dict[str, Raw]:
        """What a run that ended for lack of memory said would need less."""
        known = options_of(self.form.config_class)
        failed = [event for event in follow(run / EVENTS_FILE)[0] if isinstance(event, Failed)]
        settings = failed[-1].settings if failed else {}
        return {name: to_widget(known[name], value) for name, value in settings.items() if name in known}

    def _take(self, contents: Mapping[str, Raw], words: str) -> Updates:
        self.form.keep(contents, rest=True)
        return {**self.form.put(contents, rest=True), self.answer: notice(words, "good")}

    def _resume(self, contents: dict[str, Raw], state: Path, trusted: frozenset[str]) -> Updates:
        """Go on with the run's own settings from one of its states; the form shows what is running."""
        if not state.is_dir():
            raise UserError.one("resume", state, "is no state folder any more", "Choose another state")
        contents["resume"] = str(state)
        config = self.form.config_of(contents, runs_dir=self.desk.runs_dir)
        words = f"Going on from {state}."
        return merged(self._take({**contents, "resume": ""}, words), self._start(config, trusted))


def _after(
    silent: Updates, action: Callable[[Mapping[Any, Any]], Updates], data: Mapping[Any, Any]
) -> Updates:
    """What a button answers, in the place of what the button before it did."""
    return merged(silent, action(data))


def lora_tab(desk: Desk, live: Live) -> TrainingTab:
    return TrainingTab(desk, live, TrainLoraConfig, ("train-lora", "train"))


def finetune_tab(desk: Desk, live: Live) -> TrainingTab:
    return TrainingTab(desk, live, FinetuneConfig, ("finetune",))
