"""The Models tab: which model files there are, what each is, and how to get the real ones.

Knows gradio, model headers and the forms of the other tabs. Downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from zimage_gui.config.common import ModelPaths
from zimage_gui.config.schema import options_of
from zimage_gui.engine.model_files import find_models
from zimage_gui.errors import UserError
from zimage_gui.ui.actions import plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Form, Updates, guarded
from zimage_gui.ui.html import badge, escape, notice
from zimage_gui.ui.summary import model_rows

GUIDE = """
### Where to get the real models

This program downloads nothing. Get the files once, with a browser or `hf download`, and name them above.

| What | Page | Files |
|---|---|---|
| Everything in one folder | [Tongyi-MAI/Z-Image-Turbo](https://huggingface.co/Tongyi-MAI/Z-Image-Turbo) | the folders `transformer/` (`diffusion_pytorch_model-00001-of-00003.safetensors` and on), `text_encoder/` (`model-00001-of-00003.safetensors` and on), `vae/`, `tokenizer/`; give the folder as *Models folder* |
| The base model, in one folder | [Tongyi-MAI/Z-Image](https://huggingface.co/Tongyi-MAI/Z-Image) | the same folders |
| Single files, as ComfyUI uses them | [Comfy-Org/z_image_turbo](https://huggingface.co/Comfy-Org/z_image_turbo) | `split_files/diffusion_models/z_image_turbo_bf16.safetensors`, `split_files/text_encoders/qwen_3_4b.safetensors`, `split_files/vae/ae.safetensors`; a ComfyUI `models` folder may be given as *Models folder* |
| To train on: De-Turbo | [ostris/Z-Image-De-Turbo](https://huggingface.co/ostris/Z-Image-De-Turbo) | `z_image_de_turbo_v1_bf16.safetensors` as *Transformer* |
| To train on Turbo itself: the adapter | [ostris/zimage_turbo_training_adapter](https://huggingface.co/ostris/zimage_turbo_training_adapter) | `zimage_turbo_training_adapter_v2.safetensors` as *Merged LoRAs* in LoRA Train |

**Which one?** Train on De-Turbo, on Turbo with the training adapter, or on the base model; training plain Turbo without
the adapter undoes what makes it fast. A LoRA trained on any of them is used on Turbo with 8 or 9 steps and guidance 0.
"""

NAMES = {"dit": "Transformer", "vae": "VAE", "text_encoder": "Text encoder"}


class ModelsTab:
    name = "models"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.form = Form(ModelPaths, self.name, desk.drafts)

    def build(self, page: gr.Blocks) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self.form.finish()
                self.form.build(open_sections=("models",))
                with gr.Row(elem_classes=["zg-actions"]):
                    self.check = gr.Button("Check", elem_id="models-check")
                    self.use = gr.Button("Use on all tabs", variant="primary", elem_id="models-use")
                self.answer = plain_html(elem_id="models-answer")
            with gr.Column(scale=6, min_width=480):
                gr.Markdown(GUIDE, elem_classes=["zg-guide"])
        self.form.wire(page)
        self.check.click(
            guarded(self.form, self._check), self.form.inputs(), [*self.form.outputs(), self.answer],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def wire_targets(self, forms: list[Form]) -> None:
        """`Use on all tabs` puts the paths into these forms."""
        outputs = [*self.form.outputs(), self.answer, *(field for form in forms for field in form.fields.values())]

        def use(data: Mapping[Any, Any]) -> Updates:
            updates = self._check(data)
            raw = self.form.raw(data)
            for form in forms:
                fitting = {name: raw[name] for name in options_of(ModelPaths) if name in form.fields}
                form.keep(fitting)
                updates |= form.put(fitting)
            gr.Info("Set on all tabs.")
            return updates

        self.use.click(
            guarded(self.form, use), self.form.inputs(), outputs, show_progress="hidden", api_visibility="private"
        )

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
            f'<span class="zg-muted">{escape(str(getattr(files, option)))}</span></td></tr>'
            for option, sentence, _ in rows
        )
        lines += "".join(f"<tr><td>{NAMES[name]}</td><td>{badge('not named', 'warn')}</td><td></td></tr>" for name in missing)
        return {self.answer: notice(f'<table class="zg-table">{lines}</table>', "good" if not missing else "warn", raw=True)}
