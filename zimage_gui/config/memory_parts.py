"""Options that save memory: how frozen weights are kept, and where.

This module knows what these options are; it must not know how a weight is quantised or moved.
"""

from __future__ import annotations

from typing import Literal

from zimage_gui.config.schema import Options, option

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
        matters="texts are encoded",
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
