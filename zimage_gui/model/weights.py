"""Fills our networks from checkpoints: strict, tensor by tensor, straight onto the target device and dtype.

Knows which network belongs to which checkpoint. Must not know runs or LoRA: a LoRA given as a model is named
and refused. A load never holds more than one stored tensor beside the network it fills.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from zimage_gui.errors import Problem, UserError
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.fp8 import checked_scale
from zimage_gui.model.fp8_names import FP8
from zimage_gui.model.keymaps import Source
from zimage_gui.model.offload import swapped_positions
from zimage_gui.model.placing import Format, Merges, place
from zimage_gui.model.quantise import Quant
from zimage_gui.model.recognise import require
from zimage_gui.model.saving import text_encoder_settings, transformer_settings, vae_settings
from zimage_gui.model.sizes import (
    Shapes,
    SizeError,
    TextEncoderConfig,
    TransformerConfig,
    text_encoder_config_from,
    transformer_config_from,
    vae_sizes_from,
)
from zimage_gui.model.sources import sources_of
from zimage_gui.model.tensor_files import FLOATS, SourceReader, read_tensor
from zimage_gui.model.text_encoder import Qwen3TextEncoder
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL, VaeConfig
from zimage_gui.model.whole_shapes import squeezed, whole_shapes

OnBytes = Callable[[int, int], None]
"""Progress of a load: (bytes read so far, bytes in all)."""

Network = TypeVar("Network", bound=nn.Module)

_SHOWN_NAMES = 6


def _silent(done: int, total: int) -> None:
    """Progress nobody asked for."""


def load_transformer(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    *,
    option: str = "dit",
    on_bytes: OnBytes = _silent,
    quant: Quant = "none",
    merges: Merges | None = None,
    swapped: int = 0,
    prepare: Callable[[ZImageTransformer], ZImageTransformer] = lambda model: model,
) -> ZImageTransformer:
    """The transformer of a hub folder, its transformer folder, any shard or a single file, in any layout.

    Parameters come frozen, the network in eval mode. quant: how the blocks' matrices are kept; merges: added
    to them before that; swapped: so many blocks stay on the CPU for a `BlockSwap`; prepare: called with the
    network before it has any memory. Raises UserError (naming `option`) for anything that is not a whole
    Z-Image transformer in plain floats or fp8.
    """
    checkpoint = _open(path, "transformer", option)
    config = _transformer_config(checkpoint)
    on_cpu = tuple(f"layers.{block}." for block in swapped_positions(config.n_layers, swapped))
    return _fill(
        lambda: prepare(ZImageTransformer(config)),
        checkpoint,
        "transformer",
        device,
        Format(dtype, quant, merges or {}, on_cpu),
        on_bytes,
    )


def load_vae(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    option: str = "vae",
    decoder_only: bool = False,
    on_bytes: OnBytes = _silent,
) -> AutoencoderKL:
    """The autoencoder of a hub folder, its vae folder or a single file, in any layout.

    decoder_only: leave the encoder on disk, where there may be none (the published ae.bpk has none).
    """
    checkpoint = _open(path, "vae", option)
    config = _vae_config(checkpoint, decoder_only)
    return _fill(
        lambda: AutoencoderKL(config, decoder_only=decoder_only), checkpoint, "vae", device, Format(dtype),
        on_bytes,
    )  # fmt: skip


def load_text_encoder(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    *,
    option: str = "text_encoder",
    on_bytes: OnBytes = _silent,
    quant: Quant = "none",
) -> Qwen3TextEncoder:
    """The text encoder of a hub folder, its text_encoder folder or a file; its last layer stays on disk.

    quant: how the layers' matrices are kept; norms and the embedding keep `dtype`.
    """
    checkpoint = _open(path, "text_encoder", option)
    config = _text_encoder_config(checkpoint)
    kept = Format(dtype, quant)
    return _fill(lambda: Qwen3TextEncoder(config), checkpoint, "text_encoder", device, kept, on_bytes)


def transformer_config_of(path: Path, option: str = "dit") -> TransformerConfig:
    """Sizes of the transformer at `path`, from headers only; raises UserError when a load would."""
    checkpoint = _open(path, "transformer", option)
    config = _transformer_config(checkpoint)
    _strict(_outline(ZImageTransformer, config), checkpoint, _sources(checkpoint, "transformer"))
    return config


def vae_config_of(path: Path, option: str = "vae", *, decoder_only: bool = False) -> VaeConfig:
    """Sizes of the autoencoder at `path`, from headers only; raises UserError when a load would."""
    checkpoint = _open(path, "vae", option)
    config = _vae_config(checkpoint, decoder_only)
    outline = _outline(AutoencoderKL, config, decoder_only=decoder_only)
    _strict(outline, checkpoint, _sources(checkpoint, "vae"))
    return config


def text_encoder_config_of(path: Path, option: str = "text_encoder") -> TextEncoderConfig:
    """Sizes of the text encoder at `path`, from headers only; raises UserError when a load would."""
    checkpoint = _open(path, "text_encoder", option)
    config = _text_encoder_config(checkpoint)
    _strict(_outline(Qwen3TextEncoder, config), checkpoint, _sources(checkpoint, "text_encoder"))
    return config


@dataclass(frozen=True)
class WholeModel:
    """All tensors of a model under our names, a text encoder's unused last layer too; its config.json."""

    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]


