"""Options that several commands share: model files, where to run, the plain picture folder.

This module knows what these options are; it must not know what a command does with them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from zimage_gui.config.schema import Options, When, option, options_of, show
from zimage_gui.errors import Problem

Precision = Literal["no", "fp16", "bf16"]
_PRECISIONS = {"fp32": "no", "float32": "no", "float": "no", "bfloat16": "bf16", "float16": "fp16"}

AttentionMode = Literal["torch", "flash", "flash3", "xformers", "sage"]
ATTENTION_VALUES = {
    "sdpa": "torch",
    "flash_attn": "flash",
    "flash2": "flash",
    "sageattn": "sage",
    "sage_attn": "sage",
}
ATTENTION_SWITCHES = {
    "sdpa": "torch",
    "flash_attn": "flash",
    "flash3": "flash3",
    "xformers": "xformers",
    "sage_attn": "sage",
}


def precision_option(default: str, help: str) -> Precision:
    """`mixed_precision`, whose default and meaning differ by command."""
    chosen: Precision = option(
        default, section="performance", label="Precision", help=help, values=_PRECISIONS, aliases=("dtype",)
    )
    return chosen


def attention_option(help: str) -> AttentionMode:
    chosen: AttentionMode = option(
        "torch",
        section="performance",
        label="Attention",
        help=help,
        advanced=True,
        values=ATTENTION_VALUES,
        switches=ATTENTION_SWITCHES,
    )
    return chosen


def regular_expressions(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns themselves; raises ValueError naming the first that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"must be regular expressions; {pattern!r} is none: {error}") from error
    return patterns


def strengths(given: tuple[float, ...], files: int) -> tuple[float, ...]:
    """The strength of each of so many LoRA files, of which the options name the first; 1 for the rest."""
    return (*given, *[1.0] * (files - len(given)))


def strength_problems(given: tuple[float, ...], files: int) -> list[Problem]:
    """More strengths than LoRA files."""
    if len(given) <= files:
        return []
    rule = f"has {len(given)} values, but lora_weight has {files}"
    return [Problem("lora_multiplier", show(given), rule, "Give one per file, or fewer")]


FOLDER = When("a picture folder is given", lambda c: c.dataset_config is None)
TEXTS = When(
    "texts are encoded",
    lambda c: (c.text_encoder or c.model_dir) is not None and not getattr(c, "latent_path", ()),
)


def zero_is_none(value: object) -> object:
    """0 for an option whose empty value means "off"."""
    if isinstance(value, str):
        return None if re.fullmatch(r"\s*0+(\.0*)?\s*", value) else value
    return None if value == 0 and value is not False else value


class RunOptions(Options):
    """Options of every command that computes."""

    device: str = option(
        "auto",
        section="performance",
        label="Device",
        help="Where to compute: auto (the first GPU, else the CPU), cpu, cuda, or cuda:1 for the second GPU.",
        advanced=True,
    )
    runs_dir: Path = option(
        Path("runs"),
        section="run",
        label="Runs folder",
        help="Folder in which every run gets a folder of its own with its settings, events and log.",
        advanced=True,
        path="out_folder",
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        value = value.strip().lower()
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return value


def _lacks_a_model(config: Options) -> bool:
    names = {"dit", "vae", "text_encoder"} & type(config).model_fields.keys()
    return any(getattr(config, name) is None for name in names)


def overwrite_option(matters: When) -> bool:
    """`overwrite`, of the commands whose results have names of the user's choice."""
    chosen: bool = option(
        False,
        section="run",
        label="Overwrite results",
        help="Replace existing results. Off: a result that would replace another gets the next free name.",
        advanced=True,
        matters=matters,
    )
    return chosen


class ModelFolder(Options):
    model_dir: Path | None = option(
        None,
        section="models",
        label="Models folder",
        help="Folder with all three models: a Hugging Face folder, a ComfyUI models folder, or the "
        "file names of "
        "z-image-train. A file named below takes precedence over the one found here.",
        path="folder",
        aliases=("models",),
        matters=When("a model is not named by itself", _lacks_a_model),
    )

    def _model_problems(self, *needed: str) -> list[Problem]:
        """A model that is neither named nor can be in the models folder."""
        if self.model_dir is not None:
            return []
        return [
            Problem(name, "", f"is missing: {known.label} is needed", f"Set {name}, or model_dir to a folder")
            for name, known in options_of(type(self)).items()
            if name in needed and getattr(self, name) is None
        ]


class TransformerPath(ModelFolder):
    dit: Path | None = option(
        None,
        section="models",
        label="Transformer",
        help="The Z-Image transformer: a .safetensors or .bpk file, the first file of a set, or a folder.",
        path="any",
        aliases=("transformer",),
    )


class VaePath(ModelFolder):
    vae: Path | None = option(
        None,
        section="models",
        label="VAE",
        help="The autoencoder: ae.safetensors, ae.bpk or a diffusers vae folder. Training needs it for "
        "missing caches and for "
        "pictures during training.",
        path="any",
    )


