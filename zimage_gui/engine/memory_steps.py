"""What one update of a run is, from its options: the sizes that the arithmetic of a step needs.

Knows the options of training and the names of weights. Must not know torch, pictures or what is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from zimage_gui.engine.frozen import frozen_names
from zimage_gui.engine.memory_models import ModelSizes, adapter_numbers, adapter_row, lora_layers
from zimage_gui.engine.memory_sizes import (
    FP32,
    LARGEST_TABLE,
    NUMBER_BYTES,
    Rows,
    Step,
    block_numbers,
    largest_matrix,
)
from zimage_gui.model.whole_shapes import transformer_table

AUTO = "auto"
ITEM = {"no": 4, "fp16": 2, "bf16": 2, "fp32": 4}
"""Bytes of a number in each format."""
STATES = {
    "adamw": 8.0, "adam": 8.0, "adamw8bit": 2.1, "adam8bit": 2.1, "pagedadamw8bit": 2.1, "adafactor": 0.02,
    "lion": 4.0, "lion8bit": 1.05, "pagedlion8bit": 1.05, "prodigy": 16.0, "adamwschedulefree": 8.0,
    "came": 4.05, "muon": 4.0, "sgd": 4.0,
}  # fmt: skip
"""Bytes of state per trained number with averages in fp32; of any other optimizer as AdamW."""
_MATRIX_CHANGE = 12.0
"""Bytes per number of a LoHa's whole change in its backward pass: its gradient, the other product, and that
of one of both, in fp32."""


def step_item(config: Any) -> int:
    """Bytes of a trained number."""
    return 2 if getattr(config, "full_bf16", False) else 4


def recomputed_blocks(config: Any, layers: int) -> int:
    """How many of the main blocks are computed twice; the last one never is."""
    if not config.gradient_checkpointing:
        return 0
    share = config.gradient_checkpointing_fraction
    return min(layers - 1, math.ceil((1.0 if share == AUTO else float(share)) * layers))


def step_of(config: Any, sizes: ModelSizes, rows: Rows, count: int, device: str, item: int) -> Step:
    """count: pictures in the batch; item: bytes of a number in the computation."""
    table = _table(sizes, rows, count, item) if device == "cpu" else 0.0
    recomputed = recomputed_blocks(config, sizes.config.n_layers)
    kind = _adapters if hasattr(config, "network_dim") else _own_weights
    return kind(config, sizes, rows, item, recomputed, table)


def _table(sizes: ModelSizes, rows: Rows, count: int, item: int) -> float:
    """Of attention weights, which half precision on a CPU keeps where they are few."""
    numbers = count * sizes.config.n_heads * (rows.all // count) ** 2
    return float(numbers * item) if item == 2 and numbers <= LARGEST_TABLE else 0.0


def _adapters(config: Any, sizes: ModelSizes, rows: Rows, item: int, recomputed: int, table: float) -> Step:
    shape = sizes.config
    layers = lora_layers(config, sizes)
    trained = sum(adapter_numbers(config, path, size) for path, size in layers.items())
    beside = sum(adapter_row(config, path, size) for path, size in layers.items())
    if config.dim_from_weights and config.network_weights is not None:
        trained = config.network_weights.stat().st_size // 2
    opened = float(item) * largest_matrix(shape) if config.base_quant != "none" else 0.0
    if config.network_module == "loha":
        opened = max(opened, _MATRIX_CHANGE * largest_matrix(shape))
    first = _first_block(layers)
    blocks = max(1, shape.n_layers - first)
    return Step(
        shape, rows, item, trained, 4, _state(config), recomputed, trained / blocks, trained,
        config.gradient_checkpointing_cpu_offload, _reaches_first_half(layers), first,
        beside / blocks, table, opened, config.gradient_accumulation_steps > 1,
    )  # fmt: skip


def _own_weights(
    config: Any, sizes: ModelSizes, rows: Rows, item: int, recomputed: int, table: float
) -> Step:
    trained_item = step_item(config)
    sized = {name: math.prod(shape) for name, shape in transformer_table(sizes.config).items()}
    for name in frozen_names(config, sized):
        del sized[name]
    rounds = config.full_bf16 and config.stochastic_rounding
    state = _state(config) if rounds or trained_item == 4 else _state(config) / 2
    adafactor = config.optimizer_type.lower() in ("adafactor", "came")
    copies = (4.0 if adafactor else 3.0) if rounds else (2.0 if adafactor else 0.0)
    in_blocks = sum(size for name, size in sized.items() if name.startswith("layers."))
    updating = _updating(list(sized.values()), copies, trained_item if rounds else 0)
    first = _first_block(sized)
    return Step(
        sizes.config, rows, item, sum(sized.values()), trained_item, state, recomputed,
        in_blocks / max(1, sizes.config.n_layers - first), max(sized.values(), default=0),
        config.gradient_checkpointing_cpu_offload, _reaches_first_half(sized), first, 0.0, table, 0.0,
        config.gradient_accumulation_steps > 1, config.fused_backward_pass, trained_item != item,
        copies, updating,
    )  # fmt: skip


def _updating(sizes: Sequence[int], copies: float, freed: int) -> float:
    """The most that copies of one tensor add to all gradients while the tensors are updated one after the
    other, each of which gives back so many bytes per number."""
    most, before = 0.0, 0
    for size in sizes:
        most = max(most, copies * FP32 * size - before * freed)
        before += size
    return most


def _state(config: Any) -> float:
    return STATES.get(config.optimizer_type.lower(), 8.0)


def _reaches_first_half(names: Iterable[str]) -> bool:
    return any(not name.startswith(("layers.", "all_final")) for name in names)


def _first_block(names: Iterable[str]) -> int:
    """The first main block that needs gradients: none before it does, unless the embedders do."""
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    return 0 if _reaches_first_half(names) else min(blocks, default=0)


def weight_bytes(config: Any, sizes: ModelSizes, item: int) -> tuple[float, float]:
    """Bytes of the transformer on the device, and in CPU memory."""
    quant = getattr(config, "base_quant", "none")
    other = item if hasattr(config, "network_dim") else step_item(config)
    matrix = NUMBER_BYTES[quant] if quant != "none" else other
    whole = sizes.transformer.kept_as(matrix, other)
    swapped = min(config.blocks_to_swap, sizes.config.n_layers)
    if not swapped:
        return whole, 0.0
    block = swapped_block_bytes(config, sizes, item)
    ring = min(config.block_swap_ring_size, swapped)
    return whole - (swapped - ring) * block, swapped * block


def swapped_block_bytes(config: Any, sizes: ModelSizes, item: int) -> float:
    quant = getattr(config, "base_quant", "none")
    other = item if hasattr(config, "network_dim") else step_item(config)
    matrix = NUMBER_BYTES[quant] if quant != "none" else other
    return block_numbers(sizes.config) * matrix + 4 * sizes.config.dim * sizes.config.time_dim * other


def swapped_share(config: Any, sizes: ModelSizes, step: Step) -> float:
    """Of the trained numbers."""
    swapped = min(int(config.blocks_to_swap), sizes.config.n_layers)
    return min(1.0, swapped * step.per_block / max(1, step.trained))