def whole_model(part: str, shapes: Shapes, settings: Mapping[str, Any]) -> WholeModel:
    """What a model of this part must consist of, from the tensors it has. Raises SizeError when they tell no
    sizes."""
    if part == "transformer":
        written = transformer_settings(transformer_config_from(shapes, settings))
    elif part == "vae":
        written = vae_settings(VaeConfig(**vae_sizes_from(shapes, settings)))
    else:
        written = text_encoder_settings(text_encoder_config_from(shapes, settings))
    return WholeModel(whole_shapes(part, shapes, settings), written)


def transformer_tensors(path: Path, option: str = "dit") -> tuple[Checkpoint, dict[str, Source]]:
    """A transformer's headers and where each of our tensors lies, for reading it one tensor at a time."""
    checkpoint = _open(path, "transformer", option, fp8=False)
    return checkpoint, _sources(checkpoint, "transformer")


def model_problems(
    transformer: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    *,
    decoder_only: bool = False,
) -> list[Problem]:
    """Everything that would stop loading these models, for a command's preflight; reads no tensor.

    decoder_only: the command does not encode pictures, as `load_vae` takes it.
    """
    checks: list[tuple[Callable[..., Any], Path | None, str]] = [
        (transformer_config_of, transformer, "dit"),
        (partial(vae_config_of, decoder_only=decoder_only), vae, "vae"),
        (text_encoder_config_of, text_encoder, "text_encoder"),
    ]
    problems: list[Problem] = []
    for check, path, option in checks:
        if path is not None:
            try:
                check(path, option)
            except UserError as error:
                problems.extend(error.problems)
    return problems


def _open(path: Path, part: str, option: str, *, fp8: bool = True) -> Checkpoint:
    checkpoint = require(Path(path), part, option, fp8=fp8 and part != "vae").checkpoint
    assert checkpoint is not None  # `require` returns only what it has read
    return checkpoint


def _sources(checkpoint: Checkpoint, part: str) -> dict[str, Source]:
    return sources_of(part, checkpoint.shapes)


def _shapes(checkpoint: Checkpoint, part: str) -> Shapes:
    sources = _sources(checkpoint, part)
    return {name: _stored_shape(checkpoint, source) for name, source in sources.items()}


def _stored_shape(checkpoint: Checkpoint, source: Source) -> tuple[int, ...]:
    return source.shape_of(checkpoint.places[source.name].info.shape)


