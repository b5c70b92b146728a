"""Options of `finetune` alone: which weights are trained, and how their updates reach them.

This module knows single options and the rules between these; the others are in `training.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from zimage_gui.config.common import regular_expressions
from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem


class FullParameters(Options):
    train_patterns: tuple[str, ...] = option(
        (),
        section="optimizer",
        label="Train only these",
        help=r"Regular expressions for whole names of weights, layers or blocks, e.g. layers\.(2[0-9]) or "
        r".+attention.+; only what matches is trained. Empty: everything.",
        advanced=True,
    )
    freeze_patterns: tuple[str, ...] = option(
        (),
        section="optimizer",
        label="Freeze these",
        help="Regular expressions for whole names of weights, layers or blocks that stay as they are: no "
        "gradient, no optimizer state.",
        advanced=True,
    )
    full_bf16: bool = option(
        False,
        section="performance",
        label="Weights in bf16",
        help="Keep the weights themselves in bf16: half the memory, less exact. Off: weights in fp32.",
        matters=When("mixed_precision is bf16", lambda c: c.mixed_precision == "bf16"),
    )
    stochastic_rounding: bool = option(
        True,
        section="performance",
        label="Stochastic rounding",
        help="Update bf16 weights in fp32 and round them up or down by chance, so that small updates are not "
        "lost; the optimizer's averages are fp32 then.",
        advanced=True,
        matters=When("full_bf16 is on", lambda c: c.full_bf16),
    )
    fused_backward_pass: bool = option(
        False,
        section="performance",
        label="Update in the backward pass",
        help="Update each weight as soon as its gradient is known and free the gradient, so that memory "
        "never holds all gradients. Clipping then acts on each weight tensor by itself.",
        matters=When(
            "gradient_accumulation_steps is 1 and mixed_precision is not fp16",
            lambda c: c.gradient_accumulation_steps == 1 and c.mixed_precision != "fp16",
        ),
    )

    @field_validator("train_patterns", "freeze_patterns")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)


def full_parameter_problems(config: Any) -> list[Problem]:
    """What contradicts itself among these options and those they depend on."""
    found = []
    if config.full_bf16 and config.mixed_precision != "bf16":
        rule = f"needs mixed_precision bf16, which is {config.mixed_precision}"
        remedy = "Set mixed_precision to bf16, or leave full_bf16 out"
        found.append(Problem("full_bf16", "true", rule, remedy))
    found += _swap_problems(config)
    if not config.fused_backward_pass:
        return found
    if config.gradient_accumulation_steps > 1:
        rule = "frees each gradient at once, so that none can be added up over gradient_accumulation_steps"
        remedy = "Set gradient_accumulation_steps to 1 and raise batch_size, or leave fused_backward_pass out"
        found.append(Problem("fused_backward_pass", show(True), rule, remedy))
    if config.mixed_precision == "fp16":
        rule = "updates before it is known whether the gradients of fp16 overflowed"
        remedy = "Set mixed_precision to bf16, or leave fused_backward_pass out"
        found.append(Problem("fused_backward_pass", show(True), rule, remedy))
    return found


def _swap_problems(config: Any) -> list[Problem]:
    if not config.blocks_to_swap:
        return []
    found = []
    if config.mixed_precision == "fp16":
        rule = "cannot be: gradients of fp16 are scaled in one place, and here they are in two"
        remedy = "Set mixed_precision to bf16, or leave blocks_to_swap out"
        found.append(Problem("blocks_to_swap", show(config.blocks_to_swap), rule, remedy))
    if config.compiled_with is not None and config.compile_mode in ("reduce-overhead", "max-autotune"):
        rule = (
            "records where weights lie (CUDA graphs), and weights of blocks_to_swap lie elsewhere each time"
        )
        remedy = "Set compile_mode to default or max-autotune-no-cudagraphs, or leave blocks_to_swap out"
        found.append(Problem("compile_mode", config.compile_mode, rule, remedy))
    return found
