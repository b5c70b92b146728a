"""The row that copies a file to where ComfyUI looks for it; the folder is remembered.

Knows gradio, the drafts and one engine function. Knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.engine.comfy_folder import FOLDERS, copy_into_comfy
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.errors import UserError
from zimage_gui.ui.actions import PRIVATE, QUIET, plain_html
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Updates, beside, browse_button
from zimage_gui.ui.html import notice
from zimage_gui.ui.page import Page

DRAFT, KEY = "comfy", "comfy_folder"


class ComfyCopy:
    kinds = tuple(FOLDERS)

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        with gr.Group(visible=False, elem_classes=["zg-card"]) as self.box:
            self.folder = gr.Textbox(
                label="ComfyUI's folder",
                info="Where ComfyUI is, or its models folder. It is remembered.",
                elem_id="convert-comfy",
                elem_classes=["zg-field"],
                lines=1,
                max_lines=1,
                interactive=True,
                buttons=[browse_button("convert-comfy")],
            )
            self.button = gr.Button("Copy to ComfyUI", elem_id="convert-copy")
            self.said = plain_html(elem_id="convert-copied")

    def wire(self, page: Page, file: Any) -> None:
        page.first(lambda: {self.folder: gr.update(value=str(self.desk.drafts.load(DRAFT).get(KEY) or ""))})
        self.folder.input(self._remember, {self.folder}, None, **QUIET)
        self.button.click(
            lambda data: self._copy(data, file), {self.folder, file}, [self.said],
            show_progress_on=self.said, **PRIVATE,
        )  # fmt: skip

    def _remember(self, data: Mapping[Any, Any]) -> None:
        self.desk.drafts.save(DRAFT, {KEY: str(data[self.folder] or "")})

    def _copy(self, data: Mapping[Any, Any], file: Any) -> Updates:
        folder, path = (str(data[one] or "").strip().strip("\"'") for one in (self.folder, file))
        self._remember(data)
        if not folder:
            return {self.said: notice("Give ComfyUI's folder first.", "warn")}
        try:
            found = inspect(self.desk.working / Path(path).expanduser())
            place, was_there = copy_into_comfy(
                found.path, found.kind, self.desk.working / Path(folder).expanduser()
            )
        except UserError as error:
            return {self.said: notice(" ".join(map(beside, error.problems)), "bad")}
        except OSError as error:
            return {self.said: notice(f"The copy failed: {error.strerror or error}.", "bad")}
        words = "is there already, byte for byte" if was_there else "was copied"
        return {self.said: notice(f"{place.name} {words}: {place.parent}", "good")}