@contextlib.contextmanager
def _size_errors(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except SizeError as error:
        remedy = "Download the model again, or choose another file"
        raise UserError.one(checkpoint.option, checkpoint.path, str(error), remedy) from error


def _transformer_config(checkpoint: Checkpoint) -> TransformerConfig:
    with _size_errors(checkpoint):
        return transformer_config_from(
            _shapes(checkpoint, "transformer"), checkpoint.settings_of("transformer")
        )


def _text_encoder_config(checkpoint: Checkpoint) -> TextEncoderConfig:
    with _size_errors(checkpoint):
        return text_encoder_config_from(
            _shapes(checkpoint, "text_encoder"), checkpoint.settings_of("text_encoder")
        )


def _vae_config(checkpoint: Checkpoint, decoder_only: bool) -> VaeConfig:
    if not decoder_only and not any(name.startswith("encoder.") for name in _sources(checkpoint, "vae")):
        rule = "is the decoder of an autoencoder alone; making caches, and so training, needs its encoder too"
        remedy = "Use ae.safetensors (Flux) or the vae folder of Tongyi-MAI/Z-Image-Turbo"
        raise UserError.one(checkpoint.option, checkpoint.path, rule, remedy)
    with _size_errors(checkpoint):
        return VaeConfig(**vae_sizes_from(_shapes(checkpoint, "vae"), checkpoint.settings_of("vae")))


def _on_meta(build: Callable[[], Network]) -> Network:
    with torch.device("meta"):
        return build()


@functools.lru_cache(maxsize=6)
def _outline(network: Callable[..., nn.Module], config: object, **options: bool) -> nn.Module:
    """A network of these sizes without numbers, to be looked at: a preflight asks for the same one often."""
    return _on_meta(lambda: network(config, **options))


@dataclass(frozen=True)
class _Assignment:
    """One parameter of the network and where its values lie."""

    name: str
    shape: torch.Size
    source: Source


def _strict(model: nn.Module, checkpoint: Checkpoint, sources: Mapping[str, Source]) -> list[_Assignment]:
    """Pairs every parameter with its source, or raises one UserError naming everything that does not fit."""
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    unused = set(getattr(model, "unused_names", lambda names: ())(sources))
    missing = sorted(set(wanted) - set(sources))
    unexpected = sorted(set(sources) - set(wanted) - unused)
    misshaped, wrong_dtype = [], []
    for name in sorted(set(wanted) & set(sources)):
        stored = _stored_shape(checkpoint, sources[name])
        if squeezed(stored) != squeezed(tuple(wanted[name])):
            misshaped.append(f"{name} is {list(stored)}, needed {list(wanted[name])}")
        dtype = checkpoint.places[sources[name].name].info.dtype
        if dtype not in (*FLOATS, *FP8):
            wrong_dtype.append(f"{name} is {dtype}")
    raise_misfit(
        checkpoint,
        missing=missing,
        unexpected=[sources[name].name for name in unexpected],
        misshaped=misshaped,
        wrong_dtype=wrong_dtype,
    )
    return [_Assignment(name, wanted[name], sources[name]) for name in wanted]


def raise_misfit(
    checkpoint: Checkpoint,
    *,
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    wrong_dtype: list[str],
) -> None:
    """One UserError with all that keeps a checkpoint from being a whole model, if there is anything."""
    findings = [
        _finding(missing, "missing"),
        _finding(unexpected, "unexpected"),
        _finding(misshaped, "of another shape"),
        _finding(wrong_dtype, "of a dtype that holds no plain weights"),
    ]
    rule = "; ".join(finding for finding in findings if finding)
    if rule:
        remedy = "Download the model again; if it is another variant, this program does not know it"
        raise UserError.one(checkpoint.option, checkpoint.path, f"does not fit the model: {rule}", remedy)


def _finding(names: list[str], what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN_NAMES]) + (" …" if len(names) > _SHOWN_NAMES else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what} ({shown})"


def _fill(
    build: Callable[[], Network],
    checkpoint: Checkpoint,
    part: str,
    device: torch.device | str,
    kept: Format,
    on_bytes: OnBytes,
) -> Network:
    """Builds the network without memory and gives it its parameters in the order they have on disk."""
    model = _on_meta(build)
    assignments = _strict(model, checkpoint, _sources(checkpoint, part))
    places = checkpoint.places
    assignments.sort(
        key=lambda a: (
            str(places[a.source.name].file),
            places[a.source.name].info.start,
            a.source.rows or a.source.columns or (0, 0),
        )
    )
    reader = SourceReader()
    total = sum(a.shape.numel() * _bytes_each(checkpoint, a) for a in assignments)
    done = 0
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(open(path, "rb")) for path in checkpoint.files}
        for assignment in assignments:
            where = places[assignment.source.name]
            tensor = reader.read(files[where.file], where.info, assignment.source).view(assignment.shape)
            scale = _scale_of(checkpoint, assignment.source, files)
            scale = None if scale is None else scale.to(device)
            place(model, part, assignment.name, tensor.to(device), scale, kept)
            done += assignment.shape.numel() * _bytes_each(checkpoint, assignment)
            on_bytes(done, total)
    return model.eval()


def _scale_of(checkpoint: Checkpoint, source: Source, files: Mapping[Path, BinaryIO]) -> Tensor | None:
    """The scale of an fp8 weight, cut to the rows of it that are ours."""
    where = checkpoint.scales.get(source.name)
    if where is None:
        return None
    scale = read_tensor(files[where.file], where.info)
    checked_scale(scale, source.name, checkpoint.option, checkpoint.path)
    return scale if scale.numel() == 1 or source.rows is None else scale[slice(*source.rows)]


def _bytes_each(checkpoint: Checkpoint, assignment: _Assignment) -> int:
    info = checkpoint.places[assignment.source.name].info
    return (info.end - info.start) // max(1, torch.Size(info.shape).numel())
