"""The LoRA rows of the Generate form: one file and one strength per row, as many rows as are needed.

Knows gradio and the two list options `lora_weight` and `lora_multiplier`, which the rows stand for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_gui.ui.actions import QUIET
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.form import Form, Updates
from zimage_gui.ui.page import Page
from zimage_gui.ui.values import Raw

ROWS = 10
FILES, STRENGTHS = "lora_weight", "lora_multiplier"
SLASHES = ("/", "\\")


class LoraForm(Form):
    """A form whose LoRA lists are rows. A row shows itself when the one before it is filled."""

    def build_rows(self, desk: Desk) -> None:
        self.desk = desk
        self.hidden |= {FILES, STRENGTHS}
        self.rows: list[Any] = []
        self.files: list[Any] = []
        self.strengths: list[Any] = []
        for number in range(ROWS):
            with gr.Row(visible=number == 0, elem_classes=["zg-actions"]) as row:
                file = gr.Dropdown(
                    known_loras(desk) if number == 0 else [],
                    label=f"LoRA {number + 1}",
                    allow_custom_value=True,
                    value=None,
                    scale=5,
                    min_width=200,
                    interactive=True,
                    elem_id=f"{self.name}-lora-{number}",
                    info="A trained one from the list, or the path of any .safetensors file.",
                )
                strength = gr.Textbox(
                    "1",
                    label="Strength",
                    info="0 to 1 and more",
                    scale=1,
                    min_width=90,
                    interactive=True,
                    elem_id=f"{self.name}-strength-{number}",
                )
            self.rows.append(row)
            self.files.append(file)
            self.strengths.append(strength)
        self.extras = [*self.files, *self.strengths]

    def wire(self, page: Page) -> None:
        super().wire(page)
        gr.on([file.change for file in self.files], self._grow, set(self.files), self.rows, **QUIET)
        page.first(self._choices)

    def _choices(self) -> Updates:
        """The known LoRAs in every row, and as many rows as the saved settings fill."""
        choices = known_loras(self.desk)
        filled = len(_lines(self.drafts.load(self.name).get(FILES)))
        rows: Updates = {row: gr.update(visible=index <= filled) for index, row in enumerate(self.rows)}
        return {**rows, **{file: gr.update(choices=choices) for file in self.files}}

    def _grow(self, data: Mapping[Any, Any]) -> Updates:
        """Rows up to the first empty one after the last filled one."""
        filled = [index for index, file in enumerate(self.files) if data[file]]
        shown = (filled[-1] if filled else -1) + 1
        return {row: gr.update(visible=index <= shown) for index, row in enumerate(self.rows)}

    def raw(self, data: Mapping[Any, Any]) -> dict[str, Raw]:
        contents = super().raw(data)
        pairs = [
            (str(data[file]).strip(), str(data[strength] or "1").strip())
            for file, strength in zip(self.files, self.strengths, strict=True)
            if data.get(file)
        ]
        return {
            **contents,
            FILES: "\n".join(path for path, _ in pairs),
            STRENGTHS: "\n".join(value for _, value in pairs),
        }

    def put(self, contents: Mapping[str, Raw], *, rest: bool = False) -> Updates:
        updates = super().put(contents, rest=rest)
        if FILES not in contents and not rest:
            return updates
        paths = _lines(contents.get(FILES))
        strengths = [*_lines(contents.get(STRENGTHS)), *["1"] * ROWS]
        for index, (file, strength) in enumerate(zip(self.files, self.strengths, strict=True)):
            given = index < len(paths)
            updates[file] = gr.update(value=paths[index] if given else None)
            updates[strength] = gr.update(value=strengths[index] if given else "1")
        return updates


def _lines(value: Raw) -> list[str]:
    return [line.strip() for line in str(value or "").splitlines() if line.strip()][:ROWS]


def known_loras(desk: Desk) -> list[tuple[str, str]]:
    """LoRAs that runs of this window have made, newest first: (words, path)."""
    found: dict[str, str] = {}
    for state in desk.of_command("train-lora", "train"):
        view = desk.readers.of(state.folder).poll()
        made = [view.folder / point.path for point in reversed(view.checkpoints) if point.what == "lora"]
        for path in [*map(Path, state.status.results), *made]:
            if path.suffix == ".safetensors" and path.is_file():
                found.setdefault(str(path), f"{path.stem}  ({path.parent.name})")
    return [(words, path) for path, words in found.items()]


def rows_of(desk: Desk, names: Sequence[str], strengths: Sequence[str]) -> tuple[dict[str, Raw], list[str]]:
    """Rows for the LoRAs that a picture names, with their ending or, as A1111 does, without, each at its own
    strength (1 where none is said); and the names that are not known here."""
    known = {Path(path).name: path for _, path in reversed(known_loras(desk))}
    known |= {Path(path).stem: path for path in known.values()}
    given = [*strengths, *["1"] * (len(names) - len(strengths))]
    rows: list[tuple[str, str]] = []
    missing: list[str] = []
    for name, strength in zip(names, given, strict=False):
        path = name if _is_here(name) else known.get(Path(name).name)
        if path is None:
            missing.append(name)
        else:
            rows.append((path, strength))
    files, values = (("\n".join(column)) for column in zip(*rows, strict=True)) if rows else ("", "")
    return {FILES: files, STRENGTHS: values}, missing


def _is_here(name: str) -> bool:
    """Whether a picture's word is a file as it stands. A picture may come from anyone: Windows would sign in
    to any machine that a name with two slashes leads to."""
    try:
        return not (name[:1] in SLASHES and name[1:2] in SLASHES) and Path(name).is_file()
    except OSError:  # longer than a name can be
        return False
