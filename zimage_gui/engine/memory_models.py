"""Sizes of a run's three models for its memory estimate, from headers alone.

Knows model files' headers and which weights a LoRA sits on. Must not know torch, or how a run uses them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zimage_gui.errors import UserError
from zimage_gui.model.fp8_names import is_fp8_target
from zimage_gui.model.lora_sizes import split
from zimage_gui.model.recognise import require
from zimage_gui.model.sizes import (
    Shapes,
    SizeError,
    TextEncoderConfig,
    TransformerConfig,
    text_encoder_config_from,
    transformer_config_from,
    vae_sizes_from,
)
from zimage_gui.model.sources import sources_of
from zimage_gui.model.whole_shapes import LORA_TARGET, text_encoder_table, transformer_table, whole_shapes


@dataclass(frozen=True)
class Numbers:
    """How many numbers a model has: in the matrices that quantising takes, and in all else."""

    matrices: int
    others: int

    @property
    def all(self) -> int:
        return self.matrices + self.others

    def kept_as(self, matrix: float, other: float) -> float:
        """Bytes, from those of a number of either kind."""
        return self.matrices * matrix + self.others * other


@dataclass(frozen=True)
class ModelSizes:
    """The defaults are the released models."""

    config: TransformerConfig = field(default_factory=TransformerConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vae_encoder: int = 34_260_000
    vae_decoder: int = 49_550_000
    vae_width: int = 128

    @property
    def transformer(self) -> Numbers:
        return _numbers(transformer_table(self.config), "transformer")

    @property
    def text_encoder(self) -> Numbers:
        unused = f"layers.{self.text.n_layers}."
        table = text_encoder_table(self.text)
        used = {name: shape for name, shape in table.items() if not name.startswith((unused, "norm."))}
        return _numbers(used, "text_encoder")


def _numbers(table: Shapes, part: str) -> Numbers:
    counts = {True: 0, False: 0}
    for name, shape in table.items():
        counts[is_fp8_target(name, part)] += math.prod(shape)
    return Numbers(counts[True], counts[False])


def model_sizes(dit: Path | None, text_encoder: Path | None, vae: Path | None) -> ModelSizes:
    """Those of the named files; the released models' where a file is not named. Raises UserError for a file
    that is no such model."""
    found: dict[str, Any] = {}
    if dit is not None:
        found["config"] = transformer_config_from(*_header(dit, "transformer", "dit"))
    if text_encoder is not None:
        found["text"] = text_encoder_config_from(*_header(text_encoder, "text_encoder", "text_encoder"))
    if vae is not None:
        shapes, settings = _header(vae, "vae", "vae")
        whole = whole_shapes("vae", shapes, settings)
        for half in ("encoder", "decoder"):
            mine = [shape for name, shape in whole.items() if name.startswith(half)]
            found[f"vae_{half}"] = sum(math.prod(shape) for shape in mine)
        found["vae_width"] = vae_sizes_from(shapes, settings)["block_out_channels"][0]
    return ModelSizes(**found)


def _header(path: Path, part: str, option: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    checkpoint = require(path, part, option, fp8=part != "vae").checkpoint
    assert checkpoint is not None  # `require` returns only what it has read
    try:
        shapes = {
            name: source.shape_of(checkpoint.places[source.name].info.shape)
            for name, source in sources_of(part, checkpoint.shapes).items()
        }
        return shapes, dict(checkpoint.settings_of(part))
    except SizeError as error:
        raise UserError.one(option, path, str(error), "Choose another file") from error


def lora_layers(config: Any, sizes: ModelSizes) -> dict[str, tuple[int, int]]:
    """{layer: (out, in)} of those that get an adapter."""
    layers = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in transformer_table(sizes.config).items()
        if name.endswith(".weight") and len(shape) == 2
    }
    include, exclude = (tuple(map(re.compile, p)) for p in (config.include_patterns, config.exclude_patterns))
    wanted = include or (LORA_TARGET,)
    return {
        path: shape
        for path, shape in layers.items()
        if _any_fits(wanted, path) and not _any_fits(exclude, path)
    }


def _any_fits(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def adapter_numbers(config: Any, path: str, shape: tuple[int, int]) -> int:
    """Trained numbers of one layer's adapter."""
    rank, (rows, columns) = _rank(config, path), shape
    pair = rank * (rows + columns)
    if config.network_module == "lokr":
        outer, inner, whole = _kronecker(config, rank, shape)
        return math.prod(outer) + (math.prod(inner) if whole else rank * sum(inner))
    return {"lora": pair, "dora": pair + rows, "loha": 2 * pair}[config.network_module]


def adapter_row(config: Any, path: str, shape: tuple[int, int]) -> int:
    """Numbers that one layer's adapter keeps of each row for its backward pass: a LoRA its inner product, a
    DoRA that and its result before it is stretched, a LoKr its products in between, a LoHa nothing."""
    rank = _rank(config, path)
    if config.network_module == "lokr":
        outer, inner, whole = _kronecker(config, rank, shape)
        return outer[1] * inner[0] if whole else rank * sum(outer)
    return {"lora": rank, "dora": rank + shape[0], "loha": 0}[config.network_module]


def _rank(config: Any, path: str) -> int:
    ranks = (rank for pattern, rank in config.reg_dims if re.fullmatch(pattern, path))
    return int(next(ranks, config.network_dim))


def _kronecker(
    config: Any, rank: int, shape: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Shapes of a LoKr's two matrices, and whether the large one is whole."""
    rows, columns = (split(size, int(config.lokr_factor)) for size in shape)
    whole = bool(config.lokr_full) or 2 * rank >= max(rows[1], columns[1])
    return (rows[0], columns[0]), (rows[1], columns[1]), whole
