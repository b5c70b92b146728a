"""The strength of a LoRA where no tensor says it: PEFT's header or config, z-image-train's sidecar.

Knows those three texts. It must not know tensors.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_gui.errors import Problem

HEADER_KEY = "lora_adapter_metadata"
_TEXT_LIMIT = 1024 * 1024
# What is left of a pattern that names a module as text.
_PLAIN = re.compile(r"[\w.\-]+")


class StrengthError(Exception):
    """A header, config or sidecar that says no strength; the problem is for the user."""

    def __init__(self, value: str, rule: str, remedy: str) -> None:
        super().__init__(rule)
        self.problem = Problem("", value, rule, remedy)


@dataclass(frozen=True)
class Alpha:
    """The alpha a header or sidecar gives a module; rslora divides by √rank instead of rank."""

    value: float | None = None
    rslora: bool = False

    def resolve(self, in_tensor: float | None, rank: int) -> float:
        if in_tensor is not None:
            return in_tensor
        if self.value is None:
            return float(rank)
        return self.value * rank**0.5 if self.rslora else self.value


@dataclass(frozen=True)
class Alphas:
    """The alphas of a file by module; `rank`: the one rank that all modules must have."""

    default: float | None = None
    pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    rank: int | None = None

    def of(self, path: str) -> Alpha:
        """A pattern names a module by its whole path or its end. It is compared as text: a regular expression
        out of a downloaded file could run for ever."""
        for name, value in self.pattern:
            if path == name or path.endswith(f".{name}"):
                return Alpha(value, self.rslora)
        return Alpha(self.default, self.rslora)


def from_header(path: Path, metadata: Mapping[str, str]) -> Alphas:
    """From the header that diffusers writes, whose keys are `transformer.lora_alpha`, …"""
    text = metadata.get(HEADER_KEY)
    if text is None:
        return Alphas()
    try:
        found = json.loads(text)
        return _from_peft({name.removeprefix("transformer."): value for name, value in found.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        rule = f"its {HEADER_KEY} header is not the JSON that PEFT writes{_said(error)}"
        raise StrengthError(str(path), rule, "Save or download the file again") from error


def from_peft_config(path: Path) -> Alphas:
    """From the `adapter_config.json` that PEFT itself writes beside the weights, if there is one."""
    config = path.with_name("adapter_config.json")
    try:
        return _from_peft(_read(config))
    except FileNotFoundError:
        return Alphas()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        rule = f"{config.name} beside it does not say alpha as PEFT does{_said(error)}"
        raise StrengthError(str(path), rule, "Correct it, or move it away") from error


def sidecar_path(path: Path) -> Path:
    """Where z-image-train keeps rank and alpha of the LoRA at `path`."""
    return path.with_name(f"{path.stem}.lora.json")


def from_sidecar(path: Path, text: str = "") -> Alphas:
    """From z-image-train's sidecar: `rank`, and `alpha`, which is the rank when it is missing.

    text: what it holds; empty: the file beside `path` is read."""
    sidecar = sidecar_path(path)
    try:
        found = json.loads(text) if text else _read(sidecar)
        rank = found.get("rank")
        if rank is not None and (type(rank) is not int or rank < 1):
            raise ValueError("rank must be a whole number of at least 1")
        if rank is None and "alpha" not in found:
            raise ValueError("both are missing")
        return Alphas(_finite(found.get("alpha", rank)), rank=rank)
    except FileNotFoundError as error:
        rule = f"its strength is written in {sidecar.name}, which is not beside it"
        raise StrengthError(str(path), rule, f"Put {sidecar.name} into the same folder") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        rule = f"{sidecar.name} does not hold the numbers rank and alpha{_said(error)}"
        raise StrengthError(str(path), rule, "Write the trainer's sidecar again") from error


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = json.loads(file.read(_TEXT_LIMIT).decode("utf-8"))
    if not isinstance(found, dict):
        raise TypeError("not a table")
    return found


def _from_peft(values: Mapping[str, Any]) -> Alphas:
    pattern = values.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise TypeError("alpha_pattern is no table")
    alpha = values.get("lora_alpha")
    pairs = tuple((_plain(name), _finite(value)) for name, value in pattern.items())
    return Alphas(None if alpha is None else _finite(alpha), pairs, values.get("use_rslora") is True)


def _plain(pattern: str) -> str:
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not _PLAIN.fullmatch(name):
        raise ValueError(f"its alpha_pattern {pattern[:80]!r} is a regular expression")
    return name


def _finite(value: object) -> float:
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{value} is no number")
    return number


def _said(error: Exception) -> str:
    return f" ({error})" if str(error) and not isinstance(error, json.JSONDecodeError) else ""
