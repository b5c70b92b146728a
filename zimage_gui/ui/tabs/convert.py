"""The Convert tab: look into a file, then do with it what makes sense for such a file.

Knows gradio and the forms of the converting commands. Looking reads the header only; doing is a run of its
own, beside whatever trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.registry import COMMANDS
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.errors import UserError, raise_if_any
from zimage_gui.files import free_name
from zimage_gui.ui.actions import PRIVATE, QUIET, action_of, on_act, plain_html
from zimage_gui.ui.comfy_copy import ComfyCopy
from zimage_gui.ui.convert_actions import ACTIONS, FileAction, actions_for, output_name
from zimage_gui.ui.convert_checks import early_problems
from zimage_gui.ui.convert_words import plan_words
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.file_report import report_html
from zimage_gui.ui.form import Form, Updates, beside, browse_button, guarded, merged
from zimage_gui.ui.html import notice
from zimage_gui.ui.live import Live
from zimage_gui.ui.lora_stack import FILES, STRENGTHS, LoraForm, known_loras
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, stop_action
from zimage_gui.ui.preset_bar import all_settings
from zimage_gui.ui.values import defaults

DROPPED = [".safetensors", ".bpk", ".gguf", ".png", ".toml", ".json"]
# Options of `merge` that belong to its other half.
_OTHER_HALF = {
    "merge-model": ("rank", "energy", "lora_format"),
    "merge-loras": ("dit", "layout", "prefix", "max_shard_size"),
}  # fmt: skip
_FIRST = "Look into a file first: what fits it appears here."
_NO_PARTS = "Nothing can be done with such a file here."
_PARTS = "It holds several things: look into the one that is meant."
# Options that change what is told beforehand of the result.
_TELLING = ("dtype", "layout", "target", "reverse", "rank", "overwrite")


class ConvertTab:
    name = "convert"

    def __init__(self, desk: Desk, live: Live) -> None:
        self.desk = desk
        self.live = live
        self.forms: dict[str, Form] = {action.key: self._form(action) for action in ACTIONS}
        commands = tuple(dict.fromkeys(action.command for action in ACTIONS))
        self.panel = JobPanel(desk, commands, (), "Nothing has been converted yet.", reuse=False, look=True)
        self.copy = ComfyCopy(desk)

    def _form(self, action: FileAction) -> Form:
        lists_loras = action.command == "merge"
        hidden = () if action.takes in (FILES, "path") else (action.takes,)
        kind: type[Form] = LoraForm if lists_loras else Form
        return kind(
            COMMANDS[action.command],
            action.key,
            self.desk.drafts,
            hidden=(*hidden, *_OTHER_HALF.get(action.key, ())),
        )

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self._looking()
            with gr.Column(scale=6, min_width=480):
                self._doing()
        self._wire(page)

    def _looking(self) -> None:
        self.file = gr.Textbox(
            label="File",
            info="Any model, LoRA, cache, picture or folder. Of models only the header is read.",
            elem_id="convert-file",
            elem_classes=["zg-field"],
            interactive=True,
            buttons=[browse_button("convert-file")],
        )
        with gr.Row(elem_classes=["zg-actions"]):
            self.inspect = gr.Button("Look into it", variant="primary", elem_id="convert-inspect")
            self.known = gr.Dropdown(
                [],
                value=None,
                label="or one of your LoRAs",
                interactive=True,
                scale=2,
                elem_id="convert-known",
            )
        self.drop = gr.File(
            label="or drop a file",
            file_types=DROPPED,
            type="filepath",
            height=130,
            elem_id="convert-drop",
        )
        self.copy.build()
        self.report = plain_html(elem_id="convert-report")

    def _doing(self) -> None:
        self.choice = gr.Radio(
            [],
            label="What to do with it",
            info=_FIRST,
            interactive=True,
            elem_id="convert-choice",
        )
        self.groups: dict[str, Any] = {}
        self.plans: dict[str, Any] = {}
        for action in ACTIONS:
            form = self.forms[action.key]
            with gr.Column(visible=False, elem_id=f"convert-do-{action.key}") as group:
                form.finish()
                if isinstance(form, LoraForm):
                    form.build_rows(self.desk)
                form.build(open_sections=("models", "lora", "output", "metadata"))
                self.plans[action.key] = plain_html(elem_id=f"convert-plan-{action.key}")
            self.groups[action.key] = group
        with gr.Row(elem_classes=["zg-actions"], visible=False) as self.buttons:
            self.start = gr.Button("Start", variant="primary", elem_id="convert-start")
            self.suggest = gr.Button("Suggest an output name", elem_id="convert-suggest")
            all_settings("convert-advanced")
        self.answer = plain_html(elem_id="convert-answer")
        self.panel.build(self.live, self.name)

    # ---- events -----------------------------------------------------------------------------------------

    def _wire(self, page: Page) -> None:
        for form in self.forms.values():
            form.wire(page)
        page.first(lambda: {self.known: gr.update(choices=known_loras(self.desk))})
        shown = [self.report, self.file, self.choice, self.copy.box, self.copy.said, *self._changed()]
        looking: dict[str, Any] = {"outputs": shown, "show_progress_on": self.report, **PRIVATE}
        gr.on([self.inspect.click, self.file.submit], self._look, {self.file}, **looking)
        self.known.select(lambda data: self._look({self.file: data[self.known]}), {self.known}, **looking)
        dropped = self.drop.upload(
            lambda data: self._look({self.file: data[self.drop]}), {self.drop}, **looking
        )
        dropped.then(lambda: None, None, self.drop, **QUIET)  # makes room for the next file
        base = {self.file, self.choice}
        everything = {*base, *(part for form in self.forms.values() for part in form.inputs())}
        self.choice.input(self._choose, everything, self._changed(), **QUIET)
        self.start.click(self._start, everything, self._changed(), **QUIET)
        self.suggest.click(self._suggest, everything, self._changed(), **QUIET)
        for action in ACTIONS:
            form = self.forms[action.key]
            told = [form.fields[name] for name in (*_TELLING, action.output) if name in form.fields]
            for field in told:
                inputs = {self.file, *form.inputs()}
                field.change(partial(self._tell, action), inputs, self.plans[action.key], **QUIET)
        self.copy.wire(page, self.file)
        on_act([self.panel.status], self._act, {self.file}, shown)

    def _changed(self) -> list[Any]:
        """Everything that the handlers of the right side may change."""
        forms = [part for form in self.forms.values() for part in form.outputs()]
        return [*forms, *self.groups.values(), *self.plans.values(), self.buttons, self.suggest, self.answer]

    # ---- handlers ---------------------------------------------------------------------------------------

    def _look(self, data: Mapping[Any, Any]) -> Updates:
        path = self._path(data)
        if not path:
            return {self.report: notice("Give the path of a file first.", "warn")}
        try:
            found = self._inspected(path)
        except UserError as error:
            words = " ".join(map(beside, error.problems))
            return {self.report: notice(words, "bad"), self.file: path, **self._nothing()}
        fitting = actions_for(found)
        updates: Updates = {
            self.report: report_html(found),
            self.file: path,
            self.choice: gr.update(
                choices=[(one.words, one.key) for one in fitting],
                value=fitting[0].key if fitting else None,
                info="" if fitting else _NO_PARTS if not found.parts else _PARTS,
            ),
            self.copy.box: gr.update(visible=found.kind in self.copy.kinds),
            self.copy.said: "",
        }
        if not fitting:
            return {**updates, **self._hidden()}
        raw = self.desk.drafts.load(fitting[0].key)
        return merged(updates, self._open(fitting[0], found, raw))

    def _nothing(self) -> Updates:
        return {
            self.choice: gr.update(choices=[], value=None, info=_FIRST),
            self.copy.box: gr.update(visible=False),
            **self._hidden(),
        }

    def _hidden(self) -> Updates:
        groups: Updates = {group: gr.update(visible=False) for group in self.groups.values()}
        return {**groups, self.buttons: gr.update(visible=False), self.answer: ""}

    def _path(self, data: Mapping[Any, Any]) -> str:
        """What stands in the file's field; Windows copies paths with quotation marks."""
        return str(data.get(self.file) or "").strip().strip("\"'")

    def _inspected(self, path: str) -> FileReport:
        return inspect(self.desk.working / Path(path).expanduser())

    def _choose(self, data: Mapping[Any, Any]) -> Updates:
        action, found = self._asked(data)
        if action is None or found is None:
            return self._hidden()
        return self._open(action, found, self.forms[action.key].raw(data))

    def _open(self, action: FileAction, found: FileReport, raw: Mapping[str, Any]) -> Updates:
        """Shows the action's form with the file and a free output name in it."""
        form = self.forms[action.key]
        source = str(found.path)
        anew = action.anew and self.desk.drafts.load(action.key).get(action.takes) != source
        raw = {**(defaults(form.config_class) if anew else raw), "overwrite": False}
        contents = {**self._names(action, found, raw), "overwrite": False}
        if action.takes == FILES:
            contents |= {FILES: source, STRENGTHS: "1"}
        elif action.takes == "path":
            contents |= {"path": source}
        form.keep({**contents, action.takes: source}, rest=anew)
        return merged(
            self._hidden(),
            form.put(contents, rest=anew),
            {self.groups[action.key]: gr.update(visible=True), self.buttons: gr.update(visible=True)},
            {self.suggest: gr.update(visible=bool(action.output))},
            {self.plans[action.key]: plan_words(action, found, {**raw, **contents}, self.desk.working)},
        )

    def _names(self, action: FileAction, found: FileReport, raw: Mapping[str, Any]) -> dict[str, Any]:
        if not action.output:
            return {}
        beside = found.path.parent
        if beside.is_relative_to(self.desk.drafts.folder.parent):
            beside = self.desk.working / "converted"  # a dropped file lies among the window's own
        return {action.output: str(free_name(output_name(action, found.path, raw, beside)))}

    def _asked(self, data: Mapping[Any, Any]) -> tuple[FileAction | None, FileReport | None]:
        key = data.get(self.choice)
        action = next((one for one in ACTIONS if one.key == key), None)
        return action, self._found(data)

    def _found(self, data: Mapping[Any, Any]) -> FileReport | None:
        path = self._path(data)
        try:
            return self._inspected(path) if path else None
        except UserError:
            return None

    def _tell(self, action: FileAction, data: Mapping[Any, Any]) -> Any:
        """The plan anew after a field of the action's form was changed."""
        found = self._found(data)
        if found is None:
            return ""
        return plan_words(action, found, self.forms[action.key].raw(data), self.desk.working)

    def _suggest(self, data: Mapping[Any, Any]) -> Updates:
        action, found = self._asked(data)
        if action is None or found is None:
            return {self.answer: notice("Look into a file first.", "warn")}
        form = self.forms[action.key]
        contents = self._names(action, found, form.raw(data))
        form.keep(contents)
        return form.put(contents)

    def _start(self, data: Mapping[Any, Any]) -> Updates:
        action, _ = self._asked(data)
        if action is None or not self._path(data):
            return {self.answer: notice("Look into a file and choose what to do with it.", "warn")}
        silent = {self.answer: ""}
        return guarded(self.forms[action.key], lambda given: self._begin(action, given), silent)(data)

    def _begin(self, action: FileAction, data: Mapping[Any, Any]) -> Updates:
        source = self._inspected(self._path(data)).path
        fixed = {} if action.takes in (FILES, "path") else {action.takes: source}
        config = self.forms[action.key].read(data, **fixed)
        raise_if_any(early_problems(config, action.output))
        output = getattr(config, action.output, None) if action.output else None
        folder = self.desk.run_beside(config, Path(output or source).stem)
        sign = f'<span data-newest="{self.name}" data-run="{folder.name}"></span>'
        words = sign + notice("Started; how it goes is shown below.", "good")
        return merged(self.forms[action.key].noted(config), {self.answer: words})

    def _act(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        action = action_of(event)
        folder = self.desk.folder_of(action.get("run"))
        place = action.get("place")
        states = [state for state in self.desk.states() if state.folder == folder]
        if action.name == "look" and any(place in state.status.results for state in states):
            return self._look({self.file: place})
        stop_action(self.desk, action)
        return {self.answer: gr.update()}
