"""The fp8 scales of a model to convert, looked at before anything is written.

Knows where scales lie. Must not know options or what is written. They are small: 0.2 GB for the released
model with one per 64 numbers, and read again from memory when their weights are opened.
"""

from __future__ import annotations

from zimage_gui.engine.convert_model_source import ModelSource
from zimage_gui.model.fp8 import checked_scale
from zimage_gui.model.tensor_files import read_tensor


def refuse_lost_scales(source: ModelSource) -> None:
    """Raises UserError naming the first weight whose scale is infinite or NaN."""
    checkpoint = source.checkpoint
    for weight in dict.fromkeys(one.name for one in source.sources.values()):
        scale = source.parts.scales.get(weight)
        if scale is not None:
            place = checkpoint.places[scale]
            with place.file.open("rb") as file:
                checked_scale(read_tensor(file, place.info), weight, checkpoint.option, checkpoint.path)
