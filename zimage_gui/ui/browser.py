"""The folder browser: a dialog of our own that lists the server's folders and fills a path field.

Knows gradio's HTML component and `folders`. The listing never leaves the roots; the chosen path is put into
the field by the browser, as if it had been typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.ui.actions import script
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.folders import list_folder

MODEL_FILES = (".safetensors", ".toml", ".txt", ".json", ".jsonl", ".bpk")

DIALOG = """
<div class="zg-veil" role="dialog" aria-modal="true" aria-label="Choose a folder or file">
  <div class="zg-dialog">
    <h3>Choose a folder or file on this computer</h3>
    <div class="zg-chips" data-part="roots"></div>
    <div class="zg-list" data-part="list"></div>
    <div class="zg-foot">
      <span class="zg-path-now" data-part="path"></span>
      <button type="button" class="zg-button" data-part="cancel">Cancel</button>
      <button type="button" class="zg-button zg-good" data-part="take">Use this folder</button>
    </div>
  </div>
</div>
"""


def folder_browser(desk: Desk) -> gr.HTML:
    """Build the dialog once per page; a path field opens it with `window.zgBrowse(elem_id)`."""

    def list_folders(path: Any) -> dict[str, Any]:
        text = path.strip() if isinstance(path, str) and "\0" not in path else ""
        start = (desk.working / Path(text).expanduser()) if text else desk.working
        while text and not start.is_dir() and start.parent != start:
            start = start.parent
        found = list_folder(start, desk.roots, MODEL_FILES)
        return {
            "path": str(found.path),
            "parent": str(found.parent) if found.parent else "",
            "problem": found.problem,
            "roots": [str(root) for root in desk.roots],
            "folders": [
                {
                    "name": one.path.name,
                    "path": str(one.path),
                    "note": f"{one.pictures} pictures" if one.pictures else "",
                }
                for one in found.folders
            ],
            "files": [{"name": one.name, "path": str(one)} for one in found.files],
        }

    return gr.HTML(
        DIALOG,
        js_on_load=script("browser.js"),
        server_functions=[list_folders],
        apply_default_css=False,
        elem_id="zg-browser",
    )
