"""The Convert tab: look into a file, and convert a LoRA between the forms that programs read.

Knows gradio, headers and the `convert-lora` schema. Looking reads the header only; converting is a run of its
own, beside whatever trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.errors import UserError, raise_if_any
from zimage_gui.files import free_name
from zimage_gui.ui.actions import PRIVATE, QUIET, action_of, on_act, plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.file_report import report
from zimage_gui.ui.form import Form, Updates, browse_button, guarded
from zimage_gui.ui.html import notice
from zimage_gui.ui.live import Live
from zimage_gui.ui.lora_stack import known_loras
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, stop_action

ENDINGS = {"other": "universal", "default": "native", "comfy": "comfy"}


class ConvertTab:
    name = "convert"

    def __init__(self, desk: Desk, live: Live) -> None:
        self.desk = desk
        self.live = live
        self.form = Form(ConvertLoraConfig, "convert-lora", desk.drafts)
        self.panel = JobPanel(desk, ("convert-lora",), (), "Nothing has been converted yet.", reuse=False)

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self.file = gr.Textbox(
                    label="File",
                    info=(
                        "A model, LoRA or cache file (.safetensors), or a model folder. Only its "
                        "header is read."
                    ),
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
                    label="or drop a LoRA file",
                    file_types=[".safetensors"],
                    type="filepath",
                    height=140,
                    elem_id="convert-drop",
                )
                self.report = plain_html(elem_id="convert-report")
            with gr.Column(scale=6, min_width=480):
                self._conversion()
        self._wire(page)

    def _conversion(self) -> None:
        self.form.finish()
        self.form.build(open_sections=("models", "output"))
        with gr.Row(elem_classes=["zg-actions"]):
            self.convert = gr.Button("Convert", variant="primary", elem_id="convert-start")
            self.suggest = gr.Button("Suggest an output name", elem_id="convert-suggest")
        self.answer = plain_html(elem_id="convert-answer")
        self.panel.build(self.live, self.name)

    def _wire(self, page: Page) -> None:
        form = self.form
        form.wire(page)
        outputs = [form.fields["output"], form.problems, self.answer]
        looked = [self.report, self.file, form.fields["input"]]
        page.first(lambda: {self.known: gr.update(choices=known_loras(self.desk))})
        gr.on(
            [self.inspect.click, self.file.submit],
            self._look,
            self.file,
            looked,
            show_progress_on=self.report,
            **PRIVATE,
        )
        self.known.select(self._look, self.known, looked, show_progress_on=self.report, **PRIVATE)
        self.drop.upload(self._look, self.drop, looked, show_progress_on=self.report, **PRIVATE)
        self.convert.click(guarded(form, self._convert, {self.answer: ""}), form.inputs(), outputs, **QUIET)
        self.suggest.click(guarded(form, self._suggest), form.inputs(), outputs, **QUIET)
        on_act([self.panel.status], self._act, None, None)

    # ---- handlers ---------------------------------------------------------------------------------------

    def _look(self, text: str | None) -> tuple[Any, Any, Any]:
        path = (text or "").strip().strip("\"'")
        if not path:
            return notice("Give the path of a file first.", "warn"), gr.update(), gr.update()
        try:
            shown = report(self.desk.working / Path(path).expanduser())
        except UserError as error:
            return notice(str(error), "bad"), gr.update(value=path), gr.update()
        is_lora = ".lora_" in shown or "lora" in shown[:400].lower()
        return shown, gr.update(value=path), gr.update(value=path) if is_lora else gr.update()

    def _suggest(self, data: Mapping[Any, Any]) -> Updates:
        raw = self.form.raw(data)
        if not raw["input"]:
            raise UserError.one("input", "", "is missing", "Give the LoRA to convert")
        source = Path(str(raw["input"]))
        ending = ENDINGS["default" if raw["reverse"] else str(raw["target"] or "other")]
        target = free_name(source.with_name(f"{source.stem}_{ending}.safetensors"))
        contents = {"output": str(target)}
        self.form.keep(contents)
        return self.form.put(contents)

    def _convert(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data)
        assert isinstance(config, ConvertLoraConfig) and config.output is not None
        raise_if_any(config.overwritten())
        folder = self.desk.run_beside(config, config.output.stem)
        return {self.answer: notice(f"Converting; {folder.name} shows how it went.", "good")}

    def _act(self, event: gr.EventData) -> None:
        stop_action(self.desk, action_of(event))
