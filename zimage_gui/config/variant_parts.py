"""What a user may choose so that one picture is seen in several ways: changing captions, mirrored pictures,
masks.

This module knows single options. Everything they ask for is encoded ahead and cached; rules between them are
in `engine/dataset/sources.py`, which also knows dataset files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zimage_gui.config.common import FOLDER, PictureFolder
from zimage_gui.config.schema import Options, When, option

_SHUFFLED = When("shuffle_caption is on", lambda c: c.shuffle_caption)


class CaptionVariants(PictureFolder):
    caption_prefix: str = option(
        "",
        section="dataset",
        label="Trigger word",
        help="Word or text put before every caption that does not begin with it; it stays first when "
        "tags are shuffled.",
        aliases=("trigger_word",),
        matters=FOLDER,
    )
    caption_dropout_rate: float = option(
        0.0,
        section="dataset",
        label="Caption dropout",
        help="Share of samples trained with an empty caption, which keeps guidance working; 0.05 to 0.1 is "
        "usual, 0: none.",
        matters=FOLDER,
        advanced=True,
        ge=0,
        le=1,
    )
    caption_lines: bool = option(
        False,
        section="dataset",
        label="Each line a caption",
        help="Every line of a caption file is a caption of its own; one of them is taken each time.",
        matters=FOLDER,
        advanced=True,
    )
    shuffle_caption: bool = option(
        False,
        section="dataset",
        label="Shuffle tags",
        help="Train a caption's comma-separated parts in changing orders.",
        matters=FOLDER,
        advanced=True,
    )
    keep_tokens: int = option(
        0,
        section="dataset",
        label="Tags that stay",
        help="So many tags at the beginning keep their place.",
        unit="tags",
        matters=_SHUFFLED,
        advanced=True,
        ge=0,
        le=1000,
    )
    shuffle_variants: int = option(
        4,
        section="dataset",
        label="Orders",
        help="So many shuffled orders of each caption are encoded ahead, beside the order as written.",
        unit="orders",
        matters=_SHUFFLED,
        advanced=True,
        ge=1,
        le=64,
    )

    @classmethod
    def folder_options(cls) -> tuple[str, ...]:
        return (*super().folder_options(), *CAPTION_VARIANTS)


class PixelVariants(PictureFolder):
    flip_aug: bool = option(
        False,
        section="dataset",
        label="Mirror pictures",
        help="Train every picture mirrored left to right half of the times. Not for text or anything "
        "that has a side.",
        matters=FOLDER,
        advanced=True,
    )
    alpha_mask: bool = option(
        False,
        section="dataset",
        label="Mask from transparency",
        help="What is transparent in a picture counts only as much as unmasked_weight says.",
        matters=FOLDER,
        advanced=True,
    )
    mask_directory: Path | None = option(
        None,
        section="dataset",
        label="Folder of masks",
        help="Gray pictures with the names of the pictures: what is black counts only as much as "
        "unmasked_weight says, what is white counts whole.",
        matters=FOLDER,
        path="folder",
        advanced=True,
    )

    @classmethod
    def folder_options(cls) -> tuple[str, ...]:
        return (*super().folder_options(), *PIXEL_VARIANTS)


CAPTION_VARIANTS = tuple(CaptionVariants.__annotations__)
PIXEL_VARIANTS = tuple(PixelVariants.__annotations__)


def _may_have_masks(config: Any) -> bool:
    """A dataset file says it for each folder."""
    return (config.dataset_config or config.mask_directory) is not None or config.alpha_mask


class MaskWeight(Options):
    unmasked_weight: float = option(
        0.1,
        section="timesteps",
        label="Weight outside masks",
        help="How much the error counts where a mask is black or a picture transparent; where it is white it "
        "counts 1.",
        advanced=True,
        matters=When("pictures have masks", _may_have_masks),
        ge=0,
        le=1,
    )
