"""What a user may choose for training: a LoRA (`train-lora`, `train`) or the whole transformer (`finetune`).

This module knows the commands' options and the rules between them; it must not know how training is done.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from zimage_gui.config.common import ModelPaths, PictureFolder, RunOptions
from zimage_gui.config.memory_parts import Swapping, TextEncoderMemory, TrainingQuant
from zimage_gui.config.saving_parts import (
    SAVE_PRECISIONS,
    FileMetadata,
    Performance,
    Previews,
    SavePrecision,
    Saving,
)
from zimage_gui.config.schema import like, option, show
from zimage_gui.config.training_parts import Length, Optimizing, Timesteps
from zimage_gui.errors import Problem


class TrainingConfig(
    RunOptions,
    FileMetadata,
    TextEncoderMemory,
    Performance,
    Previews,
    Saving,
    Timesteps,
    Optimizing,
    Length,
    PictureFolder,
    ModelPaths,
):
    """What both kinds of training share."""

    def _folder_options(self) -> tuple[str, ...]:
        return (*super()._folder_options(), "batch_size")

    def problems(self) -> list[Problem]:
        return [
            *self._model_problems("dit"),
            *self._dataset_problems(),
            *self._optimizer_problems(),
            *self._timestep_problems(),
            *self._saving_problems(),
            *self._preview_problems(),
            *self._memory_problems(),
        ]

    def _memory_problems(self) -> list[Problem]:
        if not self.gradient_checkpointing_cpu_offload or self.gradient_checkpointing:
            return []
        rule, remedy = "needs gradient_checkpointing", "Switch gradient_checkpointing on, or leave it out"
        return [Problem("gradient_checkpointing_cpu_offload", "true", rule, remedy)]

    def _optimizer_problems(self) -> list[Problem]:
        found = []
        if self.attn_mode == "sage":
            found.append(
                Problem(
                    "attn_mode",
                    "sage",
                    "cannot train: SageAttention has no gradients",
                    "Set attn_mode to torch",
                )
            )
        fixed = self.lr_scheduler in ("constant", "adafactor") and self.lr_scheduler
        if (fixed := self.lr_scheduler_type or fixed) and self.lr_warmup_steps:
            rule = f"has no effect on the {fixed} schedule"
            remedy = "Use lr_scheduler constant_with_warmup"
            found.append(Problem("lr_warmup_steps", show(self.lr_warmup_steps), rule, remedy))
        if self.lr_scheduler_args and not self.lr_scheduler_type:
            rule = "belongs to lr_scheduler_type, which is not set"
            found.append(Problem("lr_scheduler_args", show(self.lr_scheduler_args), rule, "Leave it out"))
        return found

    def _timestep_problems(self) -> list[Problem]:
        found = []
        low, high = self.min_timestep or 0, 1000 if self.max_timestep is None else self.max_timestep
        if low >= high:
            rule = f"must be below max_timestep, which is {high}"
            found.append(Problem("min_timestep", str(low), rule, "Lower one or raise the other"))
        if self.preserve_distribution_shape and self.min_timestep is None and self.max_timestep is None:
            rule = "needs min_timestep or max_timestep"
            found.append(
                Problem("preserve_distribution_shape", "true", rule, "Set one of them, or leave it out")
            )
        if self.weighting_scheme in ("logit_normal", "mode") and self.timestep_sampling != "sigma":
            rule = "is a density of sigma sampling and has no effect with another timestep_sampling"
            remedy = "Set timestep_sampling to sigma, or weighting_scheme to none"
            found.append(Problem("weighting_scheme", self.weighting_scheme, rule, remedy))
        return found

    def _saving_problems(self) -> list[Problem]:
        pairs = (
            ("save_last_n_steps", "save_every_n_steps"),
            ("save_last_n_epochs", "save_every_n_epochs"),
            ("save_last_n_steps_state", "save_every_n_steps"),
            ("save_last_n_epochs_state", "save_every_n_epochs"),
        )
        return [
            Problem(last, show(getattr(self, last)), f"needs {every}", f"Set {every}, or leave {last} out")
            for last, every in pairs
            if getattr(self, last) is not None and getattr(self, every) is None
        ]

    def _preview_problems(self) -> list[Problem]:
        when = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
        given = [name for name in when if getattr(self, name)]
        if given and self.sample_prompts is None:
            rule = "needs a prompt file"
            return [Problem(name, show(getattr(self, name)), rule, "Set sample_prompts") for name in given]
        if self.sample_prompts is not None and not given:
            rule = "is never used: nothing says when to make pictures"
            remedy = "Set sample_every_n_steps, sample_every_n_epochs or sample_at_first"
            return [Problem("sample_prompts", str(self.sample_prompts), rule, remedy)]
        return []


def _pattern_list(value: str) -> object:
    """A list as the first seed writes it, "['a', 'b']"; a bare word is one pattern."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return (value,)
    return tuple(map(str, parsed)) if isinstance(parsed, list | tuple) else (value,)


