"""Adding LoRA files to a transformer's weights, and taking them out again exactly.

Knows weights and adapters. It must not know prompts, jobs or which LoRAs a user wants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from zimage_gui.errors import raise_if_any
from zimage_gui.model.lora_entries import Entry, on_device
from zimage_gui.model.lora_read import LoraFile, fit_problems
from zimage_gui.model.quantise import QuantLinear


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _shapes(linears: Mapping[str, nn.Linear]) -> dict[str, tuple[int, int]]:
    return {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{module path: (out, in)} of every Linear: what a LoRA may change."""
    return _shapes(_linears(model))


@dataclass(frozen=True)
class AppliedLora:
    """One file with its strength, already cut down to the wanted modules by `LoraFile.select`."""

    file: LoraFile
    multiplier: float = 1.0


class LoraStack:
    """The LoRAs that are on in one model. Setting others, or none, starts again from the untouched weights,
    which are kept on the CPU for the modules that were changed: exact to the last bit, without reading the
    model again. A quantised layer keeps its weight as it is: the LoRAs act on it each time it is opened.

    Holds on to the Linears the model has now, so that it keeps working when a trainer later wraps them."""

    def __init__(self, model: nn.Module) -> None:
        self._linears = _linears(model)
        self._originals: dict[str, Tensor] = {}
        # of the whole model: single weights may be waiting on the CPU
        self._device = next(chain(model.parameters(), model.buffers())).device

    @torch.no_grad()
    def set(self, loras: Sequence[AppliedLora]) -> list[int]:
        """Makes exactly these LoRAs act, and returns how many modules each changes.

        Raises UserError before any weight is touched when one of them does not fit wholly.
        """
        shapes = _shapes(self._linears)
        raise_if_any(problem for lora in loras for problem in fit_problems(lora.file, shapes))
        wanted: dict[str, list[tuple[Entry, float]]] = {}
        for lora in loras:
            for path, entry in lora.file.entries.items():
                wanted.setdefault(path, []).append((entry, lora.multiplier))
        for path in [path for path in self._originals if path not in wanted]:
            self._linears[path].weight.data.copy_(self._originals.pop(path))
        for path, linear in self._linears.items():
            entries = wanted.get(path, [])
            if isinstance(linear, QuantLinear):
                linear.added = tuple(
                    (on_device(entry, self._device), strength) for entry, strength in entries
                )
            elif entries:
                self._merge(path, entries)
        return [len(lora.file.entries) for lora in loras]

    def clear(self) -> None:
        """Takes every LoRA out."""
        self.set(())

    def _merge(self, path: str, entries: Sequence[tuple[Entry, float]]) -> None:
        weight = self._linears[path].weight.data
        if path in self._originals:
            weight.copy_(self._originals[path])
        else:
            self._originals[path] = weight.to("cpu", copy=True)
        changed = weight.to(torch.float32, copy=True)
        for entry, multiplier in entries:
            changed += entry.delta(weight) * multiplier
        weight.copy_(changed)


@torch.no_grad()
def merge_lora(model: nn.Module, file: LoraFile, multiplier: float = 1.0) -> int:
    """Adds a LoRA to the weights for good, in fp32, and returns the number of modules changed.

    Raises UserError, with nothing changed, when a part of it does not fit.
    """
    linears = _linears(model)
    raise_if_any(fit_problems(file, _shapes(linears)))
    if any(isinstance(linears[path], QuantLinear) for path in file.entries):
        raise ValueError("a quantised weight takes a merge only while it is loaded")
    for path, entry in file.entries.items():
        weight = linears[path].weight
        weight.copy_(weight.to(torch.float32) + entry.delta(weight) * multiplier)
    return len(file.entries)


def merged_weights(
    weights: Mapping[str, Tensor], file: LoraFile, multiplier: float = 1.0
) -> dict[str, Tensor]:
    """The changed weights in fp32, {name of the weight: tensor}, for a state dict with diffusers names."""
    shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if w.dim() == 2}
    problems = fit_problems(file, shapes)
    raise_if_any(problems)
    return {
        f"{path}.weight": weights[f"{path}.weight"].float()
        + entry.delta(weights[f"{path}.weight"]) * multiplier
        for path, entry in file.entries.items()
    }
