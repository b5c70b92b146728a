"""Generating from other programs: two named endpoints beside the page, for gradio_client and plain HTTP.

Knows gradio, the schema and the desk. Whoever can reach the window can call them, as they can press its
buttons; nothing is written but what a press on Generate writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from zimage_gui.config.build import build
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.schema import options_of
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.jobs.state import RunState, judge
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.pictures import url

LOOK_EVERY = 0.2
ANSWER_EVERY = 1.0
"""Seconds between two answers while nothing changes, so that a connection is seen to live."""
BESIDE = "beside_training"
"""The one word in the table that is no option: make pictures even while a training runs."""
_MODELS = "models"


def _without_a_terminal(config: GenerateConfig) -> list[Problem]:
    if not config.interactive:
        return []
    return [Problem("interactive", "true", "reads from a terminal, and here is none", "Give a prompt")]


class Api:
    """`generate` makes pictures and answers until they are there; `cancel` ends a request."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        """Inside the page's Blocks."""
        api(self.generate, api_name="generate", concurrency_limit=None)
        api(self.cancel, api_name="cancel")

    def generate(self, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Options of the command `generate` by name; models that are not named are those of the form.

        Every answer says the run's name, its state and the pictures so far; the last one is whole.
        """
        try:
            beside = isinstance(options, dict) and options.pop(BESIDE, False) is True
            folder = self.desk.generate(self._config(options), beside_training=beside)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        shown, told = None, 0.0
        while True:
            state = judge(folder)
            answer = self._answer(folder, state)
            now = time.monotonic()
            if answer != shown or now - told > ANSWER_EVERY:
                shown, told = answer, now
                yield answer
            if state is None or state.ended:
                return
            time.sleep(LOOK_EVERY)

    def cancel(self, run: str) -> bool:
        """Stops a request within one step, or takes back one that waits; false when there is none such."""
        folder = self.desk.folder_of(run)
        if folder is None:
            return False
        self.desk.stop(folder)
        return True

    def _config(self, options: Mapping[str, Any]) -> GenerateConfig:
        if not isinstance(options, dict):
            raise UserError.one("options", str(options)[:80], "must be a table", 'Write {"prompt": "a fox"}')
        form = self.desk.drafts.load("generate")
        known = options_of(GenerateConfig).values()
        models = {} if options.get("model_dir") else {
            option.name: form[option.name]
            for option in known
            if option.section == _MODELS and form.get(option.name)
        }  # fmt: skip
        config = build(GenerateConfig, {**models, **options, "runs_dir": self.desk.runs_dir})
        raise_if_any([*config.problems(), *_without_a_terminal(config)])
        return config

    def _answer(self, folder: Path, state: RunState | None) -> dict[str, Any]:
        view = self.desk.readers.of(folder).poll()
        pictures = []
        for sample in view.samples:
            path = folder / sample.path
            served = self.desk.pictures.published(path)
            pictures.append(
                {
                    "file": str(path),
                    "url": url(served) if served is not None else "",
                    "prompt": sample.prompt,
                    "seed": sample.seed,
                }
            )
        return {
            "run": folder.name,
            "state": state.state if state is not None else "gone",
            "message": state.message if state is not None else "",
            "pictures": pictures,
        }