class TextEncoderPath(ModelFolder):
    text_encoder: Path | None = option(
        None,
        section="models",
        label="Text encoder",
        help="The Qwen3-4B text encoder: a .safetensors or .bpk file, the first file of a set, or a folder. "
        "Training needs "
        "it for missing caches and for pictures during training.",
        path="any",
    )
    tokenizer: Path | None = option(
        None,
        section="models",
        label="Tokenizer",
        help="Tokenizer folder or tokenizer.json. Left out: the one beside the text encoder, else "
        "the built-in one.",
        path="any",
        advanced=True,
        matters=TEXTS,
    )


class ModelPaths(TextEncoderPath, VaePath, TransformerPath):
    """The three model files, or one folder that holds them all."""


def square(value: object) -> object:
    """One number stands for a square; "640x480" for width and height."""
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*[x×,]\s*(\d+)\s*", value)):
        return match.groups()
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        raise ValueError("must be a whole number for a square, or one for each side")
    return (value, value) if isinstance(value, int | str) and not isinstance(value, bool) else value


def check_resolution(value: tuple[int, int] | None) -> tuple[int, int] | None:
    if value is not None and not all(16 <= edge <= 8192 for edge in value):
        raise ValueError("must be from 16 to 8192 px each way")
    return value


class PictureFolder(Options):
    """Pictures from a dataset TOML, or straight from one folder."""

    dataset_config: Path | None = option(
        None,
        section="dataset",
        label="Dataset file",
        help="Dataset TOML (or JSON) with one or more folders, each with its own resolution, batch "
        "size and repeats.",
        path="file",
    )
    dataset: Path | None = option(
        None,
        section="dataset",
        label="Picture folder",
        help="Folder of pictures with captions in .txt files of the same name; used instead of a "
        "dataset file.",
        path="folder",
        aliases=("image_directory", "train_data_dir"),
    )
    resolution: tuple[int, int] = option(
        (1024, 1024),
        section="dataset",
        label="Resolution",
        help="Training size: one number for the edge of a square, or width and height. With buckets "
        "it sets the area.",
        unit="px",
        matters=FOLDER,
    )
    enable_bucket: bool = option(
        True,
        section="dataset",
        label="Buckets",
        help="Sort pictures into sizes of equal area and similar shape instead of cropping all to one shape.",
        matters=FOLDER,
    )
    bucket_no_upscale: bool = option(
        False,
        section="dataset",
        label="Never enlarge",
        help="Pictures smaller than the resolution keep their own size (rounded down to 16 px).",
        matters=When(
            "a picture folder is given and buckets are on",
            lambda c: c.dataset_config is None and c.enable_bucket,
        ),
        advanced=True,
    )
    num_repeats: int = option(
        1,
        section="dataset",
        label="Repeats",
        help="How often each picture is seen in one epoch.",
        unit="times",
        matters=FOLDER,
        ge=1,
        le=100_000,
    )
    caption_extension: str = option(
        ".txt",
        section="dataset",
        label="Caption file ending",
        help="Ending of the caption files beside the pictures.",
        matters=FOLDER,
        advanced=True,
    )
    cache_directory: Path | None = option(
        None,
        section="dataset",
        label="Cache folder",
        help="Where the encoded pictures and captions are kept. Left out: the picture folder itself.",
        matters=FOLDER,
        path="out_folder",
        advanced=True,
    )

    _square = field_validator("resolution", mode="before")(square)
    _size = field_validator("resolution")(check_resolution)

    @field_validator("caption_extension")
    @classmethod
    def _dotted(cls, value: str) -> str:
        value = value.strip()
        if not value or re.search(r"[/\\\x00]", value):
            raise ValueError("must be a file ending such as .txt")
        return value if value.startswith(".") else "." + value

    @classmethod
    def folder_options(cls) -> tuple[str, ...]:
        """Options that a dataset file carries itself."""
        return (
            "resolution",
            "enable_bucket",
            "bucket_no_upscale",
            "num_repeats",
            "caption_extension",
            "cache_directory",
        )

    def _dataset_problems(self) -> list[Problem]:
        if self.dataset_config is None and self.dataset is None:
            rule = "is missing: pictures are needed"
            return [
                Problem(
                    "dataset", "", rule, "Give a picture folder (dataset) or a dataset file (dataset_config)"
                )
            ]
        if self.dataset_config is not None and self.dataset is not None:
            rule = "excludes dataset_config: the pictures come from a folder or from a dataset file"
            return [Problem("dataset", str(self.dataset), rule, "Leave one of the two out")]
        if self.dataset_config is None:
            return self._bucket_problems()
        return [
            Problem(
                name,
                show(getattr(self, name)),
                "has no effect beside dataset_config",
                f"Set it in {path.name}",
            )
            for path in (self.dataset_config,)
            for name in self.folder_options()
            if getattr(self, name) != options_of(type(self))[name].default
        ]

    def _bucket_problems(self) -> list[Problem]:
        found = []
        if self.bucket_no_upscale and not self.enable_bucket:
            found.append(
                Problem(
                    "bucket_no_upscale", "true", "needs buckets", "Set enable_bucket to true, or leave it out"
                )
            )
        if not self.enable_bucket and any(edge % 16 for edge in self.resolution):
            rule = "must be multiples of 16 without buckets"
            remedy = "Set enable_bucket to true, or choose other numbers"
            found.append(Problem("resolution", show(self.resolution), rule, remedy))
        return found
