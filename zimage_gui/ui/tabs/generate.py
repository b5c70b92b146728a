"""The Generate tab: prompt, size, seed and LoRAs on the left; progress and the gallery on the right.

Knows gradio, the form and the resident worker (through the desk). The model stays loaded in that worker, so
the second picture does not load it again. A dropped picture gives its settings back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.ui.actions import QUIET, Action, action_of, active_html, on_act, plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Updates, guarded, merged
from zimage_gui.ui.gallery import gallery, recent_pictures
from zimage_gui.ui.html import button, escape, notice
from zimage_gui.ui.live import Live, Look
from zimage_gui.ui.lora_stack import FILES, STRENGTHS, LoraForm, by_name
from zimage_gui.ui.making import ask_to_skip, making_look
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, stop_action
from zimage_gui.ui.preset_bar import PresetBar
from zimage_gui.ui.presets import Presets
from zimage_gui.ui.values import Raw, from_values

SHAPES = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}


class GenerateTab:
    name = "generate"

    def __init__(self, desk: Desk, live: Live) -> None:
        self.desk = desk
        self.live = live
        self.form = LoraForm(
            GenerateConfig,
            self.name,
            desk.drafts,
            hidden=("runs_dir", "bell", "width", "height", "interactive"),
        )
        self.bar = PresetBar(self.form, Presets(desk.presets_dir, GenerateConfig))
        self.panel = JobPanel(desk, ("generate",), (), "Write a prompt and press Generate.")

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self._prompt()
                self.form.finish()
                with gr.Accordion("LoRAs", open=True, elem_classes=["zg-section"]):
                    self.form.build_rows(self.desk)
                self.form.build(open_sections=("models",))
                self.bar.build()
            with gr.Column(scale=6, min_width=480, elem_classes=["zg-watch"]):
                with gr.Row(elem_classes=["zg-actions"]):
                    self.start = gr.Button("Generate", variant="primary", elem_id="generate-start", scale=2)
                    self.beside = gr.Checkbox(
                        label="even while a training runs", container=False, interactive=True, min_width=120
                    )
                self.answer = plain_html(elem_id="generate-answer")
                self.making = self.live.part(self.name, "making", lambda run: making_look(self.desk))
                self.gallery = self.live.part(self.name, "gallery", lambda run: self._gallery())
                with gr.Accordion("Read settings back from a picture", open=False):
                    self.drop = gr.File(
                        label="Drop a PNG from here, ComfyUI or A1111",
                        file_types=[".png", ".jpg", ".webp"],
                        type="filepath",
                        height=130,
                        elem_id="generate-drop",
                    )
                self.panel.build(self.live, self.name)
        self._wire(page)

    def _prompt(self) -> None:
        with gr.Row(elem_classes=["zg-fields", "zg-card"]):
            self.form.field("prompt", lines=3, placeholder="a red circle on a white background")
            self.form.field("negative_prompt", lines=1)
            for name in ("image_size", "infer_steps", "guidance_scale", "flow_shift", "seed", "batch_count"):
                self.form.field(name)
            for name in ("sampler", "scheduler"):
                self.form.field(name)
        self.shapes = active_html(shape_chips(), elem_id="generate-shapes")
        with gr.Row(elem_classes=["zg-actions"]):
            self.random = gr.Button("Random seed", size="sm", min_width=100, elem_id="generate-random")
            self.reuse = gr.Button("Reuse last seed", size="sm", min_width=110, elem_id="generate-reuse")
        self.convention = plain_html(guidance_words("0"), elem_id="generate-guidance")

    def _wire(self, page: Page) -> None:
        form = self.form
        form.wire(page)
        self.bar.wire(page)
        outputs = [*form.outputs(), self.answer]
        generate = guarded(form, self._generate)
        inputs = {*form.inputs(), self.beside}
        self.start.click(generate, inputs, [form.problems, self.answer], **QUIET)
        form.fields["prompt"].submit(generate, inputs, [form.problems, self.answer], **QUIET)
        self.random.click(
            guarded(form, lambda data: self._keep({"seed": ""})), form.inputs(), outputs, **QUIET
        )
        self.reuse.click(guarded(form, self._reuse), form.inputs(), outputs, **QUIET)
        self.drop.upload(guarded(form, self._read_back), {self.drop}, outputs, **QUIET)
        on_act([self.panel.status, self.making, self.gallery, self.shapes], self._act, form.inputs(), outputs)
        guidance = form.fields["guidance_scale"]
        guidance.change(guidance_words, guidance, self.convention, **QUIET)

    def _gallery(self) -> Look:
        states = self.desk.of_command("generate")
        newest = [
            (state.folder.name, len(self.desk.readers.of(state.folder).poll().samples))
            for state in states[:3]
        ]
        return Look(newest, lambda: gallery(recent_pictures(self.desk), self.desk.pictures))

    # ---- handlers ---------------------------------------------------------------------------------------

    def _generate(self, data: Mapping[Any, Any]) -> Updates:
        config = self.form.read(data, runs_dir=self.desk.runs_dir)
        folder = self.desk.generate(config, beside_training=bool(data[self.beside]))
        return {self.answer: f'<span data-newest="{self.name}" data-run="{escape(folder.name)}"></span>'}

    def _keep(self, contents: dict[str, Raw], words: str = "", tone: str = "good") -> Updates:
        self.form.keep(contents)
        return {**self.form.put(contents), self.answer: notice(words, tone) if words else ""}

    def _reuse(self, data: Mapping[Any, Any]) -> Updates:
        pictures = recent_pictures(self.desk, 1)
        return (
            self._keep({"seed": str(pictures[0].seed)})
            if pictures
            else self._keep({}, "No picture has been made yet.", "plain")
        )

    def _read_back(self, data: Mapping[Any, Any]) -> Updates:
        return self.settings_of(Path(data[self.drop]))

    def settings_of(self, picture: Path) -> Updates:
        """The form filled from a picture. Raises UserError when it is none."""
        found = read_settings(picture)
        if not found:
            return self._keep({}, f"{picture.name} carries no settings that are known here.", "warn")
        begun = [str(found.pop(name)) for name in ("image_path", "mask_path") if name in found]
        names = [str(name) for name in found.pop(FILES, ())]
        strengths = [str(value) for value in found.pop(STRENGTHS, ())]
        contents = from_values(GenerateConfig, found)
        paths, missing = by_name(self.desk, names)
        contents |= (
            {FILES: "\n".join(paths), STRENGTHS: "\n".join(strengths)}
            if not missing
            else {FILES: "\n".join([*paths])}
        )
        if missing:
            return self._keep(
                contents, f"Settings read, but these LoRAs are not here: {', '.join(missing)}.", "warn"
            )
        if begun:
            words = f"Settings read. It was begun from {' and '.join(begun)}: choose that file again."
            return self._keep(contents, words, "warn")
        return self._keep(contents, f"Settings of {picture.name} are in the form.")

    def _act(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        action = action_of(event)
        if stop_action(self.desk, action):
            return {self.answer: gr.update()}
        return guarded(self.form, lambda inputs: self._do(inputs, action))(data)

    def _do(self, data: Mapping[Any, Any], action: Action) -> Updates:
        if action.name == "shape":
            return self._keep(
                {"image_size": reshaped(str(self.form.raw(data)["image_size"]), action.get("ratio"))}
            )
        if action.name == "skip":
            folder = self.desk.folder_of(action.get("run"))
            if folder is not None:
                ask_to_skip(folder)
            return {self.answer: gr.update()}
        if action.name == "settings":
            file = (self.desk.folder_of(action.get("run")) or Path()) / "config.toml"
            return self._keep(self.bar.presets.read(file), "Settings taken over.") if file.is_file() else {}
        picture = next(
            (one for one in recent_pictures(self.desk) if str(one.path) == action.get("place")), None
        )
        if picture is None:
            return {self.answer: gr.update()}
        if action.name == "seed":
            return self._keep({"seed": str(picture.seed)})
        return self.settings_of(picture.path) if action.name == "picture" else {self.answer: gr.update()}

    def take_lora(self, path: Path) -> Updates:
        """Put one LoRA into the first row; the other tabs call this."""
        contents: dict[str, Raw] = {FILES: str(path), STRENGTHS: "1"}
        self.form.keep(contents)
        return merged(self.form.put(contents))


def shape_chips() -> str:
    chips = "".join(
        button(name, "shape", ratio=name, title=f"Width to height {name}, same number of pixels")
        for name in SHAPES
    )
    return f'<div class="zg-chips">{chips}</div>'


def reshaped(size: str, ratio: str) -> str:
    """`1024 x 1024` and `16:9` -> height x width of about as many pixels, multiples of 16."""
    numbers = [int(part) for part in size.replace("x", " ").split() if part.isdigit()]
    area = numbers[0] * numbers[-1] if numbers else 1024 * 1024
    wide = SHAPES.get(ratio, 1.0)
    height, width = math.sqrt(area / wide), math.sqrt(area * wide)
    return " x ".join(str(max(16, round(edge / 16) * 16)) for edge in (height, width))


def guidance_words(guidance: str) -> str:
    """The convention in numbers: our g, and the CFG that ComfyUI and A1111 would show."""
    try:
        value = float(guidance)
    except (TypeError, ValueError):
        return ""
    other = f"In ComfyUI and A1111 this is CFG {value + 1:g}."
    words = (
        "No guidance: the negative prompt is not used. Right for Turbo."
        if value == 0
        else "positive + g (positive - negative)."
    )
    return f'<span class="zg-muted">Guidance {value:g}: {words} {other}</span>'
