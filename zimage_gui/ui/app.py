"""Starts the window: builds the page and serves it on this machine.

Knows gradio, the desk and who may connect. Knows nothing of what the tabs do. The network rules are here: loopback
unless the user opens it, then only with a password; no telemetry; nothing served but the window's own pictures.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage_gui.config.app import GuiConfig
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Run

if TYPE_CHECKING:
    import gradio as gr

    from zimage_gui.ui.desk import Desk
    from zimage_gui.ui.form import Form

# gradio reads these when it is imported, and only these exact words.
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def build_app(desk: Desk) -> gr.Blocks:
    """The whole page over one desk."""
    import gradio as gr

    from zimage_gui.ui.browser import folder_browser
    from zimage_gui.ui.frame import Frame
    from zimage_gui.ui.tabs.cache import CacheTab
    from zimage_gui.ui.tabs.convert import ConvertTab
    from zimage_gui.ui.tabs.dataset import DatasetTab
    from zimage_gui.ui.tabs.generate import GenerateTab
    from zimage_gui.ui.tabs.models import ModelsTab
    from zimage_gui.ui.tabs.runs import RunsTab
    from zimage_gui.ui.tabs.training import finetune_tab, lora_tab

    frame = Frame(desk)
    dataset, cache, lora, finetune = DatasetTab(desk), CacheTab(desk), lora_tab(desk), finetune_tab(desk)
    generate, convert, runs, models = GenerateTab(desk), ConvertTab(desk), RunsTab(desk), ModelsTab(desk)
    titles = {
        "Dataset": dataset, "Cache": cache, "LoRA Train": lora, "Finetune": finetune, "Generate": generate,
        "Convert": convert, "Runs": runs, "Models": models,
    }  # fmt: skip
    with gr.Blocks(title="Z-Image studio", analytics_enabled=False, fill_width=True) as page:
        frame.build()
        with gr.Tabs(selected=lora.name) as tabs:
            for title, tab in titles.items():
                with gr.Tab(title, id=tab.name):
                    tab.build(page)
        folder_browser(desk)
        training: list[Form] = [cache.form, cache.text, lora.form, finetune.form]
        dataset.wire_targets([cache.form, lora.form, finetune.form])
        models.wire_targets([*training, generate.form])
        lora.wire_generate(generate, tabs)
        frame.wire(page, [tab.panel for tab in (cache, lora, finetune, generate, convert, runs)])
    return page
