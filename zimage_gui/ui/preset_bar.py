"""The row above a form: presets to load and save, a settings file to import, the search and the advanced
switch.

Knows gradio, the form and the preset files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.config.schema import options_of
from zimage_gui.errors import UserError
from zimage_gui.ui.actions import QUIET, plain_html
from zimage_gui.ui.form import Form, Updates, guarded
from zimage_gui.ui.html import escape
from zimage_gui.ui.page import Page
from zimage_gui.ui.presets import Presets

SWITCH = '<label class="zg-switch"><input type="checkbox"> All settings</label>'
SWITCH_SCRIPT = """
const box = element.querySelector('input');
box.checked = document.body.classList.contains('zg-advanced-on');
box.addEventListener('change', () => window.zgAdvanced(box.checked));
"""


def all_settings(elem_id: str, before: str = "") -> None:
    """The switch that shows advanced settings, on all tabs together; `before`: HTML in front of it."""
    plain_html(before + SWITCH, js_on_load=SWITCH_SCRIPT, elem_id=elem_id, min_width=110)


class PresetBar:
    """Build it above its form, `wire` it after both are built."""

    def __init__(self, form: Form, presets: Presets) -> None:
        self.form = form
        self.presets = presets

    def build(self) -> None:
        name = self.form.name
        with gr.Row(elem_classes=["zg-actions"], equal_height=True):
            self.choice = gr.Dropdown(
                self._choices(),
                value=None,
                label="Preset",
                interactive=True,
                scale=3,
                min_width=180,
                elem_id=f"{name}-preset",
                allow_custom_value=True,
                info="Choose to load; type a name and press Save to keep these settings.",
            )
            self.search = gr.Textbox(
                label="Find a setting",
                placeholder="e.g. warm-up",
                scale=2,
                min_width=150,
                info="By label or option name; Enter jumps to it.",
                elem_id=f"{name}-search",
            )
        with gr.Row(elem_classes=["zg-actions"], equal_height=True):
            self.save = gr.Button("Save preset", size="sm", elem_id=f"{name}-save-preset")
            self.upload = gr.UploadButton("Import TOML", size="sm", file_types=[".toml"], type="filepath")
            self.reset = gr.Button("Reset to defaults", size="sm", elem_id=f"{name}-reset")
            all_settings(f"{name}-advanced", self._index())

    def _index(self) -> str:
        """The names of all settings for the search: closed sections are not in the page yet."""
        known = options_of(self.form.config_class)
        entries = [[name, option.label, option.section] for name, option in known.items()]
        return f'<span id="{self.form.name}-index" data-index="{escape(json.dumps(entries))}"></span>'

    def _choices(self) -> list[tuple[str, str]]:
        return [(preset.name.replace("_", " "), preset.name) for preset in self.presets.list()]

    def wire(self, page: Page) -> None:
        form = self.form
        self.choice.select(guarded(form, self._load), {self.choice}, form.outputs(), **QUIET)
        self.save.click(
            guarded(form, self._save), {*form.inputs(), self.choice}, [*form.outputs(), self.choice], **QUIET
        )
        self.upload.upload(guarded(form, self._import), {self.upload}, form.outputs(), **QUIET)
        self.reset.click(guarded(form, self._reset), form.inputs(), form.outputs(), **QUIET)
        page.first(lambda: {self.choice: gr.update(choices=self._choices())})
        self.search.submit(
            None, self.search, None, js=f"(text) => {{ window.zgSearch(text, '{form.name}'); }}", **QUIET
        )

    def _load(self, data: Mapping[Any, Any]) -> Updates:
        name = data[self.choice]
        if not any(preset.name == name for preset in self.presets.list()):
            return {self.form.problems: gr.update()}  # a new name that is being typed
        contents = self.presets.load(name)
        self.form.keep(contents)
        gr.Info(f"Preset {name} loaded.")
        return self.form.put(contents)

    def _save(self, data: Mapping[Any, Any]) -> Updates:
        if not data[self.choice]:
            raise UserError.one("preset", "", "needs a name", "Type it into the field Preset")
        file = self.presets.save(str(data[self.choice]), self.form.partial(data))
        gr.Info(f"Saved as {file}")
        return {self.choice: gr.update(choices=self._choices(), value=file.stem)}

    def _import(self, data: Mapping[Any, Any]) -> Updates:
        file = Path(data[self.upload])
        contents = self.presets.read(file)
        self.form.keep(contents)
        gr.Info(f"The settings of {file.name} are in the form.")
        return self.form.put(contents)

    def _reset(self, data: Mapping[Any, Any]) -> Updates:
        self.form.keep({}, rest=True)
        return self.form.put({}, rest=True)
