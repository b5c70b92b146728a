"""What a user may choose when LoRA files are resized, extracted, edited, verified or averaged. This module
knows options, not tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from zimage_gui.config.common import RunOptions, regular_expressions
from zimage_gui.config.schema import Options, When, like, option, show
from zimage_gui.errors import Problem

LoraFormat = Literal["keep", "universal", "native", "comfy", "peft", "rust"]
USUAL_RANK = 32
"""Of an extracted LoRA."""
_DTYPES = {"float32": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"}
_FORMATS = {
    "other": "universal",
    "diffusers": "peft",
    "default": "native",
    "musubi": "native",
    "comfyui": "comfy",
}


def _missing(config: Options, words: dict[str, str]) -> list[Problem]:
    return [
        Problem(name, "", "is missing", f"Give the {word}")
        for name, word in words.items()
        if not getattr(config, name)
    ]


class LoraSizeOptions(Options):
    """How large a LoRA made by singular values becomes."""

    rank: int | None = option(
        None,
        section="lora",
        label="Rank",
        help="Largest rank of each module.",
        ge=1,
        le=16384,
    )
    energy: float | None = option(
        None,
        section="lora",
        label="Energy kept",
        help="The smallest rank that keeps this part of the squared singular values, such as 0.99. With "
        "rank: at most that rank.",
        gt=0,
        le=1,
    )


class LoraOutputOptions(Options):
    """The LoRA that is written."""

    output: Path | None = option(
        None, section="output", label="Output file", help="The LoRA to write (.safetensors).", path="out_file"
    )
    lora_format: LoraFormat = option(
        "keep",
        section="output",
        label="Form",
        help="keep: names as in the input, where that is one of the others, else universal.",
        values=_FORMATS,
        advanced=True,
    )
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = option(
        "keep",
        section="output",
        label="Number format",
        help="Format of the factors; keep: fp32 where new numbers were computed, else as in the input.",
        values=_DTYPES,
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Replace the output file if it exists.",
    )


class ResizeLoraConfig(LoraSizeOptions, LoraOutputOptions):
    """Make a LoRA's rank smaller by singular values, and say what that costs."""

    command: ClassVar[str] = "resize-lora"
    positionals: ClassVar[tuple[str, ...]] = ("input", "output")

    input: Path | None = option(
        None, section="models", label="LoRA file", help="The LoRA to resize, of any dialect.", path="file"
    )

    def problems(self) -> list[Problem]:
        found = _missing(self, {"input": "LoRA to resize", "output": "file to write"})
        if self.rank is None and self.energy is None:
            found.append(Problem("rank", "", "is missing, and so is energy", "Give one of them"))
        return found


class ExtractLoraConfig(LoraSizeOptions, LoraOutputOptions):
    """Extract the difference of two models of one shape as a LoRA."""

    command: ClassVar[str] = "extract-lora"

    base: Path | None = option(
        None,
        section="models",
        label="Base model",
        help="The transformer that the LoRA will be used on, in any layout.",
        path="any",
        aliases=("dit", "model_org"),
    )
    tuned: Path | None = option(
        None,
        section="models",
        label="Tuned model",
        help="The transformer whose difference from the base becomes the LoRA, in any layout.",
        path="any",
        aliases=("model_tuned",),
    )
    rank: int | None = like(
        LoraSizeOptions,
        "rank",
        None,
        help=f"Largest rank of each module. Empty: {USUAL_RANK}, or what energy asks for.",
    )
    include_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Only these layers",
        help="Regular expressions; only Linear layers whose name one of them finds are extracted.",
        advanced=True,
    )
    exclude_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Not these layers",
        help="Regular expressions; layers whose name one of them finds are left out.",
        advanced=True,
    )
    device: str = like(RunOptions, "device", "auto")

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)

    def problems(self) -> list[Problem]:
        return _missing(self, {"base": "base model", "tuned": "tuned model", "output": "file to write"})


