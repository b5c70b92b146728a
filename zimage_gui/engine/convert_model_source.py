"""What a model to convert is: its part, its layout, where each of our tensors lies, what is left behind.

Knows headers and names. Must not know torch, options, or what is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.errors import UserError
from zimage_gui.files import TensorInfo
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.fp8_names import FP8, Fp8Parts, fp8_parts
from zimage_gui.model.keymaps import Shape, Source, own_names, prefix_of
from zimage_gui.model.recognise import USABLE, Recognised, recognise
from zimage_gui.model.sources import sources_of

FLOATS = ("F64", "F32", "F16", "BF16")
WORDS = {"transformer": "transformer", "vae": "VAE", "text_encoder": "text encoder"}


@dataclass(frozen=True)
class ModelSource:
    """A model as it lies on disk.

    layout: "diffusers", "comfy", "ldm", "hub" or "burn", as found; sources: {our name: where it lies}; parts:
    the fp8 scales; left_out: names of the file that are not carried over.
    """

    checkpoint: Checkpoint
    part: str
    layout: str
    prefix: str
    sources: Mapping[str, Source]
    parts: Fp8Parts
    left_out: tuple[str, ...]

    def info(self, name: str) -> TensorInfo:
        """Of a tensor of the file."""
        return self.checkpoint.places[name].info

    def shapes(self) -> dict[str, Shape]:
        """Shapes of our tensors, as stored."""
        return {name: source.shape_of(self.info(source.name).shape) for name, source in self.sources.items()}

    @property
    def scaled(self) -> bool:
        """Whether any of our weights is stored as fp8, with a scale or without."""
        return any(
            source.name in self.parts.scales or self.info(source.name).dtype in FP8
            for source in self.sources.values()
        )


def open_model(path: Path, option: str, part: str | None = None) -> ModelSource:
    """The model at `path`; `part` says which one is meant, else it is recognised.

    Raises UserError (naming `option`) for anything that is no whole transformer, VAE or text encoder with
    numbers that can be read.
    """
    found = recognise(path, option, part)
    kind = _part_of(found, path, option, part)
    checkpoint = found.checkpoint
    assert checkpoint is not None  # `_part_of` refuses what has none
    infos = {name: place.info for name, place in checkpoint.places.items()}
    try:
        parts = fp8_parts(infos)
    except ValueError as error:
        raise UserError.one(option, path, str(error), "Use the bf16 file of the same model") from error
    shapes = {name: infos[name].shape for name in parts.plain}
    sources = sources_of(kind, shapes)
    source = ModelSource(
        checkpoint,
        kind,
        _layout(found, sources, kind),
        prefix_of(shapes, kind) or "",
        sources,
        parts,
        _left_out(parts, sources),
    )
    _refuse_strange_dtypes(source, path, option)
    return source


def _part_of(found: Recognised, path: Path, option: str, asked: str | None) -> str:
    names = list(found.checkpoint.places) if found.checkpoint else []
    present = [part for part in USABLE if prefix_of(names, part) is not None]
    known = found.kind in (*USABLE, "all_in_one", "quantised", "sd_vae")
    if not known or found.checkpoint is None or not present:
        remedies = {
            "lora": "Use convert-lora for LoRA files, or merge to put it into a model",
            "gguf": "Use the bf16 safetensors file of the same model",
            "pickle": "Use the safetensors file of the same model",
        }
        rule = (
            f"must be a Z-Image transformer, a Flux VAE or a Qwen3 text encoder, but this is {found.sentence}"
        )
        raise UserError.one(option, path, rule, remedies.get(found.kind, "Choose another file"))
    if asked is None:
        return present[0]
    if asked not in present:
        rule = f"must be a {WORDS[asked]}, but this is {found.sentence}"
        raise UserError.one(option, path, rule, f"Leave out model_type, or give a {WORDS[asked]}")
    return asked


def _layout(found: Recognised, sources: Mapping[str, Source], part: str) -> str:
    if any(source.transposed for source in sources.values()):
        return "burn"
    if any(source.name.endswith(".gamma") for source in sources.values()):
        return "burn"
    if part == "text_encoder":
        return "hub"
    if part == "vae":
        ldm = any(".down." in f".{source.name}" or ".up." in source.name for source in sources.values())
        return "ldm" if ldm else "diffusers"
    fused = any(source.name.endswith(".attention.qkv.weight") for source in sources.values())
    return "comfy" if fused else "diffusers"


def _left_out(parts: Fp8Parts, sources: Mapping[str, Source]) -> tuple[str, ...]:
    used = {source.name for source in sources.values()}
    return tuple(name for name in parts.plain if name not in used)


def unread_names(source: ModelSource) -> list[str]:
    """Those left out that belong to this part; the others are other parts of an all-in-one file."""
    own = own_names(source.parts.plain, source.part)
    return [name for name in source.left_out if name in own]


def _refuse_strange_dtypes(source: ModelSource, path: Path, option: str) -> None:
    strange = {
        one.name: source.info(one.name).dtype
        for one in source.sources.values()
        if source.info(one.name).dtype not in (*FLOATS, *FP8)
    }
    if strange:
        name, dtype = next(iter(strange.items()))
        rule = f"stores {len(strange)} tensors as {dtype} ({name}), which hold no plain numbers"
        raise UserError.one(option, path, rule, "Use the bf16 file of the same model")


def elements(shape: Shape) -> int:
    return math.prod(shape)
