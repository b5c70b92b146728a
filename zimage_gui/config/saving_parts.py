"""Training options around the learning itself: saving, pictures during training, speed, metadata.

This module knows single options; rules between them are in `training.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from zimage_gui.config.common import (
    AttentionMode,
    Precision,
    attention_option,
    precision_option,
    zero_is_none,
)
from zimage_gui.config.schema import Options, When, option

SavePrecision = Literal["fp32", "fp16", "bf16"]
SAVE_PRECISIONS = {"float": "fp32", "float32": "fp32", "no": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _reached(name: str, *, inside: bool = False) -> Callable[[Any], bool]:
    """Whether a run is so many steps or epochs long that the option `name` counts; inside: and goes on then.
    How many steps an epoch has is not known here."""
    epochs = name.endswith("epochs")

    def reached(config: Any) -> bool:
        every, most = getattr(config, name), config.max_train_epochs
        if not epochs and most is None:
            most = config.max_train_steps
        elif not epochs:
            return True
        return every is None or most is None or every < most or (every == most and not inside)

    return reached


def _saves(name: str) -> When:
    unit = name.rpartition("_")[2]
    return When(f"the run goes on after so many {unit}", _reached(name, inside=True))


class Saving(Options):
    output_dir: Path | None = option(
        None,
        section="saving",
        label="Output folder",
        help="Where the results go. Left out: the folder checkpoints of the run.",
        path="out_folder",
    )
    output_name: str = option(
        "zimage",
        section="saving",
        label="Output name",
        help="Name of the result without ending: NAME.safetensors, NAME-000004.safetensors, "
        "NAME-step00000250.safetensors.",
    )
    save_every_n_steps: int | None = option(
        None,
        section="saving",
        label="Save every … steps",
        help="Save a checkpoint each time so many steps are done; empty or 0: not by steps.",
        unit="steps",
        aliases=("save_every",),
        ge=1,
        matters=_saves("save_every_n_steps"),
    )
    save_every_n_epochs: int | None = option(
        None,
        section="saving",
        label="Save every … epochs",
        help="Save a checkpoint after so many epochs; empty or 0: not by epochs.",
        unit="epochs",
        ge=1,
        matters=_saves("save_every_n_epochs"),
    )
    save_last_n_steps: int | None = option(
        None,
        section="saving",
        label="Keep the last … steps",
        help="Delete checkpoints by steps that are more than so many steps old; empty: keep all.",
        unit="steps",
        advanced=True,
        ge=1,
        matters=When("save_every_n_steps is set", lambda c: c.save_every_n_steps),
    )
    save_last_n_epochs: int | None = option(
        None,
        section="saving",
        label="Keep the last … epochs",
        help="Keep this many of the checkpoints by epochs; empty: keep all.",
        unit="epochs",
        advanced=True,
        ge=1,
        matters=When("save_every_n_epochs is set", lambda c: c.save_every_n_epochs),
    )
    save_last_n_steps_state: int | None = option(
        None,
        section="saving",
        label="Keep states of the last … steps",
        help="The same for states; empty: as for the checkpoints.",
        unit="steps",
        advanced=True,
        ge=1,
        matters=When(
            "save_every_n_steps is set and save_state is on",
            lambda c: c.save_every_n_steps and c.save_state,
        ),
    )
    save_last_n_epochs_state: int | None = option(
        None,
        section="saving",
        label="Keep states of the last … epochs",
        help="The same for states; empty: as for the checkpoints.",
        unit="epochs",
        advanced=True,
        ge=1,
        matters=When(
            "save_every_n_epochs is set and save_state is on",
            lambda c: c.save_every_n_epochs and c.save_state,
        ),
    )
    save_state: bool = option(
        False,
        section="saving",
        label="Save the state",
        help="Save everything needed to resume with every checkpoint. A stopped run always saves it.",
    )
    save_state_on_train_end: bool = option(
        False,
        section="saving",
        label="Save the state at the end",
        help="Save the state when training ends, to go on later.",
        advanced=True,
    )
    resume: Path | None = option(
        None,
        section="saving",
        label="Resume from",
        help="A state folder. Training goes on at the very step it was saved at and writes its own "
        "files further.",
        path="folder",
        matters=When("huggingface_resume is empty", lambda c: not c.huggingface_resume),
    )

    _never_saves = field_validator("save_every_n_steps", "save_every_n_epochs", mode="before")(zero_is_none)

    @field_validator("output_name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        return plain_file_name(value)


_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def plain_file_name(value: str) -> str:
    """A name that is a legal file name on Windows and Linux and stays in its folder."""
    if not value.strip() or re.search(r'[<>:"/\\|?*\x00-\x1f]', value) or value.strip(". ") != value.strip():
        raise ValueError('must be a file name without folders and without < > : " / \\ | ? *')
    if _RESERVED.fullmatch(value) or len(value.encode("utf-8", "replace")) > 180:
        raise ValueError("must be a file name that Windows allows too, of at most 180 bytes")
    return value


_SHOWN = When("sample_prompts is set", lambda c: c.sample_prompts is not None)


class Previews(Options):
    sample_prompts: Path | None = option(
        None,
        section="previews",
        label="Prompt file",
        help="Text file with one prompt per line and its options: --n negative --w --h --s steps --d "
        "seed --l guidance "
        "--fs shift.",
        path="file",
    )
    sample_every_n_steps: int | None = option(
        None,
        section="previews",
        label="Every … steps",
        help="Make the pictures each time so many steps are done; empty or 0: not by steps.",
        unit="steps",
        aliases=("sample_every",),
        matters=_SHOWN.also("the run has so many steps", _reached("sample_every_n_steps")),
        ge=1,
    )
    sample_every_n_epochs: int | None = option(
        None,
        section="previews",
        label="Every … epochs",
        help="Make the pictures after so many epochs; empty or 0: not by epochs.",
        unit="epochs",
        matters=_SHOWN.also("the run has so many epochs", _reached("sample_every_n_epochs")),
        ge=1,
    )
    sample_at_first: bool = option(
        False,
        section="previews",
        label="Before the first step",
        help="Make the pictures once before training, to compare with.",
        matters=_SHOWN,
    )

    _never_shows = field_validator("sample_every_n_steps", "sample_every_n_epochs", mode="before")(
        zero_is_none
    )


class Performance(Options):
    mixed_precision: Precision = precision_option(
        "bf16",
        "Number format of the computation: bf16 (recommended), fp16, or no for full fp32.",
    )
    attn_mode: AttentionMode = attention_option(
        "Attention kernel: torch (built in; also called sdpa), flash, flash3 or xformers when installed. "
        "sage cannot train."
    )
    gradient_checkpointing: bool = option(
        True,
        section="performance",
        label="Gradient checkpointing",
        help="Compute each block twice instead of keeping its values: far less memory, about a third slower.",
    )
    gradient_checkpointing_fraction: str = option(
        "1",
        section="performance",
        label="Share computed twice",
        help="Share of the blocks that gradient checkpointing computes twice, 0 to 1; auto: the fewest with "
        "which the run fits the memory that is free. Changes no number, only time and memory.",
        advanced=True,
        matters=When("gradient_checkpointing is on", lambda c: c.gradient_checkpointing),
    )
    gradient_checkpointing_cpu_offload: bool = option(
        False,
        section="performance",
        label="Its inputs to the CPU",
        help="Keep the blocks' inputs in CPU memory until they are computed again; copied beside the work.",
        advanced=True,
        matters=When(
            "gradient_checkpointing is on and its share above 0",
            lambda c: c.gradient_checkpointing and c.gradient_checkpointing_fraction != "0",
        ),
    )
    max_data_loader_n_workers: int = option(
        2,
        section="performance",
        label="Loader workers",
        help="Threads that read cached pictures ahead of training; 0 reads in the training loop itself.",
        advanced=True,
        ge=0,
        le=256,
    )

    @field_validator("gradient_checkpointing_fraction")
    @classmethod
    def _share(cls, value: str) -> str:
        value = value.strip().lower()
        if value == "auto":
            return value
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError("must be a number from 0 to 1, or auto")
        return f"{share:g}" if share in (0, 1) else value


class FileMetadata(Options):
    no_metadata: bool = option(
        False,
        section="metadata",
        label="No metadata",
        help="Write no training settings into the file.",
        advanced=True,
    )
    training_comment: str = option(
        "",
        section="metadata",
        label="Comment",
        help="Text kept in the file as ss_training_comment.",
        advanced=True,
        matters=When("no_metadata is off", lambda c: not c.no_metadata),
    )
    metadata_title: str = option(
        "",
        section="metadata",
        label="Title",
        help="Title in the file; empty: the output name.",
        advanced=True,
    )
    metadata_author: str = option(
        "", section="metadata", label="Author", help="Author named in the file.", advanced=True
    )
    metadata_description: str = option(
        "", section="metadata", label="Description", help="Description in the file.", advanced=True
    )
    metadata_license: str = option(
        "", section="metadata", label="Licence", help="Licence named in the file.", advanced=True
    )
    metadata_tags: str = option(
        "", section="metadata", label="Tags", help="Tags in the file, separated by commas.", advanced=True
    )
    metadata_reso: str = option(
        "",
        section="metadata",
        label="Resolution",
        help="Size named in the file as width,height; empty: the largest size trained.",
        advanced=True,
    )
    metadata_arch: str = option(
        "",
        section="metadata",
        label="Architecture",
        help="Architecture named in the file; empty: Z-Image, with /lora behind it for a LoRA.",
        advanced=True,
    )

    @field_validator("metadata_reso")
    @classmethod
    def _named_size(cls, value: str) -> str:
        if value and not re.fullmatch(r"\s*[1-9]\d{0,4}\s*([,xX]\s*[1-9]\d{0,4}\s*)?", value):
            raise ValueError("must be width,height such as 1024,768, or one number for a square")
        return value