class EditLoraConfig(Options):
    """Scale a LoRA, take modules out, change its number format or what its header says."""

    command: ClassVar[str] = "edit-lora"
    positionals: ClassVar[tuple[str, ...]] = ("input", "output")

    input: Path | None = option(
        None, section="models", label="LoRA file", help="The LoRA to edit, of any dialect.", path="file"
    )
    output: Path | None = like(LoraOutputOptions, "output", None)
    overwrite: bool = like(LoraOutputOptions, "overwrite", False)
    scale: float = option(
        1.0,
        section="lora",
        label="Scale",
        help="Strength that becomes the new strength 1; 0.5 halves the effect.",
        ge=-100,
        le=100,
    )
    prune: tuple[str, ...] = option(
        (),
        section="lora",
        label="Take out",
        help="Regular expressions; modules whose name one of them finds are taken out.",
    )
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = option(
        "keep", section="output", label="Number format", help="Format of the factors.", values=_DTYPES
    )
    title: str | None = option(
        None,
        section="metadata",
        label="Title",
        help="modelspec.title. Empty text removes it, as with all of these.",
        blank=True,
    )
    author: str | None = option(
        None, section="metadata", label="Author", help="modelspec.author.", blank=True
    )
    description: str | None = option(
        None, section="metadata", label="Description", help="modelspec.description.", blank=True
    )
    trigger_words: str | None = option(
        None,
        section="metadata",
        label="Trigger words",
        help="modelspec.trigger_phrase: words that call the LoRA, with commas between them.",
        aliases=("trigger_phrase",),
        blank=True,
    )
    thumbnail: Path | None = option(
        None,
        section="metadata",
        label="Preview picture",
        help="A picture that becomes modelspec.thumbnail, at most 256 pixels wide and high.",
        path="file",
        aliases=("preview",),
    )
    remove_keys: tuple[str, ...] = option(
        (),
        section="metadata",
        label="Header entries to remove",
        help="Names, or the beginning of several and a star, such as ss_dataset*.",
    )

    @field_validator("prune")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)

    @property
    def header_changes(self) -> dict[str, str]:
        """{modelspec name: text} of what was given; empty text removes the entry."""
        given = {
            "title": self.title,
            "author": self.author,
            "description": self.description,
            "trigger_phrase": self.trigger_words,
        }
        return {f"modelspec.{name}": text for name, text in given.items() if text is not None}

    def problems(self) -> list[Problem]:
        found = _missing(self, {"input": "LoRA to edit", "output": "file to write"})
        asked = (self.scale != 1, self.prune, self.dtype != "keep", self.header_changes, self.thumbnail)
        if not any(asked) and not self.remove_keys:
            remedy = "Give scale, prune, dtype, title, trigger_words, thumbnail or remove_keys"
            found.append(Problem("edit-lora", "", "has nothing to change", remedy))
        return found


class VerifyLoraConfig(Options):
    """Say whether a LoRA is whole, and whether every tensor lands in a model."""

    command: ClassVar[str] = "verify-lora"
    positionals: ClassVar[tuple[str, ...]] = ("input", "dit")

    input: Path | None = option(
        None, section="models", label="LoRA file", help="The LoRA to verify, of any dialect.", path="file"
    )
    dit: Path | None = option(
        None,
        section="models",
        label="Base model",
        help="The transformer it is meant for, in any layout; only its header is read. Left out: the sizes "
        "of Z-Image.",
        path="any",
        aliases=("base",),
    )

    def problems(self) -> list[Problem]:
        return _missing(self, {"input": "LoRA to verify"})


class EmaLoraConfig(Options):
    """Average the checkpoints of one LoRA training (post-hoc EMA)."""

    command: ClassVar[str] = "ema-lora"
    positionals: ClassVar[tuple[str, ...]] = ("path",)

    path: tuple[Path, ...] = option(
        (),
        section="models",
        label="Checkpoints",
        help="LoRA files of one training, at least two.",
        path="file",
    )
    output_file: Path | None = option(
        None,
        section="output",
        label="Output file",
        help="The LoRA to write.",
        path="out_file",
        aliases=("output",),
    )
    no_sort: bool = option(
        False,
        section="lora",
        label="Order as given",
        help="Take the files in the order given instead of that of their modification times.",
    )
    beta: float = option(
        0.95,
        section="lora",
        label="Beta",
        help="What the average keeps of itself at each further file.",
        ge=0,
        le=1,
        matters=When("sigma_rel is empty", lambda c: c.sigma_rel is None),
    )
    beta2: float | None = option(
        None,
        section="lora",
        label="Last beta",
        help="Beta at the last file; from the second file on it changes evenly. Empty: beta throughout.",
        ge=0,
        le=1,
    )
    sigma_rel: float | None = option(
        None,
        section="lora",
        label="Sigma",
        help="Relative width of a power-function average (Karras et al. 2024) instead of beta. As in the "
        "first seed the count begins with the second file, so that the first one's numbers do not count.",
        gt=0,
        lt=0.28,
    )
    overwrite: bool = like(LoraOutputOptions, "overwrite", False)

    def problems(self) -> list[Problem]:
        found = _missing(self, {"output_file": "file to write"})
        if len(self.path) < 2:
            rule = "must be at least two files to average"
            found.append(Problem("path", show(self.path), rule, "Give the checkpoints of one training"))
        if self.sigma_rel is not None and self.beta2 is not None:
            rule = "contradicts sigma_rel"
            found.append(Problem("beta2", show(self.beta2), rule, "Leave out one of the two"))
        return found
