"""What a user may choose for training: a LoRA (`train-lora`, `train`) or the whole transformer (`finetune`).

This module knows the commands' options and the rules between them; it must not know how training is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from zimage_gui.config.common import ModelPaths, RunOptions, overwrite_option
from zimage_gui.config.compile_parts import DynamoCompiling, Kernels
from zimage_gui.config.finetune_parts import FullParameters, full_parameter_problems
from zimage_gui.config.memory_parts import Swapping, TextEncoderMemory, TrainingQuant
from zimage_gui.config.network_parts import Networks
from zimage_gui.config.objective_parts import Objectives, objective_problems
from zimage_gui.config.parallel_parts import Parallel, Sharding, launcher_problems, sharding_problems
from zimage_gui.config.saving_parts import (
    SAVE_PRECISIONS,
    FileMetadata,
    Performance,
    Previews,
    SavePrecision,
    Saving,
)
from zimage_gui.config.schema import When, like, option, show
from zimage_gui.config.sharing_parts import Hub, Logging
from zimage_gui.config.training_parts import SHAPED_SCHEDULES, Length, Optimizing, Timesteps
from zimage_gui.config.variant_parts import CaptionVariants, MaskWeight, PixelVariants
from zimage_gui.config.watch_parts import Watching, watching_problems
from zimage_gui.errors import Problem


class TrainingConfig(
    RunOptions,
    Hub,
    Logging,
    FileMetadata,
    Kernels,
    DynamoCompiling,
    TextEncoderMemory,
    Parallel,
    Performance,
    Previews,
    Saving,
    Watching,
    MaskWeight,
    Objectives,
    Timesteps,
    Optimizing,
    Length,
    CaptionVariants,
    PixelVariants,
    ModelPaths,
):
    """What both kinds of training share."""

    overwrite: bool = overwrite_option(
        When("an output is named or a run is resumed", lambda c: c.names_output or c.resume is not None)
    )

    @property
    def names_output(self) -> bool:
        """Whether the results go elsewhere than into the run's own folder, which is new."""
        return (self.output_dir or getattr(self, "output", None)) is not None

    @classmethod
    def folder_options(cls) -> tuple[str, ...]:
        return (*super().folder_options(), "batch_size")

    def problems(self) -> list[Problem]:
        objective = [*self._timestep_problems(), *objective_problems(self)]
        if self.show_timesteps is not None:  # nothing is trained, so nothing else is needed
            return objective
        return [
            *self._model_problems("dit"),
            *self._dataset_problems(),
            *self._optimizer_problems(),
            *objective,
            *self._saving_problems(),
            *self._preview_problems(),
            *watching_problems(self),
            *self._memory_problems(),
            *self._parallel_problems(),
            *self._compile_problems(),
            *self._logging_problems(),
            *self._hub_problems(),
        ]

    def _memory_problems(self) -> list[Problem]:
        if self.gradient_checkpointing:
            return []
        rule, remedy = "needs gradient_checkpointing", "Switch gradient_checkpointing on, or leave it out"
        share = self.gradient_checkpointing_fraction
        return [
            Problem(name, show(getattr(self, name)), rule, remedy)
            for name, given in (
                ("gradient_checkpointing_cpu_offload", self.gradient_checkpointing_cpu_offload),
                ("gradient_checkpointing_fraction", share != "1"),
            )
            if given
        ]

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
        fixed = self.lr_scheduler in ("constant", "piecewise_constant", "adafactor") and self.lr_scheduler
        if (fixed := self.lr_scheduler_type or fixed) and self.lr_warmup_steps:
            rule = f"has no effect on the {fixed} schedule"
            remedy = "Use lr_scheduler constant_with_warmup"
            found.append(Problem("lr_warmup_steps", show(self.lr_warmup_steps), rule, remedy))
        shaped = self.lr_scheduler_type or self.lr_scheduler in SHAPED_SCHEDULES
        if self.lr_scheduler_args and not shaped:
            rule = "belongs to lr_scheduler_type, rex or piecewise_constant, none of which is set"
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


class TrainLoraConfig(TrainingQuant, Swapping, Networks, TrainingConfig):
    """Train a LoRA."""

    command: ClassVar[str] = "train-lora"

    lora_format: Literal["universal", "native", "peft"] = option(
        "universal",
        section="saving",
        label="LoRA format",
        help="universal loads in ComfyUI and diffusers as it is; native has the first seed's "
        "lora_unet_ names; peft is diffusers' own and the only one for a DoRA, which gets it by itself.",
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

    def problems(self) -> list[Problem]:
        return [
            *super().problems(),
            *launcher_problems(self),
            *self._network_problems(),
            *self._format_problems(),
            *self._graph_problems_of_dropout(),
            *self._output_problems(),
        ]

    def _format_problems(self) -> list[Problem]:
        if self.lora_format != "peft" or self.network_module in ("lora", "dora"):
            return []
        rule = f"says LoRA and DoRA alone, and network_module is {self.network_module}"
        remedy = "Use universal; convert-lora makes a LoRA of the result"
        return [Problem("lora_format", "peft", rule, remedy)]

    def _graph_problems_of_dropout(self) -> list[Problem]:
        if not self.module_dropout or not self.compiled_with or not self.compile_fullgraph:
            return []
        rule = "decides at each step which layers are left out, outside of compiled code"
        remedy = "Leave compile_fullgraph out, or module_dropout"
        return [Problem("module_dropout", f"{self.module_dropout:g}", rule, remedy)]

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


class FinetuneConfig(Sharding, Swapping, FullParameters, TrainingConfig):
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
        return [*super().problems(), *full_parameter_problems(self), *sharding_problems(self)]
