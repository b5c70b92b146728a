"""What a training run changes: an adapter beside frozen weights, or all weights. Knows which parameters are
trained, in which types, and how the result is written and proved; must not know the loop, the data or where
files go.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from zimage_gui.errors import UserError
from zimage_gui.files import atomic_write
from zimage_gui.model.checkpoint import open_checkpoint
from zimage_gui.model.keymaps import transformer_sources
from zimage_gui.model.lora import LoraNetwork
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.lora_merge import linear_shapes
from zimage_gui.model.lora_write import Form, verify_lora, write_lora
from zimage_gui.model.offload import BlockSwap
from zimage_gui.model.rows import fill
from zimage_gui.model.saving import save_transformer, transformer_settings
from zimage_gui.model.tensor_files import read_tensor
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import transformer_config_of

_SECOND_HALF = ("layers.", "all_final_layer.")


class Method(Protocol):
    """One way to train. `trains_embedding`: a gradient is needed in the embedders or refiners;
    `autocast_dtype`: the type the model computes in when its weights are of another, else None."""

    model: ZImageTransformer
    what: Literal["lora", "model"]
    trains_embedding: bool
    uses_dropout: bool
    autocast_dtype: torch.dtype | None

    def named_parameters(self) -> dict[str, nn.Parameter]: ...

    def parameters(self) -> list[nn.Parameter]: ...

    def export(self, path: Path, metadata: Mapping[str, str]) -> int: ...


def outside_second_half(names: list[str]) -> bool:
    """Whether any of these parameters lies in what `ZImageTransformer.embed` runs."""
    return any(not name.startswith(_SECOND_HALF) for name in names)


@dataclass
class LoraMethod:
    """Adapters in fp32 on a frozen base in the type it was loaded in."""

    model: ZImageTransformer
    network: LoraNetwork
    form: Form = "universal"
    save_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.what: Literal["lora", "model"] = "lora"
        self.trains_embedding = outside_second_half(list(self.network.modules))
        self.uses_dropout = self.network.spec.has_dropout
        self.autocast_dtype: torch.dtype | None = None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def entries(self) -> dict[str, Entry]:
        """The adapters as files hold them."""
        return {path: module.entry() for path, module in self.network.modules.items()}

    def export(self, path: Path, metadata: Mapping[str, str]) -> int:
        """Write the LoRA, read it back and match every tensor; returns the number of modules."""
        write_lora(path, self.entries(), self.form, metadata, self.save_dtype)
        shapes = {name: (base.out_features, base.in_features) for name, base in self._bases().items()}
        return verify_lora(path, linear_shapes(self.model) | shapes)

    def _bases(self) -> dict[str, nn.Linear]:
        return {path: module.base for path, module in self.network.modules.items()}


@dataclass
class FullMethod:
    """All parameters but the `frozen`, in fp32 (computing in `autocast_dtype`) or in bf16 throughout.

    whole: gives a weight by name, where the processes share out the weights.
    """

    model: ZImageTransformer
    autocast_dtype: torch.dtype | None = None
    layout: Literal["diffusers", "comfy"] = "diffusers"
    save_dtype: torch.dtype = torch.bfloat16
    frozen: frozenset[str] = frozenset()
    swap: BlockSwap | None = None
    whole: Callable[[str], Tensor] | None = None

    def __post_init__(self) -> None:
        self.what: Literal["lora", "model"] = "model"
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        self.trains_embedding = outside_second_half(list(self.named_parameters()))
        self.uses_dropout = False

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if name not in self.frozen}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def export(self, path: Path, metadata: Mapping[str, str]) -> int:
        """Write the model, read it back and compare every tensor; returns the number of parameters."""
        tensors = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        save_transformer(tensors, path, self.layout, self.save_dtype, metadata, self.whole)
        if transformer_config_of(path, "output") != self.model.config:  # sizes that tensors do not tell
            settings = json.dumps(transformer_settings(self.model.config), indent=2)
            atomic_write(path.parent / "config.json", settings.encode("utf-8"))
        return _verified(path, tensors.keys(), self.whole or tensors.__getitem__, self.save_dtype)


def _verified(path: Path, names: Collection[str], whole: Callable[[str], Tensor], dtype: torch.dtype) -> int:
    """Number of tensors in the file, when each of them is what was written. Raises `UserError` naming one
    that is not."""
    checkpoint = open_checkpoint(path, "output")
    sources = transformer_sources(checkpoint.shapes)
    with path.open("rb") as file:
        for name in names:
            source = sources.get(name)
            place = checkpoint.places[source.name] if source else None
            stored = read_tensor(file, place.info, source.rows) if source and place else None
            if stored is None or not torch.equal(stored, whole(name).to("cpu", dtype)):
                raise UserError.one(
                    "output",
                    path,
                    f"was written but {name} does not read back",
                    "Check the disk and save again",
                )
    return len(names)


@torch.no_grad()
def load_parameters(method: Method, tensors: Mapping[str, Tensor]) -> list[str]:
    """Put saved values into the trained parameters. Returns what does not fit, as sentences; then nothing was
    changed."""
    own = method.named_parameters()
    wrong = [f"{name} is not in the state" for name in own if name not in tensors]
    wrong += [f"{name} is not trained in this run" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)} in the state and {list(own[name].shape)} in this run"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if not wrong:
        for name, parameter in own.items():
            fill(parameter, tensors[name])
    return wrong
