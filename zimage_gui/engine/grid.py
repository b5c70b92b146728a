"""A grid of pictures before any is made: its sheets, its cells, and the order that loads the least.

Knows options, axes and requests. It must not know models in memory, files to write or how a sheet is drawn.
"""

import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.grid_parts import LORA_SWITCH, Axis
from zimage_gui.engine.generate_plan import lora_problems, requests_of
from zimage_gui.engine.generator import PictureRequest
from zimage_gui.engine.model_files import find_models
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.engine.wildcards import Wildcards
from zimage_gui.errors import Problem
from zimage_gui.model.weights import model_problems

_MODEL_AXES = ("dit", "lora_weight", "lora_multiplier", LORA_SWITCH)
"""What a cell takes from its options; everything else is a matter of its line."""
_LINE_FIELDS = {"infer_steps": "steps"}
Place = tuple[int, int, int]
"""Which value of x, y and z, from 0."""


@dataclass(frozen=True)
class Cell:
    """One picture: on which sheet and where, which models and LoRAs its options name, and its request."""

    sheet: int
    place: Place
    config: GenerateConfig
    request: PictureRequest
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.words)


@dataclass(frozen=True)
class Sheet:
    """The pictures of one prompt and one place in the count: words of columns, rows and blocks (none where
    there is one), the prompt they share, and the seed of the first."""

    title: str
    words: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    seed: int


@dataclass(frozen=True)
class Grid:
    axes: tuple[Axis, ...]
    sheets: tuple[Sheet, ...]
    cells: tuple[Cell, ...]
    """In the order of making: each transformer once, and under it each set of LoRAs once."""


def grid_of(config: GenerateConfig, lines: Sequence[PromptLine]) -> Grid:
    """All pictures of all prompts. Raises UserError when a prompt cannot be resolved."""
    axes = config.axes()
    words = {axis.direction: axis.words for axis in axes}
    heads = (words.get(0, ()), words.get(1, ()), words.get(2, ()))
    sheets: list[Sheet] = []
    cells: list[Cell] = []
    for line in lines:
        seed = line.seed if line.seed is not None else config.seed
        # Fixed here: the cells of a sheet must not each take a random one.
        seeded = replace(line, seed=secrets.randbits(32) if seed is None else seed)
        first = len(sheets)
        for place, named in _places(axes):
            own = models_of(config, named)
            requests = requests_of(own, [_line(seeded, named)])
            for number, request in enumerate(requests):
                if first + number == len(sheets):
                    title = _title({axis.name for axis in axes}, line, request)
                    sheets.append(Sheet(title, heads, request.seed))
                label = tuple(axis.words[place[axis.direction]] for axis in axes)
                cells.append(Cell(first + number, place, own, request, label))
    return Grid(axes, tuple(sheets), tuple(_in_order(cells)))


def _title(varied: set[str], line: PromptLine, request: PictureRequest) -> str:
    """The prompt of all cells: as it was written where each seed makes its own choices in it."""
    if "prompt" in varied:
        return ""
    return line.prompt if "seed" in varied else request.prompt


def models_of(config: GenerateConfig, named: dict[str, Any]) -> GenerateConfig:
    """The options with the models and LoRAs of one cell, and without any grid."""
    changes: dict[str, Any] = {"grid_x": None, "grid_y": None, "grid_z": None, "compare_lora": False}
    for name in ("dit", "lora_weight", "lora_multiplier"):
        if name in named:
            changes[name] = named[name]
    loras = changes.get("lora_weight", config.lora_weight)
    strengths = changes.get("lora_multiplier", config.lora_multiplier)
    if "lora_multiplier" in named and len(strengths) == 1:
        strengths = strengths * len(loras)  # one number is every LoRA's
    changes["lora_multiplier"] = strengths[: len(loras)]
    if named.get(LORA_SWITCH) is False:
        changes |= {"lora_weight": (), "lora_multiplier": ()}
    return config.with_(**changes)


def grid_problems(config: GenerateConfig) -> list[Problem]:
    """What is wrong with the models, LoRAs and prompts that only the axes name."""
    axes = config.axes()
    own = [axis for axis in axes if axis.name in _MODEL_AXES]
    variants = [models_of(config, named) for _, named in _places(own)] if own else []
    found: list[Problem] = []
    for variant in {(one.dit, one.lora_weight): one for one in variants}.values():
        files, absent = find_models(variant, "transformer")
        found += absent or model_problems(files.dit, None, None)
        if not any(problem.option == "dit" for problem in found):
            found += lora_problems(variant, files.dit)
    wildcards = Wildcards(config.wildcards_dir)
    prompts = [text for axis in axes if axis.name == "prompt" for text in axis.values]
    found += [problem for text in prompts for problem in wildcards.problems(text)]
    return list(dict.fromkeys(found))


def _places(axes: Sequence[Axis]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every place, and the value of each axis there by its name."""
    for indices in itertools.product(*(range(len(axis.values)) for axis in axes)):
        at = {axis.direction: index for axis, index in zip(axes, indices, strict=True)}
        named = {axis.name: axis.values[index] for axis, index in zip(axes, indices, strict=True)}
        yield (at.get(0, 0), at.get(1, 0), at.get(2, 0)), named


def _line(line: PromptLine, named: dict[str, Any]) -> PromptLine:
    """The line with the values of one cell, which win over what it says itself."""
    changes = {
        _LINE_FIELDS.get(name, name): value for name, value in named.items() if name not in _MODEL_AXES
    }
    return replace(line, **changes)


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Sorted by transformer, then by LoRAs, in the order in which each is first named."""
    dits: dict[Path | None, int] = {}
    loras: dict[object, int] = {}

    def key(cell: Cell) -> tuple[int, int]:
        own = cell.config
        dit = dits.setdefault(own.dit, len(dits))
        return dit, loras.setdefault((own.lora_weight, own.lora_multiplier), len(loras))

    keys = [key(cell) for cell in cells]
    return [cell for _, cell in sorted(zip(keys, cells, strict=True), key=lambda pair: pair[0])]
