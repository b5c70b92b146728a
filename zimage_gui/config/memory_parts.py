"""Options that save memory: how frozen weights are kept, and where.

This module knows what these options are; it must not know how a weight is quantised or moved.
"""

from __future__ import annotations

from typing import Literal

from zimage_gui.config.common import TEXTS
from zimage_gui.config.schema import Options, When, option

Quant = Literal["none", "fp8", "int8", "nf4"]
_QUANTS = {"no": "none", "bf16": "none", "float8": "fp8", "e4m3": "fp8", "4bit": "nf4", "8bit": "int8"}


def _base_quant(help: str, switches: tuple[str, ...]) -> Quant:
    chosen: Quant = option(
        "none",
        section="performance",
        label="Base weights",
        help=help,
        values=_QUANTS,
        switches=dict.fromkeys(switches, "fp8"),
    )
    return chosen


class TextEncoderMemory(Options):
    fp8_llm: bool = option(
        False,
        section="performance",
        label="Text encoder in fp8",
        help="Keep the text encoder's matrices in scaled fp8: half its memory, features about 2 % different. "
        "Norms and the embedding stay exact.",
        advanced=True,
        matters=TEXTS,
    )


class TrainingQuant(Options):
    base_quant: Quant = _base_quant(
        "How the frozen weights are kept: none (as they compute), fp8 (half of bf16, error 2.5 %), int8 "
        "(half, error 1 %), nf4 (a quarter, error 9 %). The LoRA itself stays fp32.",
        ("fp8_base", "fp8_scaled"),
    )


class GenerateQuant(Options):
    base_quant: Quant = _base_quant(
        "How the transformer's weights are kept: none (as they compute), fp8 (half of bf16, error 2.5 %), "
        "int8 (half, error 1 %), nf4 (a quarter, error 9 %).",
        ("fp8", "fp8_scaled"),
    )


class Swapping(Options):
    blocks_to_swap: int = option(
        0,
        section="performance",
        label="Swapped blocks",
        help="So many of the transformer's 30 blocks wait in CPU memory and are copied to the GPU when "
        "their turn comes, beside the work. Changes no number; slower where a block computes faster than it "
        "is copied.",
        unit="blocks",
        ge=0,
        le=1000,
    )
    block_swap_ring_size: int = option(
        2,
        section="performance",
        label="Swap buffers",
        help="Blocks of GPU memory that the swapped ones pass through; with 1 every copy is waited for.",
        unit="blocks",
        advanced=True,
        matters=When("blocks_to_swap is above 0", lambda c: c.blocks_to_swap),
        ge=1,
        le=1000,
    )
