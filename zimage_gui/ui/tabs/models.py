"""The Models tab: which model files there are, what each is, and how to get the real ones.

Knows gradio, model headers and the forms of the other tabs. Downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from zimage_gui.config.common import ModelPaths
from zimage_gui.config.schema import options_of
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.engine.model_files import find_models
from zimage_gui.errors import UserError
from zimage_gui.ui.actions import QUIET, plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.file_report import verdict_badges
from zimage_gui.ui.form import Form, Updates, guarded
from zimage_gui.ui.html import badge, escape, notice
from zimage_gui.ui.page import Page
from zimage_gui.ui.summary import model_rows

HUB = "https://huggingface.co/"
# What, page, and which files, in HTML of ours.
SOURCES = (
    (
        "Turbo, everything in one folder",
        "Tongyi-MAI/Z-Image-Turbo",
        "The folders <code>transformer/</code> (diffusion_pytorch_model-00001-of-00003.safetensors and on), "
        "<code>text_encoder/</code> (model-00001-of-00003.safetensors and on), <code>vae/</code> and "
        "<code>tokenizer/</code>. Give the folder they lie in as <b>Models folder</b>.",
    ),
    (
        "The base model, in one folder",
        "Tongyi-MAI/Z-Image",
        "The same folders; the transformer comes in 2 files.",
    ),
    (
        "Turbo as single files, as ComfyUI uses them",
        "Comfy-Org/z_image_turbo",
        "<code>split_files/diffusion_models/z_image_turbo_bf16.safetensors</code>, "
        "<code>split_files/text_encoders/qwen_3_4b.safetensors</code>, <code>"
        "split_files/vae/ae.safetensors</code>. "
        "ComfyUI's own <code>models</code> folder may be given as <b>Models folder</b>.",
    ),
    (
        "De-Turbo, to train on",
        "ostris/Z-Image-De-Turbo",
        (
            "<code>z_image_de_turbo_v1_bf16.safetensors</code> as <b>Transformer</b>; VAE "
            "and text encoder from above."
        ),
    ),
    (
        "Adapter, to train on Turbo itself",
        "ostris/zimage_turbo_training_adapter",
        "<code>zimage_turbo_training_adapter_v2.safetensors</code> as <b>Merged LoRAs</b> in LoRA Train.",
    ),
)
ADVICE = (
    "<b>Which one?</b> Train on De-Turbo, on Turbo with the training adapter, or "
    "on the base model. Training plain "
    "Turbo without the adapter undoes what makes it fast. A LoRA trained on any of "
    "them is used on Turbo with 8 or 9 "
    "steps and guidance 0."
)
NAMES = {"dit": "Transformer", "vae": "VAE", "text_encoder": "Text encoder"}


class ModelsTab:
    name = "models"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.form = Form(ModelPaths, self.name, desk.drafts)

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self.form.finish()
                self.form.build(open_sections=("models",))
                with gr.Row(elem_classes=["zg-actions"]):
                    self.check = gr.Button("Check", elem_id="models-check")
                    self.use = gr.Button("Use on all tabs", variant="primary", elem_id="models-use")
                self.answer = plain_html(elem_id="models-answer")
            with gr.Column(scale=6, min_width=480):
                plain_html(guide(), elem_id="models-guide")
        self.form.wire(page)
        self.check.click(
            guarded(self.form, self._check), self.form.inputs(), [self.form.problems, self.answer],
            **QUIET,
        )  # fmt: skip

    def wire_targets(self, forms: list[Form]) -> None:
        """`Use on all tabs` puts the paths into these forms."""
        outputs = [
            self.form.problems,
            self.answer,
            *(field for form in forms for field in form.fields.values()),
        ]

        def use(data: Mapping[Any, Any]) -> Updates:
            updates = self._check(data)
            raw = self.form.raw(data)
            for form in forms:
                fitting = {name: raw[name] for name in options_of(ModelPaths) if name in form.fields}
                form.keep(fitting)
                updates |= form.put(fitting)
            gr.Info("Set on all tabs.")
            return updates

        self.use.click(guarded(self.form, use), self.form.inputs(), outputs, **QUIET)

    def _check(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data)
        assert isinstance(config, ModelPaths)
        files, problems = find_models(config, "transformer", "vae", "text_encoder")
        rows, wrong = model_rows(files)
        problems += wrong
        missing = [name for name in NAMES if name not in {option for option, _, _ in rows}]
        if problems:
            raise UserError(problems)
        lines = "".join(
            f"<tr><td>{escape(NAMES[option])}</td><td>{badge('found', 'good')}</td><td>{escape(sentence)}<br>"
            f'<span class="zg-muted">{escape(str(getattr(files, option)))}</span>'
            f"<br>{verdict_badges(inspect(getattr(files, option)).verdicts)}</td></tr>"
            for option, sentence, _ in rows
        )
        lines += "".join(
            f"<tr><td>{NAMES[name]}</td><td>{badge('not named', 'warn')}</td><td></td></tr>"
            for name in missing
        )
        return {
            self.answer: notice(
                f'<table class="zg-table">{lines}</table>', "good" if not missing else "warn", raw=True
            )
        }


def guide() -> str:
    """Where the real models are, with the exact names of pages and files."""
    rows = "".join(
        (
            f'<tr><td><b>{what}</b><br><a href="{HUB}{page}" target="_blank" '
            f'rel="noreferrer">{page}</a></td><td>{files}</td></tr>'
        )
        for what, page, files in SOURCES
    )
    intro = (
        "This program downloads nothing. Get the files once, with a browser or <code>"
        "hf download</code>, and name them here."
    )
    table = f'<table class="zg-table zg-guide">{rows}</table>'
    return notice(f"<b>Where to get the real models</b><p>{intro}</p>{table}<p>{ADVICE}</p>", raw=True)
