"""The page as gradio sends it to a browser: with the values that were saved last already in it.

Knows gradio's Blocks and its config. Restoring values by a load event would show defaults first and would
walk the whole page once per field; here the fields are filled before the page leaves the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

First = Callable[[], dict[Any, Any]]
"""Gives, per component, the `gr.update` that its first appearance should already contain."""


class Page(gr.Blocks):
    """Blocks whose config carries the current answer of every registered `First`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._firsts: list[First] = []
        self._plain: dict[str, Any] = {}
        super().__init__(*arguments, **more)

    def first(self, given: First) -> None:
        """Register what a page shows when it is opened."""
        self._firsts.append(given)

    @property
    def config(self) -> Any:
        """gradio reads this at every opening of the page and copies it."""
        if not self._plain or not self._firsts:
            return self._plain
        changed: dict[int, dict[str, Any]] = {}
        for given in self._firsts:
            for component, update in given().items():
                properties = {key: value for key, value in update.items() if key != "__type__"}
                changed.setdefault(component._id, {}).update(properties)
        components = [
            {**one, "props": {**one["props"], **changed[one["id"]]}} if one["id"] in changed else one
            for one in self._plain["components"]
        ]
        return {**self._plain, "components": components}

    @config.setter
    def config(self, plain: Any) -> None:
        self._plain = plain
