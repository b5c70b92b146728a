"""What to change when the memory does not suffice, cheapest first, with what each change leaves.

Knows the options of training and the estimate. Must not know torch, or who shows the advice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zimage_gui.config.parallel_parts import processes_of
from zimage_gui.config.schema import Options, options_of, show
from zimage_gui.engine.memory_estimate import GIB
from zimage_gui.engine.memory_plan import Plan

_AIM_BELOW = 0.85
"""Of the estimate, where that was said to fit and did not."""
_GAIN = 0.01
"""The least share of the peak that makes a change worth naming."""


@dataclass(frozen=True)
class Change:
    """One option with its value; peak: the estimate with it and all changes before it, bytes."""

    option: str
    value: object
    peak: float

    @property
    def words(self) -> str:
        return f"--{self.option} {show(self.value)}  (then about {self.peak / GIB:.2f} GiB)"


def changes(plan: Plan, free: float) -> list[Change]:
    """Changes on top of each other until the estimate fits `free` bytes, or until none is left. If it did
    fit, what training itself takes is lowered. Twice over: what other parts hid comes into view."""
    found: list[Change] = []
    made: dict[str, object] = {}
    fits = plan.estimate().peak <= free

    def measure(given: dict[str, object]) -> float:
        estimated = plan.estimate(**given)
        return estimated.training_peak if fits else estimated.peak

    size = measure({})
    aim = size * _AIM_BELOW if fits else free
    for option, value in (*_by_cost(plan), *_by_cost(plan)):
        if size <= aim:
            break
        tried = made | {option: value}
        if measure(tried) < size * (1 - _GAIN):
            made, size = tried, measure(tried)
            found.append(Change(option, value, plan.estimate(**made).peak))
    return found


def _by_cost(plan: Plan) -> Iterator[tuple[str, Any]]:
    """(option, value) not chosen yet. First what costs time or nothing, then what costs exactness, then what
    the result shows."""
    config, blocks = plan.config, plan.sizes.config.n_layers
    kind: type[Options] = type(config)
    has = options_of(kind).keys()
    wanted: list[tuple[str, Any]] = [
        ("gradient_checkpointing", True),
        ("gradient_checkpointing_fraction", "1"),
        ("fp8_llm", True),
        ("fused_backward_pass", True),
        ("gradient_checkpointing_cpu_offload", True),
        *((("ema_device", "cpu"),) if config.ema_decay else ()),
        *((("shard_weights", True),) if processes_of(config) > 1 else ()),
        *(("blocks_to_swap", blocks * part // 3) for part in (1, 2, 3)),
        ("base_quant", "int8"),
        ("base_quant", "nf4"),
        ("full_bf16", True),
        ("optimizer_type", "AdamW8bit"),
        ("optimizer_type", "Adafactor"),
    ]
    if config.dataset_config is None:
        halves = {config.batch_size // 2, 1} - {0, config.batch_size}
        yield from (("batch_size", size) for size in sorted(halves, reverse=True))
    for option, value in wanted:
        if option in has and _is_less(config, option, value):
            yield option, value
    if config.dataset_config is None:
        smaller = [edge for edge in (1024, 768, 512, 256) if edge < max(config.resolution)]
        yield from (("resolution", (edge, edge)) for edge in smaller)
    if "network_dim" in has:
        yield from (("network_dim", rank) for rank in (16, 8, 4) if rank < config.network_dim)


def _is_less(config: Any, option: str, value: object) -> bool:
    """Whether this value would save and is allowed beside the rest."""
    now = getattr(config, option)
    alone = processes_of(config) < 2 or "network_dim" in type(config).model_fields
    if option in ("blocks_to_swap", "fused_backward_pass") and not alone:
        return False
    if option == "blocks_to_swap":
        return bool(now < int(str(value)))
    if option == "base_quant":
        ladder = ("none", "fp8", "int8", "nf4")
        return ladder.index(now) < ladder.index(str(value)) and (now, value) != ("fp8", "int8")
    if option == "fused_backward_pass" and (
        config.gradient_accumulation_steps > 1 or config.mixed_precision == "fp16"
    ):
        return False
    if option == "shard_weights" and config.mixed_precision == "fp16":
        return False
    if option == "full_bf16" and config.mixed_precision != "bf16":
        return False
    return bool(now != value)
