"""Generate's options for many pictures from one request: grids, with and without LoRA, wildcards.

This module knows how an axis is written and which options may be one; it must not know how pictures are
made, ordered or drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError, ValidationInfo, field_validator

from zimage_gui.config.schema import Option, Options, When, option, options_of, show
from zimage_gui.errors import Problem

LORA_SWITCH = "lora"
"""The axis that is no option: with all LoRAs, and without any."""
_SWITCH = {"on": True, "off": False, "with": True, "without": False, "true": True, "false": False}
AXES = (
    "dit", "lora_weight", "lora_multiplier", "seed", "infer_steps", "guidance_scale", "flow_shift", "sampler",
    "scheduler", "cfg_truncation", "cfg_normalization", "strength", "prompt",
)  # fmt: skip
"""Options that a grid may vary."""
_OF_GUIDANCE = ("cfg_truncation", "cfg_normalization")
MOST_CELLS = 1000
_RANGE = re.compile(r"(-?[\d.]+)\.\.(-?[\d.]+)(?::([\d.]+))?")


@dataclass(frozen=True)
class Axis:
    """One direction of a grid (0 columns, 1 rows, 2 blocks): the option `name` (or LORA_SWITCH), its values,
    and words for each."""

    given_by: str
    name: str
    values: tuple[Any, ...]
    words: tuple[str, ...]
    direction: int = 0


LORA = When(
    "a LoRA is given",
    lambda c: c.lora_weight or any(axis.name == "lora_weight" for axis in c.axes()),
)


class GridOptions(Options):
    """Grids and comparisons."""

    grid_x: str | None = option(
        None,
        section="grid",
        label="Columns",
        help="An option and its values, as lora_multiplier=0,0.5,1 or seed=1..4 or dit=a.safetensors|b.bpk; "
        f"one of {', '.join(AXES)}, or lora=off,on. Values with a comma in them are separated by |.",
    )
    grid_y: str | None = option(
        None, section="grid", label="Rows", help="The same downwards, as infer_steps=4..12:4."
    )
    grid_z: str | None = option(
        None,
        section="grid",
        label="Blocks",
        help="The same again: each value gives a block of its own under the one before.",
        advanced=True,
    )
    compare_lora: bool = option(
        False,
        section="grid",
        label="With and without LoRA",
        help="Every picture twice from the same seed: without the LoRAs and with them. The same as the axis "
        "lora=off,on.",
        aliases=("compare",),
        matters=LORA,
    )
    wildcards_dir: Path | None = option(
        None,
        section="prompt",
        label="Wildcards folder",
        help="Folder of text files: in a prompt, a file's name with two underscores on either side becomes a "
        "line of it, chosen by the seed. {a|b|c} chooses without any file.",
        path="folder",
        aliases=("wildcard_dir", "wildcards"),
        advanced=True,
    )

    @field_validator("grid_x", "grid_y", "grid_z")
    @classmethod
    def _axis(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            axis_of(cls, str(info.field_name), value)
        return value

    def axes(self) -> tuple[Axis, ...]:
        """x, y and z of the grid as far as they are used; empty without one."""
        return tuple(
            replace(axis_of(type(self), name, text), direction=direction)
            for direction, (name, text) in enumerate(self._axis_texts())
            if text is not None
        )

    def _axis_texts(self) -> Iterator[tuple[str, str | None]]:
        compare: str | None = f"{LORA_SWITCH}=off,on" if self.compare_lora else None
        for name in ("grid_x", "grid_y", "grid_z"):
            text = getattr(self, name)
            if text is None and compare is not None:
                yield "compare_lora", compare
                compare = None
            else:
                yield name, text

    def _grid_problems(self, alone: Mapping[str, bool]) -> list[Problem]:
        """What is wrong with the axes. `alone`: options that no grid goes with -> whether they are given."""
        found: list[Problem] = []
        axes = self.axes()
        names = [axis.name for axis in axes]
        if self.compare_lora and self.grid_x and self.grid_y and self.grid_z:
            rule = "needs an axis of its own, and all three are used"
            found.append(Problem("compare_lora", "true", rule, "Leave out grid_z"))
        for axis in axes:
            if names.count(axis.name) > 1 and axis is axes[names.index(axis.name)]:
                rule = f"varies {axis.name}, and so does another axis"
                found.append(Problem(axis.given_by, axis.name, rule, "Leave out one of the two"))
        cells = math.prod(len(axis.values) for axis in axes)
        if cells > MOST_CELLS:
            rule = f"gives {cells} pictures with the other axes; at most {MOST_CELLS} fit a sheet"
            found.append(Problem(axes[-1].given_by, show(len(axes[-1].values)), rule, "Give fewer values"))
        idle = next((axis for axis in axes if axis.name in (LORA_SWITCH, "lora_multiplier")), None)
        if idle is not None and "lora_weight" not in names and not getattr(self, "lora_weight", ()):
            rule = "varies LoRAs, and lora_weight is empty"
            found.append(Problem(idle.given_by, idle.name, rule, "Give a LoRA, or leave it out"))
        found += self._idle_axes(axes)
        given = [name for name, is_given in alone.items() if is_given]
        if axes and given:
            rule = f"does not go with {' and '.join(given)}"
            found.append(Problem(axes[0].given_by, axes[0].name, rule, "Leave out one of the two"))
        return found

    def _idle_axes(self, axes: tuple[Axis, ...]) -> list[Problem]:
        """Axes whose pictures would all be the same; the lines of a prompt file may change that."""
        if getattr(self, "from_file", None) is not None:
            return []
        guided = getattr(self, "guidance_scale", 0) > 0 or any(a.name == "guidance_scale" for a in axes)
        found = []
        for axis in axes:
            if axis.name == "strength" and getattr(self, "image_path", None) is None:
                rule, remedy = "without image_path it changes nothing", "Give a picture to begin from"
            elif axis.name in _OF_GUIDANCE and not guided:
                rule, remedy = "guidance_scale is 0, so it changes nothing", "Give a guidance_scale above 0"
            else:
                continue
            found.append(Problem(axis.given_by, axis.name, rule, remedy))
        return found


def axis_of(cls: type[Options], given_by: str, text: str) -> Axis:
    """An axis from `name=value,value`. Raises ValueError with the rest of a sentence."""
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_").removeprefix("__")
    if not equals:
        raise ValueError("must be an option, = and its values")
    parts = [part.strip() for part in rest.split("|" if "|" in rest else ",")]
    parts = [part for part in parts if part]
    if name in (LORA_SWITCH, "loras"):
        return _switch(given_by, parts)
    known = _known(cls, name)
    if known.kind in ("int", "float"):
        parts = [number for part in parts for number in _range(part, known)]
    if not parts:
        raise ValueError(f"gives {known.name} no value")
    values = tuple(_value(cls, known, part) for part in parts)
    if len(set(values)) != len(values):
        raise ValueError(f"gives {known.name} a value twice")
    return Axis(given_by, known.name, values, tuple(_words(known, value) for value in values))


def _known(cls: type[Options], name: str) -> Option:
    for option_name in AXES:
        known = options_of(cls)[option_name]
        if name in known.spellings:
            return known
    raise ValueError(f"varies {name!r}; a grid can vary {', '.join((*AXES, LORA_SWITCH))}")


def _switch(given_by: str, parts: list[str]) -> Axis:
    if not parts or any(part.lower() not in _SWITCH for part in parts):
        raise ValueError("must be lora=off,on")
    values = tuple(dict.fromkeys(_SWITCH[part.lower()] for part in parts))
    words = tuple("with LoRA" if value else "without LoRA" for value in values)
    return Axis(given_by, LORA_SWITCH, values, words)


def _range(part: str, known: Option) -> list[str]:
    """`1..4` and `0..1:0.25` as the numbers they stand for, both ends included."""
    match = _RANGE.fullmatch(part)
    if match is None:
        return [part]
    texts = (match[1], match[2], match[3] or "1")
    whole = known.kind == "int"
    for what, text in zip(("first number", "last number", "step"), texts, strict=True):
        if whole and "." in text:
            raise ValueError(f"has the range {part}; its {what} is no whole number, as {known.name} is")
    try:
        first, last, step = map(int if whole else float, texts)
    except ValueError:
        raise ValueError(f"has the range {part}, which is none") from None
    # Exact for whole numbers, however long they are; not so where a number is infinite.
    if not (step > 0 and last >= first and (last - first) // step <= MOST_CELLS):
        raise ValueError(f"has the range {part}; it must rise, in at most {MOST_CELLS} steps")
    if whole:
        return [str(number) for number in range(int(first), int(last) + 1, int(step))]
    count = math.floor((last - first) / step + 1e-9)
    return [f"{first + index * step:.10g}" for index in range(count + 1)]


def _value(cls: type[Options], known: Option, part: str) -> Any:
    """One value as the config holds it, by the option's own rule."""
    raw: object = part
    if known.kind == "path":
        raw = Path(part).expanduser().absolute()
    elif known.many:
        raw = tuple(part.split())
    try:
        return getattr(cls(**{known.name: raw}), known.name)
    except ValidationError:
        rule = known.rule().removeprefix("takes a list; each value ")
        raise ValueError(f"gives {known.name} the value {part!r}; it {rule}") from None


def _words(known: Option, value: Any) -> str:
    """How a value stands on the sheet."""
    if known.kind == "path":
        return Path(value[0] if isinstance(value, tuple) else value).stem
    if known.name == "prompt":
        return str(value)
    label = {"lora_multiplier": "LoRA strength"}.get(known.name, known.label)
    return f"{label} {show(value)}"