class TrainLoraConfig(TrainingQuant, Swapping, TrainingConfig):
    """Train a LoRA."""

    command: ClassVar[str] = "train-lora"

    network_module: Literal["lora"] = option(
        "lora",
        section="lora",
        label="Kind",
        help="Kind of network that is trained.",
        advanced=True,
        values={"networks.lora_zimage": "lora", "networks.lora": "lora"},
    )
    network_dim: int = option(
        16,
        section="lora",
        label="Rank",
        help="Size of the LoRA. 8 to 16 for a person or object, 32 for a style.",
        aliases=("rank", "network_rank", "lora_rank"),
        ge=1,
        le=4096,
    )
    network_alpha: float | None = option(
        None,
        section="lora",
        label="Alpha",
        help="The LoRA acts with strength alpha / rank. Empty: equal to the rank, so that the strength is 1.",
        aliases=("alpha", "lora_alpha"),
        gt=0,
        le=1_000_000,
    )
    network_dropout: float = option(
        0.0,
        section="lora",
        label="Dropout",
        help="Chance with which each of the LoRA's inner values is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    rank_dropout: float = option(
        0.0,
        section="lora",
        label="Rank dropout",
        help="Chance with which a whole rank is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    module_dropout: float = option(
        0.0,
        section="lora",
        label="Module dropout",
        help="Chance with which the LoRA of a whole layer is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    include_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Only these layers",
        help=r"Regular expressions for whole layer names, e.g. .*attention.*; only matching layers "
        r"get a LoRA.",
        advanced=True,
    )
    exclude_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Not these layers",
        help="Regular expressions for whole layer names that get no LoRA.",
        advanced=True,
    )
    network_args: tuple[str, ...] = option(
        (),
        section="lora",
        label="Network arguments",
        help="The first seed's way to set rank_dropout, module_dropout, include_patterns and "
        "exclude_patterns, as "
        "name=value.",
        advanced=True,
    )
    base_weights: tuple[Path, ...] = option(
        (),
        section="lora",
        label="Merged LoRAs",
        help="LoRA files merged into the model while training and absent from the result, e.g. the "
        "Turbo training "
        "adapter.",
        path="file",
        aliases=("training_adapter",),
    )
    base_weights_multiplier: tuple[float, ...] = option(
        (),
        section="lora",
        label="Their strengths",
        help="Strength of each merged LoRA, in order; missing ones are 1.",
        advanced=True,
        matters="base_weights is set",
    )
    lora_format: Literal["universal", "native"] = option(
        "universal",
        section="saving",
        label="LoRA format",
        help="universal loads in ComfyUI and diffusers as it is; native has the first seed's "
        "lora_unet_ names.",
        advanced=True,
        values={"comfyui": "universal", "comfy": "universal", "diffusers": "universal", "other": "universal",
                "musubi": "native", "default": "native"},
    )  # fmt: skip
    save_precision: SavePrecision = option(
        "fp32",
        section="saving",
        label="Saved as",
        help="Number format in the LoRA file; training itself keeps fp32.",
        advanced=True,
        values=SAVE_PRECISIONS,
    )
    output: Path | None = option(
        None,
        section="saving",
        label="Output file",
        help="The result as one path, in z-image-train's way: FILE.safetensors, FILE.lora.json beside it and "
        "FILE.stepN.safetensors. Excludes output_dir and output_name.",
        path="out_file",
        advanced=True,
    )

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"must be regular expressions; {pattern!r} is none: {error}") from error
        return value

    @property
    def alpha(self) -> float:
        """The alpha that is used: the rank when none is given."""
        return float(self.network_dim) if self.network_alpha is None else self.network_alpha

    @classmethod
    def expand(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """`network_args` become the options they stand for."""
        given = values.get("network_args", ())
        given = (given,) if isinstance(given, str) else given
        if not isinstance(given, list | tuple):
            return values, []
        expanded = {name: value for name, value in values.items() if name != "network_args"}
        problems = []
        for item in map(str, given):
            name, _, value = (part.strip() for part in item.partition("="))
            if name in ("rank_dropout", "module_dropout"):
                expanded.setdefault(name, value)
            elif name in ("include_patterns", "exclude_patterns"):
                expanded.setdefault(name, _pattern_list(value))
            elif name not in ("conv_dim", "conv_alpha", "verbose"):  # without meaning: no convolutions here
                rule = "must set rank_dropout, module_dropout, include_patterns or exclude_patterns"
                problems.append(Problem("network_args", item, rule, "Leave it out"))
        return expanded, problems

    def problems(self) -> list[Problem]:
        return [*super().problems(), *self._lora_problems(), *self._output_problems()]

    def _lora_problems(self) -> list[Problem]:
        if len(self.base_weights_multiplier) <= len(self.base_weights):
            return []
        rule = f"has {len(self.base_weights_multiplier)} values for {len(self.base_weights)} base_weights"
        remedy = "Give one per file, or fewer"
        return [Problem("base_weights_multiplier", show(self.base_weights_multiplier), rule, remedy)]

    def _output_problems(self) -> list[Problem]:
        if self.output is None:
            return []
        found = []
        if self.output.suffix.lower() != ".safetensors":
            rule = "must end in .safetensors"
            found.append(
                Problem("output", str(self.output), rule, f"Write {self.output.with_suffix('.safetensors')}")
            )
        default = type(self).model_fields["output_name"].default
        if self.output_dir is not None or self.output_name != default:
            rule = "excludes output_dir and output_name: both say where the result goes"
            found.append(Problem("output", str(self.output), rule, "Leave out the one or the others"))
        return found


class TrainConfig(TrainLoraConfig):
    """The second seed's command: from a model folder and a picture folder to a LoRA in one line,
    with its defaults."""

    command: ClassVar[str] = "train"

    output: Path | None = like(TrainLoraConfig, "output", Path("lora_weights.safetensors"), advanced=False)
    max_train_epochs: int | None = like(TrainLoraConfig, "max_train_epochs", 100)
    resolution: tuple[int, int] = like(TrainLoraConfig, "resolution", (512, 512))


class FinetuneConfig(TrainingConfig):
    """Train all weights of the transformer."""

    command: ClassVar[str] = "finetune"

    learning_rate: float = like(
        TrainingConfig,
        "learning_rate",
        1e-5,
        "Step size of the optimizer; 1e-6 to 1e-5 for the real model.",
    )
    optimizer_type: str = like(
        TrainingConfig,
        "optimizer_type",
        "Adafactor",
        "Adafactor (least memory), AdamW, AdamW8bit, a class of torch.optim, or a dotted class path.",
    )
    full_bf16: bool = option(
        False,
        section="performance",
        label="Weights in bf16",
        help="Keep the weights themselves in bf16: half the memory, less exact. Off: weights in fp32.",
        matters="mixed_precision is bf16",
    )
    save_precision: SavePrecision = option(
        "bf16",
        section="saving",
        label="Saved as",
        help="Number format in the model file.",
        advanced=True,
        values=SAVE_PRECISIONS,
    )
    save_layout: Literal["comfy", "diffusers"] = option(
        "comfy",
        section="saving",
        label="Model layout",
        help="comfy: one file as ComfyUI and the first seed load it; diffusers: the official names.",
        advanced=True,
        values={"comfyui": "comfy"},
    )

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.full_bf16 and self.mixed_precision != "bf16":
            rule = f"needs mixed_precision bf16, which is {self.mixed_precision}"
            found.append(
                Problem("full_bf16", "true", rule, "Set mixed_precision to bf16, or leave full_bf16 out")
            )
        return found
