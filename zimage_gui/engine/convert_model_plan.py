"""What will be written: files, tensors in order, metadata, bytes; all from headers, before a weight is read.

Knows layouts and number formats. Must not know torch, so that the window can show a plan at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zimage_gui import __version__
from zimage_gui.config.convert_model import ModelOutput
from zimage_gui.engine.convert_model_source import ModelSource, elements, unread_names
from zimage_gui.errors import Problem, UserError, raise_if_any, tried
from zimage_gui.files import BITS_OF_DTYPE
from zimage_gui.model.burn_names import burn_records
from zimage_gui.model.checkpoint import CONFIG_KEY
from zimage_gui.model.fp8_names import MARK, block_scale_shape, is_fp8_target
from zimage_gui.model.keymaps import Shape, fused_parts, ldm_vae_name

FLOAT_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_HUB_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}$")
# They describe the bytes of the source, or a quantisation that is undone or made anew.
_STALE = (
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
    "_quantization_metadata",
    "format",
    CONFIG_KEY,
)
_BURN_OWN = ("producer", "version")


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write, made of ours, whose rows follow each other before the transpose.

    dtype as safetensors spells it. fp8: "" or how it is quantised ("comfy", "blocks"); then `scale` (name,
    dtype, shape) is written after it. copied: instead of all that, a tensor of the source as it is stored, or
    `MARK`.
    """

    name: str
    dtype: str
    shape: Shape
    parts: tuple[str, ...] = ()
    transposed: bool = False
    fp8: str = ""
    scale: tuple[str, str, Shape] | None = None
    copied: str = ""

    @property
    def bytes(self) -> int:
        size = elements(self.shape) * BITS_OF_DTYPE[self.dtype] // 8
        return size + (elements(self.scale[2]) * BITS_OF_DTYPE[self.scale[1]] // 8 if self.scale else 0)


@dataclass(frozen=True)
class Plan:
    """files: {file name inside the output, "" for the output itself: its tensors}; settings: the config.json
    of a folder; notes: what a person should know before."""

    source: ModelSource
    output: Path
    layout: str
    files: Mapping[str, tuple[OutTensor, ...]]
    metadata: Mapping[str, str]
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> list[OutTensor]:
        return [tensor for file in self.files.values() for tensor in file]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def folder(self) -> bool:
        return "" not in self.files


def layout_of(config: ModelOutput, output: Path) -> str:
    """The layout that the options and the output's name ask for. Raises UserError when they contradict."""
    suffix = output.suffix.lower()
    folder = output.is_dir() or suffix not in (".safetensors", ".bpk")
    if folder and suffix and not output.is_dir() and not re.fullmatch(r"\.\d+", suffix):
        rule = f"ends in {output.suffix}, which is no format to write"
        raise UserError.one("output", output, rule, "End it in .safetensors or .bpk, or name a folder")
    if _SHARD_NAME.search(output.stem):
        rule = "is the name of one shard of several, whose number follows from their size"
        raise UserError.one(
            "output", output, rule, f"Give a folder, for example {output.parent / 'transformer'}"
        )
    natural = "diffusers" if folder else {".bpk": "burn", ".safetensors": "comfy"}[suffix]
    layout = config.layout or natural
    fits = layout == natural or (layout == "diffusers" and suffix == ".safetensors")
    if not fits:
        remedy = {
            "burn": "A .bpk file goes with burn",
            "diffusers": "A folder, or a .safetensors file, goes with diffusers",
            "comfy": "A .safetensors file goes with comfy",
        }[layout]
        raise UserError.one("layout", layout, f"does not go with the output {output.name}", remedy)
    return layout


def is_folder(layout: str, output: Path) -> bool:
    return layout == "diffusers" and output.suffix.lower() != ".safetensors"


def format_problems(config: ModelOutput, output: Path) -> list[Problem]:
    """What the options ask for and no output of this kind can hold, whatever the model is."""
    problems: list[Problem] = []
    layout = tried(lambda: layout_of(config, output), problems)
    if layout is None:
        return problems
    folder = is_folder(layout, output)
    if config.dtype.startswith("fp8") and (layout == "burn" or folder):
        where = "a .bpk file" if layout == "burn" else "a diffusers folder"
        remedy = "Choose f32, f16 or bf16, or write a single .safetensors file"
        problems.append(Problem("dtype", config.dtype, f"does not go into {where}", remedy))
    return problems


def make_plan(
    source: ModelSource,
    config: ModelOutput,
    output: Path,
    shapes: Mapping[str, Shape],
    settings: Mapping[str, Any] | None = None,
    told: bool = True,
) -> Plan:
    """The plan of a conversion. shapes: those our tensors have in the network; settings: config.json, which a
    folder needs, and a single file too, in its header, unless its tensors have `told` all of it.

    Raises UserError for a number format that the layout cannot hold."""
    layout = layout_of(config, output)
    folder = is_folder(layout, output)
    raise_if_any(format_problems(config, output))
    _refuse_formats(source, config, layout, folder)
    prefix = _prefix(source, config, layout, folder)
    copied = config.dtype == "keep" and source.scaled
    tensors = (
        _as_stored(source, layout, prefix) if copied else _tensors(source, config, layout, prefix, shapes)
    )
    files = {"": tuple(tensors)}
    if folder:
        files = _shards(tensors, _HUB_STEMS[source.part], config.max_shard_size)
    metadata = _metadata(source, layout, keep_quantisation=copied)
    if settings and not folder and not told:
        metadata[CONFIG_KEY] = json.dumps(dict(settings), ensure_ascii=False)
    return Plan(source, output, layout, files, metadata, settings if folder else None, _notes(source))


def _refuse_formats(source: ModelSource, config: ModelOutput, layout: str, folder: bool) -> None:
    fp8 = config.dtype.startswith("fp8")
    if fp8 and source.part == "vae":
        raise UserError.one("dtype", config.dtype, "is not made for a VAE", "Choose f32, bf16 or f16")
    if config.dtype == "keep" and source.scaled and (folder or layout != _plain_layout(source)):
        rule = "would keep fp8 numbers, which another layout cannot hold as they are"
        anew = not folder and layout != "burn" and source.part != "vae"
        remedy = "Choose bf16 or f32 (exact)" + (", or one of the fp8 forms" if anew else "")
        raise UserError.one("dtype", "keep", rule, remedy)
    if folder and source.part == "vae" and not any(name.startswith("encoder.") for name in source.sources):
        rule = "holds a decoder alone, which diffusers cannot load"
        raise UserError.one("input", source.checkpoint.path, rule, "Write a .safetensors or .bpk file")


def _plain_layout(source: ModelSource) -> str:
    """The layout option that stands for the layout the source has."""
    return {"ldm": "comfy", "hub": "comfy"}.get(source.layout, source.layout)


def _prefix(source: ModelSource, config: ModelOutput, layout: str, folder: bool) -> str:
    own = "model." if source.part == "text_encoder" and layout != "burn" else ""
    if config.prefix is None or config.prefix == own:
        return own
    if layout == "burn" or folder:
        where = "a .bpk file" if layout == "burn" else "a diffusers folder"
        rule = f"cannot be chosen for {where}, whose names are fixed"
        raise UserError.one("prefix", config.prefix or '""', rule, "Leave it out")
    return config.prefix


def _tensors(
    source: ModelSource, config: ModelOutput, layout: str, prefix: str, shapes: Mapping[str, Shape]
) -> list[OutTensor]:
    dtypes = {name: _float_dtype(source, name) for name in source.sources}
    target = FLOAT_NAMES.get(config.dtype)

    def dtype_of(parts: Sequence[str]) -> str:
        return target or _widest([dtypes[part] for part in parts])

    if layout == "burn":
        try:
            records = burn_records(source.part, shapes)
        except ValueError as error:
            raise UserError.one(
                "input", source.checkpoint.path, str(error), "Choose another layout"
            ) from error
        return [OutTensor(r.name, dtype_of(r.parts), r.shape, r.parts, r.transposed) for r in records]
    tensors = []
    for name, parts in _names(source.part, layout, shapes).items():
        first = shapes[parts[0]]
        shape = (sum(shapes[part][0] for part in parts), *first[1:]) if len(parts) > 1 else first
        if layout == "comfy" and ".attn_1." in name and len(shape) == 2:
            shape = (*shape, 1, 1)  # ldm has convolutions there
        tensor = OutTensor(prefix + name, dtype_of(parts), shape, parts)
        quantise = config.dtype.startswith("fp8") and all(is_fp8_target(part, source.part) for part in parts)
        tensors.append(_quantised(tensor, config.dtype.removeprefix("fp8_")) if quantise else tensor)
    if config.dtype == "fp8_comfy":
        # Two numbers in it ask ComfyUI to multiply in full precision: Z-Image's activations overflow fp8.
        tensors.append(OutTensor(prefix + MARK, "F8_E4M3", (2,), copied=MARK))
    return in_order(tensors)


def in_order(tensors: Sequence[OutTensor]) -> list[OutTensor]:
    """Widest numbers first, as other writers align them; fp8 weights, scales behind them, at the end."""
    return sorted(tensors, key=lambda tensor: (-BITS_OF_DTYPE[tensor.dtype], tensor.name))


def _names(part: str, layout: str, shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    if layout == "comfy" and part == "transformer":
        return fused_parts(shapes)
    if layout == "comfy" and part == "vae":
        levels = len({name.split(".")[2] for name in shapes if name.startswith("decoder.up_blocks.")})
        return {ldm_vae_name(name, levels): (name,) for name in shapes}
    return {name: (name,) for name in shapes}


def _float_dtype(source: ModelSource, name: str) -> str:
    """Number format of our tensor when nothing else is asked for; fp8 becomes bf16, which holds it."""
    dtype = source.info(source.sources[name].name).dtype
    return dtype if dtype in ("F64", "F32", "F16", "BF16") else "BF16"


def _widest(dtypes: Sequence[str]) -> str:
    """The format that holds all of them: fp16 and bf16 together need fp32."""
    found = set(dtypes)
    if len(found) == 1:
        return dtypes[0]
    return "F64" if "F64" in found else "F32"


def _quantised(tensor: OutTensor, form: str) -> OutTensor:
    stem = tensor.name.removesuffix(".weight")
    scale = (
        (f"{stem}.scale_weight", "F32", ())
        if form == "comfy"
        else (f"{stem}.scale_weight", tensor.dtype, block_scale_shape(tensor.shape))
    )
    return OutTensor(tensor.name, "F8_E4M3", tensor.shape, tensor.parts, fp8=form, scale=scale)


def _as_stored(source: ModelSource, layout: str, prefix: str) -> list[OutTensor]:
    """Every tensor of an fp8 file under its own name but for the prefix."""
    names = {one.name for one in source.sources.values()} | set(source.parts.scales.values())
    names |= {name for name in source.parts.beside if name.startswith(source.prefix)}
    tensors = []
    for name in sorted(names):
        info = source.info(name)
        tensors.append(
            OutTensor(prefix + name.removeprefix(source.prefix), info.dtype, info.shape, copied=name)
        )
    return in_order(tensors)


def _shards(tensors: Sequence[OutTensor], stem: str, gigabytes: float) -> dict[str, tuple[OutTensor, ...]]:
    limit = gigabytes * 1e9
    groups: list[list[OutTensor]] = [[]]
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if groups[-1] and size + tensor.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": tuple(in_order(groups[0]))}
    return {
        f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": tuple(in_order(group))
        for number, group in enumerate(groups, 1)
    }


def index_of(plan: Plan) -> tuple[str, bytes] | None:
    """Name and text of a folder's index; None for one file."""
    if not plan.folder or len(plan.files) == 1:
        return None
    first = next(iter(plan.files))
    stem = re.sub(r"-\d{5}-of-\d{5}\.safetensors$", "", first)
    where = {tensor.name: file for file, tensors in plan.files.items() for tensor in tensors}
    table = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(where.items()))}
    return f"{stem}.safetensors.index.json", (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _metadata(source: ModelSource, layout: str, keep_quantisation: bool) -> dict[str, str]:
    stale = [name for name in _STALE if not (keep_quantisation and name == "_quantization_metadata")]
    if source.layout == "burn":
        stale += _BURN_OWN
    kept = {name: text for name, text in source.checkpoint.metadata.items() if name not in stale}
    if layout == "burn":
        return {**kept, "format": "burnpack", "producer": "zimage-gui", "version": __version__}
    # transformers refuses a file without it.
    return {**kept, "format": "pt"}


def _notes(source: ModelSource) -> tuple[str, ...]:
    notes = []
    unread = unread_names(source)
    others = len(source.left_out) - len(unread)
    if unread:
        shown = ", ".join(unread[:4]) + (" …" if len(unread) > 4 else "")
        notes.append(f"Left out, because no program reads it: {shown}")
    if others:
        text = f"Left out: {others} tensors of other parts in the same file (model_type chooses the part)"
        notes.append(text)
    return tuple(notes)
