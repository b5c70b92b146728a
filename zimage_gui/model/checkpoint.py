"""A model on disk as one thing: its files, its tensors by name, the config.json beside them.

Knows folders, shards and headers. Must not know torch or what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zimage_gui.burnpack import is_bpk, read_bpk_header
from zimage_gui.errors import Problem, UserError
from zimage_gui.files import Header, TensorInfo, expand_shards, read_header

# Bytes; a real config.json has about one thousand.
LONGEST_CONFIG = 1_000_000
# The largest model of the family has about one thousand; every question to a header costs time per name.
MOST_TENSORS = 20_000

# In the header of a single file: the config.json that its tensors do not tell.
CONFIG_KEY = "zimage_gui_config"

PART_CLASSES = {
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("qwen3", "Qwen3ForCausalLM", "Qwen3Model"),
}


class Crowded(UserError):
    """A sound file with more tensors than any model has."""

    def __init__(self, problem: Problem, header: Header) -> None:
        super().__init__([problem])
        self.header = header


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    info: TensorInfo


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model given by one path; headers only, no tensor is read.

    scales: {weight: its fp8 scale}, once an fp8 file was taken apart; then `places` holds the weights alone.
    """

    path: Path
    option: str
    files: tuple[Path, ...]
    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    settings: Mapping[str, Any]
    scales: Mapping[str, Place] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.info.shape for name, place in self.places.items()}

    @property
    def dtypes(self) -> frozenset[str]:
        return frozenset(place.info.dtype for place in self.places.values())

    def settings_of(self, part: str) -> Mapping[str, Any]:
        """The config.json, unless it says that it describes another part (many files may share a folder), or
        the one that `convert` put into the header of a single file because tensors cannot tell it."""
        return next(filter(None, (_about(part, one) for one in (self.settings, self._inner()))), {})

    def _inner(self) -> Mapping[str, Any]:
        text = self.metadata.get(CONFIG_KEY, "")
        try:
            found = json.loads(text) if 0 < len(text) < LONGEST_CONFIG else {}
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def weights(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(place.info.shape) for place in self.places.values())

    @property
    def total_bytes(self) -> int:
        return sum(place.info.end - place.info.start for place in self.places.values())


def _about(part: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    described = settings.get("_class_name") or settings.get("model_type") or PART_CLASSES[part][0]
    return settings if described in PART_CLASSES[part] else {}


def part_folder(path: Path, part: str) -> Path:
    """The folder of `part` (see `PART_CLASSES`) when `path` is a whole hub folder, else `path`."""
    inner = path / part
    return inner if inner.is_dir() else path


def open_checkpoint(path: Path, option: str = "file") -> Checkpoint:
    """Reads the headers of a file, a shard set or a folder, and the config.json beside it.

    Raises UserError (naming `option`) for anything missing, cut off or malformed.
    """
    files = expand_shards(path, option)
    places: dict[str, Place] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = header_of(file, option)
        metadata.update(header.metadata)
        if len(header.tensors) > MOST_TENSORS:
            rule = f"holds {len(header.tensors)} tensors, more than any model this program knows"
            raise Crowded(Problem(option, str(file), rule, "Choose another file"), header)
        for name, info in header.tensors.items():
            if name in places:
                rule = f"holds {name} twice, in {places[name].file.name} and {file.name}"
                raise UserError.one(option, path, rule, "Download the shards again into an empty folder")
            places[name] = Place(file, info)
    return Checkpoint(path, option, tuple(files), places, metadata, _settings(files[0].parent, option))


def header_of(file: Path, option: str = "file") -> Header:
    """The header of a safetensors or burnpack file, with offsets from the beginning of the file.

    Tensors of a .bpk keep burn's names; a quantised one has a dtype such as "QFloat Q8S".
    """
    if not is_bpk(file):
        return read_header(file, option)
    header = read_bpk_header(file, option)
    return Header({name: tensor.info for name, tensor in header.tensors.items()}, header.metadata)


def _settings(folder: Path, option: str) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        if file.stat().st_size > LONGEST_CONFIG:
            raise ValueError("too large")
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("not a table")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError.one(option, file, f"cannot be read ({error})", "Correct it or remove it") from error
    return settings
