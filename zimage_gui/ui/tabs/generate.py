"""The Generate tab: prompt, size, seed, LoRAs and grids on the left; progress and results on the right.

Knows gradio, the form and the resident worker (through the desk). The model stays loaded in that worker, so
the second picture does not load it again. A dropped picture gives its settings back.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.schema import Options
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.engine.wildcards import escaped
from zimage_gui.ui.actions import QUIET, Action, action_of, active_html, on_act, plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Updates, guarded, merged
from zimage_gui.ui.history import SAMPLES
from zimage_gui.ui.html import button, escape, notice
from zimage_gui.ui.live import Live
from zimage_gui.ui.lora_stack import FILES, STRENGTHS, LoraForm, known_loras, rows_of
from zimage_gui.ui.making import ask_to_skip, making_look
from zimage_gui.ui.page import Page
from zimage_gui.ui.panel import JobPanel, stop_action
from zimage_gui.ui.preset_bar import PresetBar
from zimage_gui.ui.presets import Presets
from zimage_gui.ui.results import Results
from zimage_gui.ui.values import Raw, from_values

SHAPES = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}

AXES = {
    "LoRA strength": "lora_multiplier=0, 0.5, 1",
    "LoRA file": "lora_weight={loras}",
    "Model": "dit={dit}",
    "Seed": "seed=1..4",
    "Steps": "infer_steps=4..12:4",
    "Guidance": "guidance_scale=0, 2, 4",
    "Shift": "flow_shift=1, 3, 6",
    "Sampler": "sampler=euler, heun, dpmpp_2m, res_multistep",
    "Scheduler": "scheduler=reference, simple, beta",
    "Prompt": "prompt={prompt}| another",
}
"""What a chip writes into the first empty axis, to be changed as one likes."""
GRID = ("grid_x", "grid_y", "grid_z")
MOST_LORAS = 6


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
        self.results = Results(desk)

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=440):
                self._prompt()
                self.form.finish()
                with gr.Accordion("LoRAs", open=True, elem_classes=["zg-section"]):
                    self.form.build_rows(self.desk)
                self._grid()
                self.form.build(open_sections=("models",))
                self.bar.build()
            with gr.Column(scale=6, min_width=480, elem_classes=["zg-watch"]):
                with gr.Row(elem_classes=["zg-actions"]):
                    self.start = gr.Button("Generate", variant="primary", elem_id="generate-start", scale=2)
                    self.compare = gr.Button("With and without LoRA", elem_id="generate-compare", scale=1)
                    self.beside = gr.Checkbox(
                        label="even while a training runs", container=False, interactive=True, min_width=120
                    )
                self.answer = plain_html(elem_id="generate-answer")
                self.making = self.live.part(self.name, "making", lambda run: making_look(self.desk))
                self.panel.build(self.live, self.name)
                self.results.build(self.live, self.name)
                with gr.Accordion("Read settings back from a picture", open=False):
                    self.drop = gr.File(
                        label="Drop a PNG from here, ComfyUI or A1111",
                        file_types=[".png", ".jpg", ".webp"],
                        type="filepath",
                        height=130,
                        elem_id="generate-drop",
                    )
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

    def _grid(self) -> None:
        with gr.Accordion("Grid and comparison", open=False, elem_id=f"{self.name}-grid"):
            with gr.Row(elem_classes=["zg-fields"]):
                for name in GRID[:2]:
                    self.form.field(name, elem_classes=["zg-field", "zg-wide"])
                self.form.field(GRID[2])
                self.form.field("compare_lora")
            chips = "".join(button(words, "axis", axis=words) for words in AXES)
            self.axes = active_html(f'<div class="zg-chips">{chips}</div>', elem_id="generate-axes")

    def _wire(self, page: Page) -> None:
        form = self.form
        form.wire(page)
        self.bar.wire(page)
        outputs = [*form.outputs(), self.answer]
        generate = guarded(form, self._generate)
        inputs = {*form.inputs(), self.beside}
        self.start.click(generate, inputs, [form.problems, self.answer], **QUIET)
        form.fields["prompt"].submit(generate, inputs, [form.problems, self.answer], **QUIET)
        compare = guarded(form, self._compare)
        self.compare.click(compare, inputs, [form.problems, self.answer], **QUIET)
        self.random.click(
            guarded(form, lambda data: self._keep({"seed": ""})), form.inputs(), outputs, **QUIET
        )
        self.reuse.click(guarded(form, self._reuse), form.inputs(), outputs, **QUIET)
        dropped = self.drop.upload(
            guarded(form, self._read_back, {self.answer: ""}), {self.drop}, outputs, **QUIET
        )
        # Makes room for the next picture. An event of its own: the page shows the file only after a quick
        # answer has come.
        dropped.then(lambda: None, None, self.drop, **QUIET)
        acting = [self.panel.status, self.making, self.shapes, self.axes, *self.results.blocks]
        on_act(acting, self._act, form.inputs(), outputs)
        guidance = form.fields["guidance_scale"]
        guidance.change(guidance_words, guidance, self.convention, **QUIET)

    # ---- handlers ---------------------------------------------------------------------------------------

    def _generate(self, data: Mapping[Any, Any], **fixed: Any) -> Updates:
        config = self.form.read(data, runs_dir=self.desk.runs_dir, **fixed)
        return self._submit(config, beside_training=bool(data[self.beside]))

    def _compare(self, data: Mapping[Any, Any]) -> Updates:
        """The same pictures without the LoRAs and with them, whatever grid is in the form."""
        return self._generate(data, compare_lora=True, **dict.fromkeys(GRID, ""))

    def _submit(self, config: Options, *, beside_training: bool) -> Updates:
        assert isinstance(config, GenerateConfig)
        if config.axes() and config.seed is None:
            # Said here, so that a grid that is stopped can go on.
            config = config.with_(seed=secrets.randbits(32))
        folder = self.desk.generate(config, beside_training=beside_training)
        sign = f'<span data-newest="{self.name}" data-run="{escape(folder.name)}"></span>'
        return merged(self.form.noted(config), {self.answer: sign})

    def _keep(
        self, contents: dict[str, Raw], words: str = "", tone: str = "good", *, rest: bool = False
    ) -> Updates:
        """Contents into the form and its draft; with `rest`, every other field returns to its default."""
        self.form.keep(contents, rest=rest)
        return {**self.form.put(contents, rest=rest), self.answer: notice(words, tone) if words else ""}

    def _reuse(self, data: Mapping[Any, Any]) -> Updates:
        for made in self.results.history.pictures():
            seed = self.results.history.settings(made).get("seed")
            if seed is not None:
                return self._keep({"seed": str(seed)})
        return self._keep({}, "No picture has been made yet.", "plain")

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
        for name in ("prompt", "negative_prompt"):
            if isinstance(text := found.get(name), str):
                found[name] = escaped(text)  # its choices were made; what is left is meant as it stands
        contents = dict.fromkeys(GRID, "") | from_values(GenerateConfig, found)
        contents["compare_lora"] = found.get("compare_lora") is True
        rows, missing = rows_of(self.desk, names, strengths)
        contents |= rows
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
            if not file.is_file():
                return {}
            return self._keep(self.bar.presets.read(file), "Settings taken over.", rest=True)
        if action.name == "axis":
            return self._add_axis(self.form.raw(data), action.get("axis"))
        if action.name == "goon":
            return self._go_on(self.desk.folder_of(action.get("run")))
        made = self.results.history.at(action.get("place"))
        if made is not None and action.name == "seed":
            return self._keep({"seed": str(self.results.history.settings(made).get("seed", ""))})
        if made is not None and action.name == "picture":
            return self.settings_of(made.path)
        return {self.answer: gr.update()}

    def _add_axis(self, contents: Mapping[str, Raw], words: str) -> Updates:
        """Writes an example into the first empty axis."""
        empty = next((name for name in GRID if not str(contents.get(name) or "").strip()), None)
        if empty is None or words not in AXES:
            return self._keep({}, "All three axes are used: empty one of them first.", "plain")
        loras = [path for _, path in known_loras(self.desk)][:MOST_LORAS]
        text = AXES[words].format(
            loras="|".join(loras) or str(contents.get(FILES) or "").replace("\n", "|"),
            dit=f"{contents.get('dit') or ''}|",
            prompt=contents.get("prompt") or "",
        )
        return self._keep({empty: text})

    def _go_on(self, folder: Path | None) -> Updates:
        """The same request again into the same folder: what is there is not made again."""
        if folder is None or not (folder / "config.toml").is_file():
            return self._keep({}, "That run is gone.", "warn")
        contents = self.bar.presets.read(folder / "config.toml")
        contents["save_path"] = contents.get("save_path") or str(folder / SAMPLES)
        config = self.form.config_of(contents, runs_dir=self.desk.runs_dir)
        return self._submit(config, beside_training=False)

    def take_lora(self, path: Path) -> Updates:
        """Put one LoRA into the first row; the other tabs call this."""
        return self._taken({FILES: str(path), STRENGTHS: "1"})

    def take_model(self, path: Path) -> Updates:
        """Draw with a finetuned transformer; text encoder and VAE stay those of the form."""
        return self._taken({"dit": str(path)})

    def _taken(self, contents: dict[str, Raw]) -> Updates:
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
