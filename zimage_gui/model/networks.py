"""The kinds of adapters by name: putting one kind on a model, and starting it from a file.

Knows which class a name means and what of a file's adapters fits a network; must not know options or runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from zimage_gui.model.adapter import Adapter, LoraSpec
from zimage_gui.model.dora import DoraLinear
from zimage_gui.model.loha import LohaLinear
from zimage_gui.model.lokr import LokrLinear, outer_shape
from zimage_gui.model.lora import LoraLinear, LoraNetwork, attach_lora
from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_read import LoraFile, read_lora
from zimage_gui.model.lora_write import original_alphas, with_alphas

KINDS: dict[str, type[Adapter]] = {
    "lora": LoraLinear, "dora": DoraLinear, "loha": LohaLinear, "lokr": LokrLinear,
}  # fmt: skip
_NAMED = 4


def attach_network(model: nn.Module, spec: LoraSpec, seed: int = 0) -> LoraNetwork:
    """`attach_lora` with the kind that the spec names."""
    return attach_lora(model, spec, seed, KINDS[spec.kind])


def read_start(path: Path, option: str) -> LoraFile:
    """A file to start from, with the alphas it was trained with where its form folds them away."""
    file = read_lora(path, option)
    return replace(file, entries=with_alphas(file.entries, original_alphas(file.metadata)))


def sized_by(spec: LoraSpec, entries: Mapping[str, Entry]) -> LoraSpec:
    """The layers of a file, each with the rank and the strength it has there."""
    return replace(spec, own={path: _own(replace(spec, own={}), entry) for path, entry in entries.items()})


def _own(spec: LoraSpec, entry: Entry) -> LoraSpec:
    inner = entry.inner if isinstance(entry, Dora) else entry
    if isinstance(inner, LoKr):
        whole = len(inner.w2) == 1
        sized = replace(spec, outer=outer_shape(inner), full=whole)
        return sized if whole else _of_size(sized, inner.rank, inner.scale)
    if isinstance(inner, LoHa):
        return _of_size(spec, max(inner.rank, inner.w2_b.shape[0]), inner.alpha / inner.rank)
    assert isinstance(inner, LowRank)
    return _of_size(spec, inner.rank, inner.scale)


def _of_size(spec: LoraSpec, rank: int, scale: float) -> LoraSpec:
    """A strength of 0 has no alpha: the network then starts with the options' own."""
    sized = replace(spec, dim=rank)
    return replace(sized, alpha=scale * rank / (rank**0.5 if spec.rslora else 1.0)) if scale > 0 else sized


def start_misfits(network: LoraNetwork, entries: Mapping[str, Entry]) -> list[str]:
    """Why the network cannot start from these adapters, as the ends of sentences about the file."""
    misfits: dict[str, list[str]] = {}
    for path, entry in entries.items():
        why = network.modules[path].misfit(entry) if path in network.modules else "is not trained in this run"
        if why:
            misfits.setdefault(why, []).append(path)
    return [f"{_some(paths)} {why}" for why, paths in misfits.items()]


def start_network(network: LoraNetwork, entries: Mapping[str, Entry]) -> int:
    """Takes over the adapters, of which `start_misfits` has nothing to say; the number of layers."""
    for path, entry in entries.items():
        network.modules[path].start_from(entry)
    return len(entries)


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:_NAMED])
    return shown if len(paths) <= _NAMED else f"{shown} and {len(paths) - _NAMED} more"
