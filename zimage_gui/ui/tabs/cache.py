"""The Cache tab: how much of the dataset is encoded, and one button that encodes the rest.

Knows gradio and the two cache commands' schemas. Training does this by itself; here it is seen and done
ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.config.common import PictureFolder
from zimage_gui.config.paths import path_problems
from zimage_gui.config.schema import options_of
from zimage_gui.errors import raise_if_any
from zimage_gui.ui.actions import PRIVATE, QUIET, action_of, on_act, plain_html
from zimage_gui.ui.cache_state import as_html, look
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Form, Updates, guarded, merged
from zimage_gui.ui.html import escape, notice
from zimage_gui.ui.live import Live
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, stop_action
from zimage_gui.ui.preset_bar import all_settings

PICTURES = frozenset(options_of(PictureFolder))

# Asked once, in the form of the latents; the texts' run takes the same values.
COMMON = (
    *options_of(PictureFolder),
    "model_dir",
    "device",
    "num_workers",
    "skip_existing",
    "keep_cache",
)


class CacheTab:
    name = "cache"

    def __init__(self, desk: Desk, live: Live) -> None:
        self.desk = desk
        self.live = live
        self.form = Form(CacheLatentsConfig, "cache-latents", desk.drafts, hidden=("runs_dir",))
        self.text = Form(CacheTextConfig, "cache-text", desk.drafts, hidden=("runs_dir", *COMMON))
        empty = (
            "Nothing has been encoded yet. Training encodes what is missing by itself; "
            "here you can do it ahead."
        )
        self.panel = JobPanel(desk, ("cache-latents", "cache-text"), (), empty, reuse=False)

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self.form.finish()
                self.text.finish()
                self.form.build(open_sections=("models", "dataset", "cache"))
                with gr.Accordion("Captions", open=True, elem_classes=["zg-section"]):
                    self.text.build(open_sections=("models", "cache"))
            with gr.Column(scale=6, min_width=480, elem_classes=["zg-watch"]):
                with gr.Row(elem_classes=["zg-actions"]):
                    self.update = gr.Button(
                        "Update the caches", variant="primary", elem_id="cache-update", scale=2
                    )
                    self.check = gr.Button("Look", elem_id="cache-look")
                    all_settings("cache-advanced")
                self.answer = plain_html(elem_id="cache-answer")
                self.panel.build(self.live, self.name)
        self._wire(page)

    def _wire(self, page: Page) -> None:
        self.form.wire(page)
        self.text.wire(page)
        inputs = {*self.form.inputs(), *self.text.inputs()}
        outputs = [self.form.problems, self.text.problems, self.answer]
        self.check.click(
            guarded(self.form, self._look, {self.answer: ""}),
            inputs,
            [self.form.problems, self.answer],
            show_progress_on=self.answer,
            **PRIVATE,
        )
        self.update.click(guarded(self.text, self._update), inputs, outputs, **QUIET)
        on_act([self.panel.status], self._act, None, None)

    def _look(self, data: Mapping[Any, Any]) -> Updates:
        # The state of the caches is worth seeing before any model is named.
        config = self.form.partial(data)
        assert isinstance(config, CacheLatentsConfig)
        raise_if_any(problem for problem in path_problems(config) if problem.option in PICTURES)
        captions = self.text.partial(data)
        assert isinstance(captions, CacheTextConfig)
        return {self.answer: as_html(look(config, captions))}

    def _update(self, data: Mapping[Any, Any]) -> Updates:
        return guarded(self.form, self._submit)(data)

    def _submit(self, data: Mapping[Any, Any]) -> Updates:
        latents = self.form.read(data, runs_dir=self.desk.runs_dir)
        shared = {name: getattr(latents, name) for name in COMMON}
        texts = self.text.read(data, runs_dir=self.desk.runs_dir, **shared)
        assert isinstance(texts, CacheTextConfig)
        if texts.text_encoder is not None:  # what the folder is for then is the VAE
            texts = texts.with_(model_dir=None)
        folders = [self.desk.submit(config, "") for config in (latents, texts)]
        words = "Both caches are being brought up to date: first the pictures, then the captions."
        sign = f'<span data-newest="{self.name}" data-run="{escape(folders[0].name)}"></span>'
        noted = merged(self.form.noted(latents), self.text.noted(texts))
        return merged(noted, {self.answer: notice(words + sign, "good", raw=True)})

    def _act(self, event: gr.EventData) -> None:
        stop_action(self.desk, action_of(event))
