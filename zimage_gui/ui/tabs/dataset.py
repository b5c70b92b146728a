"""The Dataset tab: choose a folder, see what is wrong, edit captions, see the buckets, write the dataset
file.

Knows gradio, the scan (which needs no torch) and `dataset_view`. Changes only caption files, one at a time,
and the TOML a person asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.dataset import DatasetConfig
from zimage_gui.config.schema import options_of
from zimage_gui.engine.dataset.scan import ScanReport, scan
from zimage_gui.engine.dataset.sources import VARIANTS, check_or_raise, sources_of
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.ui import dataset_view
from zimage_gui.ui.actions import (
    ACT_SCRIPT,
    PRIVATE,
    QUIET,
    action_of,
    active_html,
    on_act,
    plain_html,
    script,
)
from zimage_gui.ui.captions import CaptionFiles
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Form, Updates, guarded, merged
from zimage_gui.ui.html import notice
from zimage_gui.ui.page import Page
from zimage_gui.ui.values import Raw

SHARED = (
    "dataset",
    "dataset_config",
    "resolution",
    "enable_bucket",
    "bucket_no_upscale",
    "num_repeats",
    "caption_extension",
    "cache_directory",
    "batch_size",
    *VARIANTS,
)

GRID_SCRIPT = ACT_SCRIPT + script("grid.js")


@dataclass
class Looked:
    """What one page looks at: the last scan, the chosen chip and the page of the grid."""

    report: ScanReport | None = None
    chosen: str = "all"
    page: int = 1


class DatasetTab:
    name = "dataset"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.form = Form(DatasetConfig, self.name, desk.drafts, hidden=("overwrite",))
        self.captions = CaptionFiles()

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=330):
                self.look = gr.Button("Look at the pictures", variant="primary", elem_id="dataset-look")
                with gr.Row(elem_classes=["zg-actions"]):
                    self.use = gr.Button("Use for training", elem_id="dataset-use")
                    self.write = gr.Button("Write TOML", elem_id="dataset-write")
                self.form.finish()
                self.answer = plain_html(visible=False, elem_id="dataset-answer")
                self.form.build(open_sections=("dataset", "output"))
            with gr.Column(scale=8, min_width=500):
                self.strip = active_html(elem_id="dataset-strip")
                with gr.Accordion("Buckets: the training sizes", open=False):
                    self.buckets = plain_html(elem_id="dataset-buckets")
                self.grid = gr.HTML(
                    self._empty(),
                    js_on_load=GRID_SCRIPT,
                    server_functions=[self._saver()],
                    apply_default_css=False,
                    elem_id="dataset-grid",
                )
        self.looked = gr.State(Looked())
        self._wire(page)

    def _empty(self) -> str:
        return (
            '<p class="zg-empty">Choose a folder with 10 to 40 pictures and press <b>Look '
            "at the pictures</b>. "
            "Captions are .txt files with the same name; missing ones can be written here.</p>"
        )

    def _saver(self) -> Any:
        def save_caption(data: Any) -> dict[str, Any]:
            found = data if isinstance(data, dict) else {}
            fields = [
                str(found[key]) for key in ("token", "before", "text") if isinstance(found.get(key), str)
            ]
            if len(fields) != 3:
                return {"ok": False, "message": "not understood", "text": ""}
            saved = self.captions.save(*fields)
            return {"ok": saved.ok, "message": saved.message, "text": saved.text}

        return save_caption

    def _wire(self, page: Page) -> None:
        form = self.form
        form.wire(page)
        shown = [self.strip, self.buckets, self.grid, self.looked]
        self.look.click(
            guarded(form, self._look, self._nothing()),
            form.inputs(),
            [form.problems, *shown, self.answer],
            show_progress_on=self.grid,
            **PRIVATE,
        )
        write = guarded(form, self._write, self._silent())
        self.write.click(write, form.inputs(), [form.problems, self.answer], **QUIET)
        on_act([self.strip, self.grid], self._act, {self.looked}, shown)

    def _nothing(self) -> Updates:
        """Pictures of another folder must not stand beside a refusal."""
        blank: Updates = {self.strip: "", self.buckets: "", self.grid: self._empty()}
        return {**blank, **self._silent()}

    def _silent(self) -> Updates:
        """An earlier answer must not stand beside a refusal."""
        return {self.answer: gr.update(visible=False)}

    def wire_targets(self, forms: list[Form]) -> None:
        """`Use for training` puts the dataset into these forms."""
        outputs = [
            self.form.problems,
            self.answer,
            *(field for form in forms for field in form.fields.values()),
        ]

        def use(data: Mapping[Any, Any]) -> Updates:
            self.form.partial(data)
            contents = {name: value for name, value in self.form.raw(data).items() if name in SHARED}
            updates: Updates = {}
            own = self._labels(self.form)
            for form in forms:
                same = self._labels(form)  # a cache form's batch_size is the encoder's
                fitting: dict[str, Raw] = {
                    name: value for name, value in contents.items() if same.get(name) == own[name]
                }
                form.keep(fitting)
                updates |= form.put(fitting)
            words = "The dataset is set in Cache, LoRA Train and Finetune."
            return {**updates, self.answer: gr.update(value=notice(words, "good"), visible=True)}

        self.use.click(guarded(self.form, use, self._silent()), self.form.inputs(), outputs, **QUIET)

    @staticmethod
    def _labels(form: Form) -> dict[str, str]:
        """Shown options and what they are called: one name with another label means something else."""
        options = options_of(form.config_class)
        return {name: option.label for name, option in options.items() if name in form.fields}

    # ---- handlers ---------------------------------------------------------------------------------------

    def _look(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data)
        assert isinstance(config, DatasetConfig)
        sources = sources_of(config, config.batch_size)
        check_or_raise(sources)
        looked = Looked(scan(sources))
        if not (looked.report and (looked.report.pictures or looked.report.refused)):
            where = config.dataset or config.dataset_config
            raise UserError.one(
                "dataset", where, "holds no pictures (png, jpg, webp, bmp, avif)", "Choose another folder"
            )
        return merged(self._draw(looked), self._silent())

    def _draw(self, looked: Looked) -> Updates:
        report = looked.report
        if report is None:
            return {self.looked: looked}
        return {
            self.strip: dataset_view.strip(report, looked.chosen),
            self.buckets: dataset_view.buckets(report),
            self.grid: dataset_view.grid(
                report, looked.chosen, looked.page, self.desk.pictures, self.captions
            ),
            self.looked: looked,
        }

    def _act(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        looked: Looked = data[self.looked]
        action = action_of(event)
        if action.name == "filter":
            looked.chosen, looked.page = action.get("key"), 1
        elif action.name == "page" and action.get("page").isdigit():
            looked.page = int(action.get("page"))
        return self._draw(looked)

    def _write(self, data: Mapping[Any, Any]) -> Updates:
        from zimage_gui.engine.dataset import report

        config = self.form.read(data)
        assert isinstance(config, DatasetConfig)
        if config.write_toml is None:
            raise UserError.one("write_toml", "", "is missing", "Give the path of the dataset file to write")
        written: list[Path] = report.run(config, NullRun(self.desk.runs_dir))
        words = f"Written: {', '.join(map(str, written))}"
        return {self.answer: gr.update(value=notice(words, "good"), visible=True)}
