"""A grid being made: each picture once, those that lie there already not again, and the sheets at the end.

Knows the order of cells, the names that make a grid resumable, and sheets. It must not know how a picture is
sampled or how a sheet is drawn.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.generate_job import Painter, sentence, tell_choices
from zimage_gui.engine.generate_plan import batches, lora_choices
from zimage_gui.engine.generator import Generator, PictureRequest, lora_stamps
from zimage_gui.engine.grid import Cell, Grid, Place, grid_of
from zimage_gui.engine.model_key import ModelKey
from zimage_gui.engine.picture_files import PictureFiles, settings_of, stamp
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.engine.sheet import sheet_of
from zimage_gui.events import Note, Run, Stage

_PRINT = re.compile(r"_([0-9a-f]{12})\.png$")
_LONGEST_WORDS = 60
GRID_OPTIONS = ("grid_x", "grid_y", "grid_z", "compare_lora")

Ready = Callable[[GenerateConfig], Generator]


@dataclass
class _Todo:
    """A picture to make and every cell that shows it: strength 0 and no LoRA may be the same one."""

    key: str
    cells: list[Cell] = field(default_factory=list)

    @property
    def request(self) -> PictureRequest:
        return self.cells[0].request


class GridJob:
    """`ready` gives the generator with the models that some options name, `key_of` says which these are."""

    def __init__(
        self, config: GenerateConfig, run: Run, ready: Ready, key_of: Callable[[GenerateConfig], ModelKey]
    ) -> None:
        self.config = config
        self.run = run
        self._ready = ready
        self._models_of = cache(key_of)
        self.files = PictureFiles(config, run)
        self._made: dict[tuple[int, Place], Path] = {}
        self._key_of: dict[tuple[int, Place], str] = {}

    def make(self, lines: Sequence[PromptLine]) -> list[Path]:
        """Every picture and every sheet; a stop leaves the sheets with what is there by then."""
        grid = grid_of(self.config, lines)
        seeds = [cell.request for cell in grid.cells if cell.place == (0, 0, 0)]
        self.files.prepare()
        generator = self._ready(grid.cells[0].config)
        painter = Painter(self.config, self.run, generator)
        tell_choices(self.config, self.run, generator, lines, seeds)
        todo = self._todo(grid)
        try:
            if todo:
                painter.encode([one.request for one in todo])
                steps = sum(len(one.request.sigmas) - 1 for one in todo)
                self._make_all(todo, painter, steps)
        finally:
            painter.steps.remove()
            self._sheets(grid)
        return self.files.written

    def _todo(self, grid: Grid) -> list[_Todo]:
        """What is not there yet. What is, from an earlier run of the same grid, is told."""
        there = {} if self.config.overwrite else dict(_pictures_in(self.files.folder))
        todo: dict[str, _Todo] = {}
        found = 0
        for cell in grid.cells:
            models = (self._models_of(cell.config), self.config.vae_dtype)
            key = _print(models, lora_stamps(lora_choices(cell.config)), cell.request)
            self._key_of[cell.sheet, cell.place] = key
            path = there.get(key)
            if path is not None and _is_whole(path):
                found += 1
                self._made[cell.sheet, cell.place] = path
                self.files.tell(path, cell.request.prompt, cell.request.seed)
            else:
                todo.setdefault(key, _Todo(key)).cells.append(cell)
        if found:
            self.run.emit(Note(text=f"{found} of {len(grid.cells)} pictures are there already"))
        return list(todo.values())

    def _make_all(self, todo: Sequence[_Todo], painter: Painter, steps: int) -> None:
        begun = False
        for _, group in groupby(todo, key=lambda one: _models(one.cells[0].config)):
            waiting = list(group)
            own = waiting[0].cells[0].config
            painter.generator = self._ready(own)
            painter.set_loras(own)
            painter.load([one.request for one in waiting])
            if not begun:
                painter.begin(steps, sentence(len(todo), painter.generator.device))
                begun = True
            by_request = {one.request: one for one in waiting}
            for batch in batches(list(by_request), self.config.batch_size):
                latents = painter.paint(batch)
                for request, latent in zip(batch, latents, strict=False):  # none when skipped
                    (image,) = painter.generator.decode(latent[None])
                    self._save(image, by_request[request], painter.generator)

    def _save(self, image: Image.Image, done: _Todo, generator: Generator) -> None:
        cell = done.cells[0]
        choices = lora_choices(cell.config)
        settings = settings_of(self.config, generator.key.files, choices, cell.request)
        words = re.sub(r"[^\w.+-]+", "-", cell.name)[:_LONGEST_WORDS].strip("-.")
        name = f"{stamp()}_{cell.request.seed}_{words}_{done.key}.png"
        path = self.files.picture(image, name, settings)
        for one in done.cells:
            self._made[one.sheet, one.place] = path

    def _sheets(self, grid: Grid) -> None:
        """Draws each sheet that has a picture; one of an earlier run of the same grid is replaced."""
        there = dict(_pictures_in(self.files.folder))
        for number, sheet in enumerate(grid.sheets):
            pictures = {place: path for (own, place), path in self._made.items() if own == number}
            if not pictures:
                continue
            self.run.emit(Stage(name="sheet", text="Drawing the sheet"))
            cells = [cell for cell in grid.cells if cell.sheet == number]
            first = next(cell for cell in cells if cell.place == (0, 0, 0))
            key = _print(*(self._key_of[cell.sheet, cell.place] for cell in cells))
            path = there.get(key, self.files.folder / f"{stamp()}_{sheet.seed}_grid_{key}.png")
            image = sheet_of(pictures, sheet.words, sheet.title)
            self.files.picture_at(path, image, self._settings(first))

    def _settings(self, first: Cell) -> dict[str, Any]:
        """What makes the sheet again: its first picture's settings and the axes."""
        choices = lora_choices(self.config)
        files = self._models_of(first.config).files
        axes = {name: value for name in GRID_OPTIONS if (value := getattr(self.config, name))}
        return settings_of(self.config, files, choices, first.request) | axes


def _print(*parts: object) -> str:
    """Twelve digits that differ when any part does: of a picture, all that it depends on."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _models(config: GenerateConfig) -> tuple[object, ...]:
    return config.dit, config.lora_weight, config.lora_multiplier


def _pictures_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Pictures of grids in the folder, by the digits at the end of their names."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _PRINT.search(path.name)
        if match is not None and path.is_file():
            yield match[1], path


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True
