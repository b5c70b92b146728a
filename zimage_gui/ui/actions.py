"""What a button inside HTML sends, and the small script that sends it.

Knows the protocol between `window.js`/`html.button` and Python: an event named `act` with the button's data.
Knows nothing of what the actions do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

# `copy` is answered in the browser; everything else goes to Python, after the question if the button has one.
# The quoted 'act' is also how gr.HTML learns that it has such an event.
ACT_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (!button || button.disabled) return;
  const data = {...button.dataset};
  if (data.action === 'copy') { window.zgCopy(data.copy, button); return; }
  if (data.confirm && !window.confirm(data.confirm)) return;
  trigger('act', data);
  for (const wait of [500, 1500]) setTimeout(() => window.zgPoll && window.zgPoll(), wait);
});
"""


# Handlers are no public interface: gradio then leaves them out of its API page. QUIET ones draw no spinner.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}


@dataclass(frozen=True)
class Action:
    """One press: its name and the text that came with it (from a browser, so to be checked before use).

    No text may be called `path`: gradio takes any such data for an uploaded file and refuses it.
    """

    name: str
    data: dict[str, str]

    def get(self, key: str) -> str:
        return self.data.get(key, "")


def script(name: str) -> str:
    """A script that lies beside this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def action_of(event: gr.EventData) -> Action:
    """The action of an `act` event; anything that is no text is dropped."""
    found: Any = getattr(event, "_data", None)
    data = (
        {str(key): value for key, value in found.items() if isinstance(value, str)}
        if isinstance(found, dict)
        else {}
    )
    return Action(data.pop("action", ""), data)


def active_html(value: str = "", **more: Any) -> gr.HTML:
    """HTML whose buttons report themselves; no gradio styles inside, ours apply."""
    return gr.HTML(value, js_on_load=ACT_SCRIPT, apply_default_css=False, **more)


def plain_html(value: str = "", **more: Any) -> gr.HTML:
    return gr.HTML(value, **{"js_on_load": None, "apply_default_css": False, **more})


def on_act(blocks: list[Any], handler: Any, inputs: Any, outputs: Any, **more: Any) -> None:
    """The same handler for the actions of several blocks; gr.on does not know custom events."""
    for block in blocks:
        block.act(handler, inputs, outputs, **{**QUIET, **more})
