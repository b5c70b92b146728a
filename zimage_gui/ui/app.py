"""Starts the window: builds the page and serves it on this machine.

Knows gradio, the desk and who may connect. Knows nothing of what the tabs do. The network rules are here:
loopback unless the user opens it, then only with a password; no telemetry; nothing served but the window's
own pictures.
"""

from __future__ import annotations

import os
import socket
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage_gui.config.app import LOOPBACK, GuiConfig
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Run

if TYPE_CHECKING:
    from zimage_gui.ui.desk import Desk
    from zimage_gui.ui.form import Form
    from zimage_gui.ui.page import Page

TITLE = "Z-Image studio"

# gradio reads these when it is imported, and only these exact words.
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def build_app(desk: Desk) -> Page:
    """The whole page over one desk."""
    import gradio as gr

    from zimage_gui.ui.api import Api
    from zimage_gui.ui.browser import folder_browser
    from zimage_gui.ui.frame import Frame
    from zimage_gui.ui.live import Live
    from zimage_gui.ui.page import Page
    from zimage_gui.ui.tabs.cache import CacheTab
    from zimage_gui.ui.tabs.convert import ConvertTab
    from zimage_gui.ui.tabs.dataset import DatasetTab
    from zimage_gui.ui.tabs.generate import GenerateTab
    from zimage_gui.ui.tabs.models import ModelsTab
    from zimage_gui.ui.tabs.runs import RunsTab
    from zimage_gui.ui.tabs.training import finetune_tab, lora_tab

    live = Live()
    frame, dataset, models = Frame(desk), DatasetTab(desk), ModelsTab(desk)
    cache, lora, finetune = CacheTab(desk, live), lora_tab(desk, live), finetune_tab(desk, live)
    generate, convert, runs = GenerateTab(desk, live), ConvertTab(desk, live), RunsTab(desk, live)
    titles: dict[str, Any] = {
        "Dataset": dataset, "Cache": cache, "LoRA Train": lora, "Finetune": finetune, "Generate": generate,
        "Convert": convert, "Runs": runs, "Models": models,
    }  # fmt: skip
    page = Page(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400))
    with page:
        frame.build(live)
        with gr.Tabs(selected=lora.name) as tabs:
            for title, tab in titles.items():
                with gr.Tab(title, id=tab.name):
                    tab.build(page)
        folder_browser(desk)
        live.build()
        Api(desk).build()
        training: list[Form] = [cache.form, cache.text, lora.form, finetune.form]
        dataset.wire_targets([cache.form, lora.form, finetune.form])
        models.wire_targets([*training, generate.form])
        for training_tab in (lora, finetune):
            training_tab.wire_generate(generate, tabs)
    return page


def run(config: GuiConfig, run: Run) -> list[Path]:
    """Serve the window until the user stops it (Ctrl-C). Raises UserError before anything is served.

    Runs that were started go on after the window is closed and are shown again by the next one.
    """
    logins = config.credentials()
    check_address(config.address)
    from zimage_gui.ui.desk import Desk
    from zimage_gui.ui.start import open_project

    desk = Desk(config)
    os.environ.update(ENVIRONMENT)
    # Uploads land here; beside the drafts, so that they share the runs' disk and are cleared with it.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(desk.drafts.folder.parent / "uploads"))
    for died in desk.found.died:
        run.emit(Note(text=f"{died.folder.name}: {died.message or 'it ended without a word, see its log'}"))
    open_project(desk, run)
    page = build_app(desk)
    desk.start()
    try:
        address = serve(page, desk, config, logins)
        if config.port and not address.rstrip("/").endswith(f":{config.port}"):
            run.emit(Note(text=f"Port {config.port} is taken or not allowed; the next free one is used"))
        run.emit(Note(text=f"The window is open at {address}  (Ctrl-C closes it; runs go on)"))
        if not config.no_browser:
            open_browser(address)
        while not run.stop_requested():
            time.sleep(0.3)
    finally:
        page.close(verbose=False)
        desk.close()
    return []


def serve(page: Page, desk: Desk, config: GuiConfig, logins: list[tuple[str, str]]) -> str:
    """Launch the page and return its address."""
    import gradio as gr

    from zimage_gui.ui.theme import CSS_FILE, SCRIPT_FILE, theme

    gr.set_static_paths([desk.pictures.folder])
    page.queue(default_concurrency_limit=8)
    _, address, _ = page.launch(
        server_name=config.address,
        server_port=free_port(config.address, config.port),
        auth=logins or None,
        app_kwargs={"middleware": host_check(config)},
        theme=theme(),
        css_paths=[CSS_FILE],
        head=f"<script>{SCRIPT_FILE.read_text(encoding='utf-8')}</script>",
        footer_links=["settings"],
        max_file_size="4gb",
        run_history=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
    )
    return address


def host_check(config: GuiConfig) -> list[Any]:
    """On loopback only requests that name this machine are answered: a foreign page cannot reach the window
    through a name of its own that it points here (DNS rebinding)."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if config.address not in LOOPBACK:
        return []
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "::1"])]


def check_address(address: str) -> None:
    """Raises UserError when this machine cannot listen on the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            remedy = "Leave host out for this machine alone, or use listen for the network"
            raise UserError.one("host", address, "is no address of this machine", remedy) from error


def free_port(address: str, wanted: int, tries: int = 100) -> int:
    """The wanted port or the next free one. Raises UserError when all are taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in range(wanted, min(wanted + tries, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # there this option would let two windows share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError.one(
        "port",
        wanted,
        f"and the {tries} after it are taken or may not be used on {address}",
        "Choose another",
    )


def open_browser(address: str) -> None:
    """Show the page; on a machine without a browser nothing happens, the address was printed."""
    try:
        webbrowser.open(address)
    except webbrowser.Error:
        return
