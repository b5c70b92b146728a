"""Where a tensor goes that was just read: into a parameter, or quantised into the layer whose weight it is.

Knows networks, formats and the adapters that are merged on the way. Must not know files or layouts. One
tensor at a time is whole: a LoRA is added to it before it is quantised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zimage_gui.model.fp8 import dequantised
from zimage_gui.model.fp8_names import is_fp8_target
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.lora_read import LoraFile
from zimage_gui.model.quantise import Quant, QuantLinear, packed
from zimage_gui.model.rows import fill

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)

Merges = Mapping[str, Sequence[tuple[Entry, float]]]
"""{path of a Linear: adapters that are added to its weight, with their strengths}."""


@dataclass(frozen=True)
class Format:
    """How a network is kept in memory: `dtype` for what is not quantised, `quant` for the blocks' matrices;
    `merges`: what is added to weights before that; `on_cpu`: beginnings of names that go back to the CPU."""

    dtype: torch.dtype
    quant: Quant = "none"
    merges: Merges = field(default_factory=dict)
    on_cpu: tuple[str, ...] = ()


def merges_of(loras: Sequence[tuple[LoraFile, float]]) -> Merges:
    """What LoRA files with their strengths add to which weight."""
    merges: dict[str, list[tuple[Entry, float]]] = {}
    for file, multiplier in loras:
        for path, entry in file.entries.items():
            merges.setdefault(path, []).append((entry, multiplier))
    return merges


@torch.no_grad()
def place(model: nn.Module, part: str, name: str, stored: Tensor, scale: Tensor | None, kept: Format) -> None:
    """Gives `model` its tensor `name`, worked out on the device of `stored`. scale: of a weight stored as
    fp8."""
    _work_out(model, part, name, stored, scale, kept)
    if kept.on_cpu and name.startswith(kept.on_cpu):
        owner = model.get_submodule(name.rpartition(".")[0])
        for parameter in [found for found in owner.parameters() if not found.is_meta]:
            parameter.data = parameter.data.to("cpu")
        for buffer, tensor in list(owner.named_buffers()):
            owner.register_buffer(buffer, tensor.to("cpu"))


def _work_out(
    model: nn.Module, part: str, name: str, stored: Tensor, scale: Tensor | None, kept: Format
) -> None:
    path, _, leaf = name.rpartition(".")
    merges = kept.merges.get(path, ()) if leaf == "weight" else ()
    quant = kept.quant if is_fp8_target(name, part) else "none"
    if quant == "fp8" and stored.dtype in FP8 and not merges:
        scale = torch.ones(1, device=stored.device) if scale is None else scale
        _set_quantised(model, path, "fp8", stored, scale, stored.shape)
        return
    weight = stored if scale is None else dequantised(stored, scale, torch.float32 if merges else kept.dtype)
    if merges:
        base = weight.float()
        weight = base + sum(entry.delta(base).mul_(multiplier) for entry, multiplier in merges)
        del base
    if quant == "none":
        owner = model.get_submodule(path) if path else model
        there = owner.get_parameter(leaf)
        if there.is_meta:
            setattr(owner, leaf, nn.Parameter(weight.to(kept.dtype), requires_grad=False))
        else:  # rows of a model that is shared out over processes
            there.requires_grad_(False)
            fill(there, weight.to(kept.dtype))
    else:
        codes, scales = packed(weight, quant, kept.dtype)
        _set_quantised(model, path, quant, codes, scales, weight.shape)


def _set_quantised(
    model: nn.Module, path: str, quant: Quant, codes: Tensor, scale: Tensor, shape: torch.Size
) -> None:
    model.set_submodule(path, QuantLinear(quant, codes, scale, (shape[0], shape[1])))
