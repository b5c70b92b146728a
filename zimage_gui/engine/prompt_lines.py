"""Prompt files: one prompt per line with options behind it, or TOML and JSON tables, as the first seed reads
them.

    a red circle on a white background --w 512 --h 768 --s 20 --d 7 --l 4 --fs 3 --n blurry
    a blue square --sampler res_multistep --scheduler simple --image_path start.png --strength 0.5

Guidance in a prompt file is the first seed's too: 1 and less is off (the option `guidance_scale` acts above
0). Both kinds of prompt file, for `generate` and for pictures during training, mean the same.

Knows this syntax. It must not know models, runs or what the numbers are used for. No torch.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zimage_gui.config.generate_parts import SAMPLERS, SCHEDULERS
from zimage_gui.errors import Problem, UserError

_LONGEST_FILE = 10_000_000
_EDGE = 16
_LARGEST_EDGE = 16384
_HIGHEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class PromptLine:
    """One prompt with what its line sets; None where the run's own option decides. `notes` say what was
    changed or is ignored."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    cfg_truncation: float | None = None
    cfg_normalization: float | None = None
    image_path: Path | None = None
    mask_path: Path | None = None
    strength: float | None = None
    notes: tuple[str, ...] = ()


class _Wrong(Exception):
    """A value that cannot be used: the rest of the sentence."""


def _whole(low: int, high: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,20}", str(value).strip()):
            raise _Wrong(f"must be a whole number, not {str(value)[:40]!r}")
        number = int(str(value))
        if not low <= number <= high:
            raise _Wrong(f"must lie between {low} and {high}, not {number}")
        return number

    return convert


def _number(low: float, high: float) -> Callable[[object], float]:
    def convert(value: object) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(str(value))
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise _Wrong(f"must be a number between {low:g} and {high:g}, not {str(value)[:40]!r}")
        return number

    return convert


def _guidance(value: object) -> float:
    """The users of Turbo write `--l 1` for "no guidance"."""
    number = _number(0, 100)(value)
    return number if number > 1 else 0.0


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong("must be text")
    if any("\ud800" <= char <= "\udfff" for char in value):  # JSON can spell it, no tokenizer takes it
        raise _Wrong("has half a character (a lone surrogate)")
    return value


def _one_of(names: tuple[str, ...]) -> Callable[[object], str]:
    def convert(value: object) -> str:
        name = str(value).strip().lower()
        if name not in names:
            raise _Wrong(f"must be one of {', '.join(names)}, not {str(value)[:40]!r}")
        return name

    return convert


def _file(value: object) -> Path:
    text = _text(value).strip()
    if not text or "\0" in text:
        raise _Wrong("must be a path")
    return Path(text)


# Options that are called the same in a line, in a table and on the command line.
_NAMED: dict[str, tuple[str, Callable[[object], Any]]] = {
    "sampler": ("sampler", _one_of(SAMPLERS)),
    "scheduler": ("scheduler", _one_of(SCHEDULERS)),
    "cfg_truncation": ("cfg_truncation", _number(0, 1)),
    "cfg_normalization": ("cfg_normalization", _number(0, 100)),
    "image_path": ("image_path", _file),
    "mask_path": ("mask_path", _file),
    "strength": ("strength", _number(1e-3, 1)),
}
# Field of PromptLine and how a value becomes it, by the letter in a line.
_LETTERS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "w": ("width", _whole(_EDGE, _LARGEST_EDGE)),
    "h": ("height", _whole(_EDGE, _LARGEST_EDGE)),
    "d": ("seed", _whole(0, _HIGHEST_SEED)),
    "s": ("steps", _whole(1, 1000)),
    "g": ("guidance_scale", _guidance),
    "l": ("guidance_scale", _guidance),
    "fs": ("flow_shift", _number(1e-3, 1000)),
    "n": ("negative_prompt", _text),
    **_NAMED,
}
# The same by the key in a table.
_KEYS = {
    "prompt": ("prompt", _text),
    "negative_prompt": ("negative_prompt", _text),
    "width": _LETTERS["w"],
    "height": _LETTERS["h"],
    "seed": _LETTERS["d"],
    "sample_steps": _LETTERS["s"],
    "guidance_scale": _LETTERS["g"],
    "cfg_scale": _LETTERS["l"],
    "discrete_flow_shift": _LETTERS["fs"],
    **_NAMED,
}
# Options of the first seed's video models.
_IGNORED = (
    "f",
    "i",
    "ei",
    "cn",
    "ci",
    "of",
    "frame_count",
    "end_image_path",
    "control_video_path",
    "control_image_path",
    "one_frame",
)
_OPTION = re.compile(r"\s--(?=[A-Za-z])")


