"""What a user may choose when a dataset is looked over. This module knows options, not pictures."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from zimage_gui.config.common import PictureFolder
from zimage_gui.config.schema import option
from zimage_gui.errors import Problem


class DatasetConfig(PictureFolder):
    """Look over a dataset: pictures, captions, buckets and what is wrong; write its TOML."""

    command: ClassVar[str] = "dataset"
    positionals: ClassVar[tuple[str, ...]] = ("dataset",)

    batch_size: int = option(
        1,
        section="dataset",
        label="Batch size",
        help="Pictures per training step, written into the dataset file.",
        unit="pictures",
        matters="a picture folder is given",
        ge=1,
        le=4096,
    )
    write_toml: Path | None = option(
        None,
        section="output",
        label="Write dataset file",
        help="Write the dataset TOML that describes these pictures to this path.",
        path="out_file",
        aliases=("output",),
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Replace the dataset file if it exists.",
        advanced=True,
    )

    def problems(self) -> list[Problem]:
        return self._dataset_problems()
