"""What a user may choose when pictures and captions are encoded ahead of training.

This module knows the two cache commands' options; it must not know cache files.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from zimage_gui.config.common import (
    Precision,
    RunOptions,
    TextEncoderPath,
    VaePath,
    precision_option,
)
from zimage_gui.config.memory_parts import TextEncoderMemory
from zimage_gui.config.schema import Options, When, like, option
from zimage_gui.config.variant_parts import CaptionVariants, PixelVariants
from zimage_gui.errors import Problem


class CacheOptions(Options):
    num_workers: int | None = option(
        None,
        section="performance",
        label="Workers",
        help="Threads that read and resize pictures; empty: one less than the CPU has cores.",
        advanced=True,
        ge=0,
        le=256,
    )
    skip_existing: bool = option(
        False,
        section="cache",
        label="Trust existing files",
        help="Keep every cache file that exists without checking whether its picture or caption has changed.",
        advanced=True,
    )
    keep_cache: bool = option(
        False,
        section="cache",
        label="Keep old files",
        help="Keep cache files whose picture is gone. Off: they are deleted.",
        advanced=True,
    )


_ENCODES = When("debug_mode is empty", lambda c: c.debug_mode is None)


class CacheLatentsConfig(RunOptions, CacheOptions, PixelVariants, VaePath):
    """Encode the pictures with the VAE."""

    command: ClassVar[str] = "cache-latents"

    skip_existing: bool = like(CacheOptions, "skip_existing", False, matters=_ENCODES)
    keep_cache: bool = like(CacheOptions, "keep_cache", False, matters=_ENCODES)
    batch_size: int | None = option(
        None,
        section="cache",
        label="Encoder batch",
        help="Pictures encoded at once; touches no dataset. Empty: 1 on a CPU, more on a GPU as "
        "memory allows.",
        unit="pictures",
        ge=1,
        le=4096,
        matters=_ENCODES,
    )
    debug_mode: Literal["image", "console", "video"] | None = option(
        None,
        section="cache",
        label="Show only",
        help="Show the pictures as they are trained, resized and cropped, instead of encoding them: image "
        "(or video) writes PNG files into the run's folder, console prints characters.",
        advanced=True,
    )
    console_width: int = option(
        80,
        section="cache",
        label="Width in characters",
        help="Characters in a line of a printed picture.",
        advanced=True,
        matters=When("debug_mode is console", lambda c: c.debug_mode == "console"),
        ge=1,
        le=1000,
    )
    console_num_images: int | None = option(
        None,
        section="cache",
        label="Pictures shown",
        help="Most pictures shown of each dataset; empty: all.",
        advanced=True,
        matters=When("debug_mode is set", lambda c: c.debug_mode is not None),
        ge=1,
    )
    disable_cudnn_backend: bool = option(
        False,
        section="performance",
        label="cuDNN off",
        help="Compute without cuDNN, which some AMD cards need.",
        advanced=True,
        matters=_ENCODES,
    )
    mixed_precision: Precision = precision_option(
        "no", "Number format of the VAE: no (fp32, exact), bf16 or fp16."
    )

    def problems(self) -> list[Problem]:
        models = [] if self.debug_mode is not None else self._model_problems("vae")
        return [*models, *self._dataset_problems()]


class CacheTextConfig(RunOptions, CacheOptions, TextEncoderMemory, CaptionVariants, TextEncoderPath):
    """Encode the captions with the text encoder."""

    command: ClassVar[str] = "cache-text"

    batch_size: int = option(
        1,
        section="cache",
        label="Encoder batch",
        help="Captions encoded at once; touches no dataset.",
        unit="captions",
        ge=1,
        le=4096,
    )
    mixed_precision: Precision = precision_option(
        "bf16", "Number format of the text encoder: bf16 (recommended), fp16, or no for full fp32."
    )

    def problems(self) -> list[Problem]:
        return [*self._model_problems("text_encoder"), *self._dataset_problems()]