def parse_line(line: str) -> PromptLine:
    """One line. The text before the first ` --x` is the prompt, whatever it looks like.

    Raises ValueError with the rest of a sentence when an option is unknown, unreadable or given twice.
    """
    prompt, *chunks = _OPTION.split(" " + line.strip())
    try:
        _text(prompt)
    except _Wrong as wrong:
        raise ValueError(str(wrong)) from None
    given: list[tuple[str, object]] = []
    for chunk in chunks:
        name, _, value = chunk.strip().partition(" ")
        given.append((name.lower(), value.strip()))
    return _built(prompt.strip(), given, _LETTERS, "--")


def _built(
    prompt: str,
    given: list[tuple[str, object]],
    known: Mapping[str, tuple[str, Callable[[object], Any]]],
    dashes: str,
) -> PromptLine:
    fields: dict[str, Any] = {"prompt": prompt}
    notes: list[str] = []
    wrong: list[str] = []
    seen: set[str] = set()
    # `l` and `cfg_scale` come last: where both are given, they win over `g` and `guidance_scale`.
    for name, value in sorted(given, key=lambda item: item[0] in ("l", "cfg_scale")):
        if name in _IGNORED:
            notes.append(f"{dashes}{name} has no meaning for Z-Image")
            continue
        if name not in known:
            wrong.append(
                f"has the unknown option {dashes}{name}; known are {', '.join(dashes + k for k in known)}"
            )
            continue
        if name in seen:
            wrong.append(f"gives {dashes}{name} twice")
        seen.add(name)
        field, convert = known[name]
        try:
            fields[field] = convert(value)
        except _Wrong as error:
            wrong.append(f"{dashes}{name} {error}")
            continue
        if field == "guidance_scale" and not fields[field] and float(str(value)) not in (0, 1):
            notes.append(f"{dashes}{name} {value} is no guidance: in a prompt file it begins above 1")
    if wrong:
        raise ValueError("; ".join(wrong))
    notes += _whole_edges(fields)
    if not fields["prompt"].strip():
        notes.append("the prompt is empty")
    return PromptLine(**fields, notes=tuple(notes))


def _whole_edges(fields: dict[str, Any]) -> list[str]:
    """Cut width and height to multiples of 16; returns what is to be told of it."""
    notes = []
    for edge in ("width", "height"):
        if edge in fields and fields[edge] % _EDGE:
            whole = fields[edge] // _EDGE * _EDGE
            notes.append(f"{edge} {fields[edge]} becomes {whole}, a multiple of {_EDGE}")
            fields[edge] = whole
    return notes


def read_prompt_file(path: Path, option: str = "from_file") -> list[PromptLine]:
    """All prompts of a .txt, .toml or .json file, in order.

    Raises UserError with every line that cannot be used, or when there is no prompt at all.
    """
    text = _content(path, option)
    reader = {".toml": _from_toml, ".json": _from_json}.get(path.suffix.lower(), _from_text)
    try:
        entries = reader(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError.one(option, str(path), f"cannot be read: {error}", "Correct the file") from error
    lines: list[PromptLine] = []
    problems: list[Problem] = []
    for where, build in entries:
        try:
            lines.append(build())
        except ValueError as error:
            problems.append(Problem(option, str(path), f"{where} {error}", "Correct that entry"))
    if not entries:
        problems.append(Problem(option, str(path), "holds no prompt", "Write one prompt per line"))
    if problems:
        raise UserError(problems)
    return lines


_Entries = list[tuple[str, Callable[[], PromptLine]]]


def _content(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise UserError.one(option, str(path), "is larger than 10 MB", "Is this a prompt file?")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError.one(option, str(path), "does not exist", "Check the path") from None
    except UnicodeDecodeError as error:
        raise UserError.one(
            option, str(path), f"is not UTF-8 text ({error.reason})", "Save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError.one(
            option, str(path), f"cannot be read ({error.strerror})", "Check the path"
        ) from error


def _from_text(text: str) -> _Entries:
    return [
        (f"line {number}", partial(parse_line, line))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _from_table(table: Mapping[str, object]) -> PromptLine:
    if "prompt" not in table:
        raise ValueError("has no prompt")
    given = [(str(name), value) for name, value in table.items() if value is not None]  # JSON's null
    return _built("", given, _KEYS, "")


def _from_toml(text: str) -> _Entries:
    table = tomllib.loads(text).get("prompt")
    if not isinstance(table, dict):
        raise ValueError("it has no [prompt] table")
    common = {name: value for name, value in table.items() if name != "subset"}
    subsets = table.get("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        raise ValueError("prompt.subset must be tables")
    return [
        (f"subset {number}", partial(_from_table, common | subset))
        for number, subset in enumerate(subsets, 1)
    ]


def _from_json(text: str) -> _Entries:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(entry, str | dict) for entry in found):
        raise ValueError("it must be a list of lines or tables")
    return [
        (f"entry {number}", partial(parse_line if isinstance(entry, str) else _from_table, entry))
        for number, entry in enumerate(found, 1)
    ]
