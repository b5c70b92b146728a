"""Starts the window: builds the page and serves it on this machine.

Knows gradio, the desk and who may connect. Knows nothing of what the tabs do. The network rules are here: loopback
unless the user opens it, then only with a password; no telemetry; nothing served but the window's own pictures.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zimage_gui.config.app import GuiConfig

if TYPE_CHECKING:
    import gradio as gr

    from zimage_gui.ui.desk import Desk

# gradio reads these when it is imported, and only these exact words.
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SSR_MODE": "False",
}


def build_app(desk: Desk) -> gr.Blocks:
    """The whole page over one desk."""
    import gradio as gr

    from zimage_gui.ui.browser import folder_browser
    from zimage_gui.ui.frame import Frame
    from zimage_gui.ui.tabs.training import finetune_tab, lora_tab

    frame = Frame(desk)
    tabs: list[tuple[str, Any]] = [("LoRA Train", lora_tab(desk)), ("Finetune", finetune_tab(desk))]
    with gr.Blocks(title="Z-Image studio", analytics_enabled=False, fill_width=True) as page:
        frame.build()
        with gr.Tabs():
            for title, tab in tabs:
                with gr.Tab(title, id=tab.name):
                    tab.build(page)
        folder_browser(desk)
        frame.wire(page, [tab.panel for _, tab in tabs])
    return page
