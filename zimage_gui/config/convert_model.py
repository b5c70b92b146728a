"""What a user may choose when whole models are converted, or LoRAs are merged. This module knows options, not
formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from zimage_gui.config.common import regular_expressions, strength_problems
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.schema import Options, When, like, option, show
from zimage_gui.errors import Problem

Layout = Literal["diffusers", "comfy", "burn"]
ModelType = Literal["transformer", "autoencoder", "text-encoder"]
LoraForm = Literal["universal", "native", "comfy", "peft", "rust"]
Dtype = Literal["keep", "f32", "f16", "bf16", "fp8_comfy", "fp8_blocks"]

_LAYOUTS = {
    "split": "diffusers",
    "hub": "diffusers",
    "fused": "comfy",
    "comfyui": "comfy",
    "ldm": "comfy",
    "bpk": "burn",
    "burnpack": "burn",
}
_TYPES = {
    "t": "transformer",
    "dit": "transformer",
    "ae": "autoencoder",
    "vae": "autoencoder",
    "te": "text-encoder",
    "text_encoder": "text-encoder",
}
_DTYPES = {
    "float32": "f32",
    "fp32": "f32",
    "float16": "f16",
    "fp16": "f16",
    "bfloat16": "bf16",
    "preserve": "keep",
}


def _may_be_folder(config: Any) -> bool:
    return config.output is None or config.output.suffix.lower() not in (".safetensors", ".bpk")


class ModelOutput(Options):
    """What a written model looks like."""

    layout: Layout | None = option(
        None,
        section="output",
        label="Layout",
        help="diffusers: split q, k, v, as on the hub; comfy: ComfyUI's single file (fused qkv; ldm names "
        "for a VAE); burn: .bpk of z-image-train. Empty: what the output's name asks for (.bpk: burn, "
        ".safetensors: comfy, a folder: diffusers with config.json, shards and index).",
        values=_LAYOUTS,
    )
    dtype: Dtype = option(
        "keep",
        section="output",
        label="Number format",
        help="keep: each tensor its own; f32, f16, bf16; fp8_comfy: ComfyUI's scaled fp8 (one scale per "
        "matrix); fp8_blocks: the first seed's scaled fp8 (a scale per 64 numbers). fp8 touches only the "
        "matrices in the blocks.",
        values=_DTYPES,
    )
    max_shard_size: float = option(
        10.0,
        section="output",
        label="Largest shard",
        help="A folder's weights are split into files of at most this size.",
        unit="GB",
        advanced=True,
        matters=When("the output is a folder", _may_be_folder),
        gt=0,
        le=100_000,
    )
    prefix: str | None = option(
        None,
        section="output",
        label="Prefix",
        help="First part of every tensor name in a single .safetensors file, such as "
        "model.diffusion_model. with its dot; empty text for none. Left out: model. for a text encoder, "
        "none otherwise.",
        advanced=True,
        blank=True,
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Replace the output if it exists.",
    )

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str | None) -> str | None:
        if value and (not value.isprintable() or not value.endswith(".") or len(value) > 200):
            raise ValueError("must be printable text that ends in a dot, such as model.diffusion_model.")
        return value


class ConvertConfig(ModelOutput):
    """Convert a transformer, VAE or text encoder between layouts and number formats."""

    command: ClassVar[str] = "convert"
    positionals: ClassVar[tuple[str, ...]] = ("input", "output")

    input: Path | None = option(
        None,
        section="models",
        label="Model",
        help="The model to convert: a .safetensors or .bpk file, any shard of a set, or a folder.",
        path="any",
    )
    output: Path | None = option(
        None,
        section="output",
        label="Output",
        help="A .safetensors file, a .bpk file, or a folder (a name without ending).",
        path="out_any",
    )
    model_type: ModelType | None = option(
        None,
        section="models",
        label="Kind of model",
        help="Which part to take: transformer, autoencoder or text-encoder. Left out: recognised; from a "
        "file that holds several, the transformer.",
        values=_TYPES,
    )

    def problems(self) -> list[Problem]:
        return [
            Problem(name, "", "is missing", f"Give the {word}")
            for name, word in (("input", "model to convert"), ("output", "file or folder to write"))
            if getattr(self, name) is None
        ]


_LORAS_ALONE = When("no base model is given", lambda c: c.dit is None)


class MergeConfig(ModelOutput):
    """Merge LoRAs into a model (with dit), or several LoRAs into one (without)."""

    command: ClassVar[str] = "merge"

    dit: Path | None = option(
        None,
        section="models",
        label="Base model",
        help="The transformer into which the LoRAs are merged, in any layout. Left out: the LoRAs are "
        "merged into one LoRA.",
        path="any",
        aliases=("base", "transformer"),
    )
    lora_weight: tuple[Path, ...] = like(GenerateConfig, "lora_weight", ())
    lora_multiplier: tuple[float, ...] = like(GenerateConfig, "lora_multiplier", ())
    include_patterns: tuple[str, ...] = like(GenerateConfig, "include_patterns", (), matters=None)
    exclude_patterns: tuple[str, ...] = like(GenerateConfig, "exclude_patterns", (), matters=None)
    output: Path | None = option(
        None,
        section="output",
        label="Output",
        help="The model (as for convert) or the LoRA (.safetensors) to write.",
        path="out_any",
        aliases=("save_merged_model",),
    )

    lora_format: LoraForm | None = option(
        None,
        section="output",
        label="LoRA form",
        help="Without dit: the names in the merged LoRA. universal: ComfyUI and diffusers; native: "
        "lora_unet_ names; comfy: these with fused qkv; peft: transformer. names with rank and alpha in the "
        "header; rust: z-image-train's, with its .lora.json. Empty: universal.",
        values={
            "other": "universal",
            "diffusers": "peft",
            "default": "native",
            "musubi": "native",
            "comfyui": "comfy",
        },
        advanced=True,
        matters=_LORAS_ALONE,
    )
    rank: int | None = option(
        None,
        section="lora",
        label="Rank",
        help="Without dit: cut the merged LoRA to this rank by singular values; the error is printed. Empty: "
        "exact, with the ranks added up.",
        ge=1,
        le=16384,
        matters=_LORAS_ALONE,
    )
    energy: float | None = option(
        None,
        section="lora",
        label="Energy kept",
        help="Without dit: the smallest rank that keeps this part of the squared singular values, such as "
        "0.99. With rank: at most that rank.",
        gt=0,
        le=1,
        matters=_LORAS_ALONE,
    )

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)

    def problems(self) -> list[Problem]:
        found = [
            Problem(name, "", "is missing", f"Give the {word}")
            for name, word in (("lora_weight", "LoRAs to merge"), ("output", "file to write"))
            if not getattr(self, name)
        ]
        found += strength_problems(self.lora_multiplier, len(self.lora_weight))
        alone = ("rank", "energy", "lora_format") if self.dit is not None else ("prefix", "layout")
        rule, remedy = "belongs to a merge into a model", "Give dit, or leave it out"
        if self.dit is not None:
            rule, remedy = "belongs to a merge of LoRAs into one LoRA", "Leave it out"
        given = {name: getattr(self, name) for name in alone if getattr(self, name) is not None}
        return found + [Problem(name, show(value), rule, remedy) for name, value in given.items()]
