"""What a user may choose when files are converted or looked into. This module knows options, not formats."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from zimage_gui.config.schema import Options, When, option
from zimage_gui.errors import Problem


class ConvertLoraConfig(Options):
    """Convert a LoRA between the forms that programs read."""

    command: ClassVar[str] = "convert-lora"
    positionals: ClassVar[tuple[str, ...]] = ("input", "output")

    input: Path | None = option(
        None, section="models", label="LoRA file", help="The file to convert.", path="file"
    )
    output: Path | None = option(
        None, section="output", label="Output file", help="The file to write.", path="out_file"
    )
    target: Literal["other", "default", "comfy", "peft", "rust"] | None = option(
        None,
        section="output",
        label="Form",
        help="other: the universal form for ComfyUI and diffusers; default: the first seed's "
        "lora_unet_ names; comfy: lora_unet_ names with fused qkv, as convert_z_image_lora_to_comfy writes; "
        "peft: transformer. names with rank and alpha in the header; rust: z-image-train's, with its "
        ".lora.json. Empty: other, or comfy when lokr_rank is given.",
        values={
            "universal": "other",
            "diffusers": "other",
            "native": "default",
            "musubi": "default",
            "comfyui": "comfy",
            "burn": "rust",
        },
    )
    reverse: bool = option(
        False,
        section="output",
        label="Reverse",
        help="From the ComfyUI form back to the first seed's lora_unet_ names; the same as target default.",
    )
    diffusers_prefix: str = option(
        "diffusion_model",
        section="output",
        label="Prefix",
        help="First part of the tensor names of the form other.",
        advanced=True,
        matters=When(
            "target is other",
            lambda c: (
                not c.reverse and (c.target or ("other" if c.lokr_rank is None else "comfy")) == "other"
            ),
        ),
    )
    lokr_rank: int | None = option(
        None,
        section="output",
        label="LoKr rank",
        help="Largest rank of the LoRA that a LoKr becomes where the form has no LoKr; the error is printed. "
        "Empty: as many as it takes to lose nothing.",
        ge=1,
        le=65536,
        advanced=True,
        matters=When(
            "the file is a LoKr and target is comfy, peft or rust",
            lambda c: not c.reverse and c.target not in ("other", "default"),
        ),
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Replace the output file if it exists.",
    )

    def problems(self) -> list[Problem]:
        found = [
            Problem(name, "", "is missing", f"Give the {word}")
            for name, word in (("input", "LoRA to convert"), ("output", "file to write"))
            if getattr(self, name) is None
        ]
        if self.reverse and self.target not in (None, "default"):
            rule = f"contradicts target {self.target}"
            found.append(Problem("reverse", "true", rule, "Leave out one of the two"))
        if self.lokr_rank is not None and (self.reverse or self.target in ("other", "default")):
            rule = "belongs to the targets comfy, peft and rust; the others keep a LoKr as it is"
            found.append(Problem("lokr_rank", str(self.lokr_rank), rule, "Leave it out"))
        if self.output is not None and self.output.suffix.lower() != ".safetensors":
            remedy = f"Write {self.output.with_suffix('.safetensors').name}"
            found.append(Problem("output", str(self.output), "must end in .safetensors", remedy))
        if self.input is not None and self.input == self.output:
            found.append(
                Problem("output", str(self.output), "is the input file itself", "Choose another name")
            )
        if self.diffusers_prefix != "diffusion_model" and (
            self.reverse or self.target not in (None, "other") or self.lokr_rank is not None
        ):
            rule = "belongs to target other"
            found.append(Problem("diffusers_prefix", self.diffusers_prefix, rule, "Leave it out"))
        return found


class InspectConfig(Options):
    """Say what a model, LoRA or cache file is."""

    command: ClassVar[str] = "inspect"
    positionals: ClassVar[tuple[str, ...]] = ("input",)

    input: Path | None = option(
        None, section="models", label="File", help="The file or folder to look into.", path="any"
    )
    limit: int = option(
        20,
        section="output",
        label="Tensors shown",
        help="How many tensors to list; 0 lists all.",
        ge=0,
        le=1_000_000,
        matters=When("as_json is off", lambda c: not c.as_json),
    )

    hash: bool = option(
        False,
        section="output",
        label="Hash",
        help="Also read the whole file and print its SHA-256, with the short forms that model sites show.",
    )
    as_json: bool = option(
        False,
        section="output",
        label="As JSON",
        help="Print one JSON object with kind, format, parameters, metadata and tensors instead of text.",
        aliases=("json",),
        advanced=True,
    )

    def problems(self) -> list[Problem]:
        return [] if self.input else [Problem("input", "", "is missing", "Give the file to look into")]
