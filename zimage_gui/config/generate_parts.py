"""Groups of generate's options: how is sampled, which picture is begun from, which LoRAs act, how latents
become pictures.

This module knows options; it must not know how any of it is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import field_validator

from zimage_gui.config.common import regular_expressions, strength_problems
from zimage_gui.config.grid_parts import LORA
from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem

Sampler = Literal["euler", "heun", "dpmpp_2m", "res_multistep"]
Scheduler = Literal["reference", "simple", "normal", "sgm_uniform", "beta", "linear_quadratic"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
SCHEDULERS: tuple[str, ...] = get_args(Scheduler)


def _varies(config: Any, *names: str) -> bool:
    """Whether pictures may have another value of one of these options: by a grid, or in a line of prompts,
    which this config does not know."""
    lines = config.from_file is not None or config.interactive
    return lines or any(axis.name in names for axis in config.axes())


GUIDED = When("guidance_scale is above 0", lambda c: c.guidance_scale > 0 or _varies(c, "guidance_scale"))
SHIFTED = When(
    "the scheduler is not linear_quadratic",
    lambda c: c.scheduler != "linear_quadratic" or _varies(c, "scheduler"),
)
_BEGUN = When("a picture to begin from is given", lambda c: c.image_path is not None or _varies(c))


def _decodes(config: Any) -> bool:
    return config.output_type != "latent" or bool(config.latent_path)


class SamplerOptions(Options):
    """How the way from noise to picture is walked."""

    sampler: Sampler = option(
        "euler",
        section="picture",
        label="Sampler",
        help="By ComfyUI's names. euler is the reference; heun computes each step twice; dpmpp_2m and "
        "res_multistep use the step before and need fewer steps.",
    )
    scheduler: Scheduler = option(
        "reference",
        section="picture",
        label="Scheduler",
        help="How the steps are laid out, by ComfyUI's names; reference is the official one, which simple "
        "nearly equals. linear_quadratic takes no shift.",
        advanced=True,
        values={"linear": "linear_quadratic"},
    )
    cfg_truncation: float = option(
        1.0,
        section="picture",
        label="Guidance until",
        help="Guidance ends when this share of the way from noise (0) to picture (1) is passed, which saves "
        "half of the later steps' time. 1: to the end.",
        advanced=True,
        matters=GUIDED,
        ge=0,
        le=1,
    )
    cfg_normalization: float = option(
        0.0,
        section="picture",
        label="Guidance limit",
        help="The guided output is no longer than this many times the unguided one: 1 calms burnt colours. "
        "0: no limit.",
        advanced=True,
        matters=GUIDED,
        ge=0,
        le=100,
    )
    cfg_batch: Literal["auto", "always", "never"] = option(
        "auto",
        section="performance",
        label="Both prompts at once",
        help="Prompt and negative prompt go through the transformer as one batch, which is faster and takes "
        "more memory: auto does so where there is enough. The picture is the same but for rounding.",
        advanced=True,
        matters=GUIDED,
        values={"true": "always", "false": "never", "on": "always", "off": "never"},
    )


class StartOptions(Options):
    """A picture to begin from, and what of it is made anew."""

    image_path: Path | None = option(
        None,
        section="begin",
        label="Picture",
        help="Begin from this picture instead of pure noise. It is turned upright, scaled and cropped to the "
        "size asked for.",
        path="file",
        aliases=("init_image",),
    )
    strength: float | None = option(
        None,
        section="begin",
        label="Strength",
        help="Share of the steps that are done: near 0 keeps the picture, 1 makes it anew. Left out: 0.6, "
        "with a mask 1.",
        aliases=("denoising_strength",),
        matters=_BEGUN,
        gt=0,
        le=1,
    )
    mask_path: Path | None = option(
        None,
        section="begin",
        label="Mask",
        help="A picture as large as the one to begin from: what is white is made anew, what is black stays.",
        path="file",
        aliases=("mask_image",),
        matters=_BEGUN,
    )

    def _start_problems(self, from_file: bool) -> list[Problem]:
        """With a prompt file its lines may name the picture."""
        if self.mask_path is None or self.image_path is not None or from_file:
            return []
        rule = "needs image_path: it says what of a picture is made anew"
        return [Problem("mask_path", show(self.mask_path), rule, "Give image_path, or leave the mask out")]


class LoraOptions(Options):
    """Which LoRAs act, where and how strongly."""

    lora_weight: tuple[Path, ...] = option(
        (),
        section="lora",
        label="LoRAs",
        help="LoRA files of any dialect.",
        path="file",
        aliases=("lora", "loras"),
    )
    lora_multiplier: tuple[float, ...] = option(
        (),
        section="lora",
        label="Strengths",
        help="Strength of each LoRA, in order; missing ones are 1.",
    )
    include_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Only these modules",
        help="Regular expressions; only LoRA modules whose name one of them finds are applied.",
        advanced=True,
        matters=LORA,
    )
    exclude_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Not these modules",
        help="Regular expressions; LoRA modules whose name one of them finds are left out.",
        advanced=True,
        matters=LORA,
    )
    save_merged_model: Path | None = option(
        None,
        section="lora",
        label="Save merged model",
        help="Write the transformer with the LoRAs merged into it, and generate nothing. A .safetensors file "
        "is written as ComfyUI reads it, a .bpk file as z-image-train does, a folder as diffusers does; the "
        "command merge chooses more.",
        path="out_any",
        advanced=True,
        matters=LORA,
    )

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)

    def _lora_problems(self) -> list[Problem]:
        found = []
        if self.save_merged_model is not None and not self.lora_weight:
            rule, remedy = "merges LoRAs, and lora_weight is empty", "Give a LoRA, or use the command convert"
            found.append(Problem("save_merged_model", str(self.save_merged_model), rule, remedy))
        return found + strength_problems(self.lora_multiplier, len(self.lora_weight))


class DecodeOptions(Options):
    """How latents become pictures."""

    vae_dtype: Literal["no", "fp16", "bf16"] = option(
        "no",
        section="performance",
        label="VAE precision",
        help="Number format of the VAE: no for full fp32, bf16 or fp16 for half the memory. A picture that "
        "comes out undefined is decoded again in fp32.",
        advanced=True,
        values={
            "fp32": "no", "float32": "no", "float": "no", "bfloat16": "bf16", "float16": "fp16",
            "half": "fp16",
        },
    )  # fmt: skip
    vae_tiling: Literal["auto", "always", "never"] = option(
        "auto",
        section="performance",
        label="VAE in parts",
        help="Decode pictures band by band, which needs little memory, takes longer and gives the same "
        "picture, without seams: auto does so only when memory is short.",
        advanced=True,
        values={"true": "always", "false": "never", "on": "always", "off": "never"},
        matters=When("pictures are decoded", _decodes),
    )
