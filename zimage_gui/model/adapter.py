"""What every kind of adapter has: its size and place, the frozen layer below it, strength and dropout.

Knows no formula of a kind (`lora`, `dora`, `loha`, `lokr` have them), no file format and no optimizer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zimage_gui.model.lora_entries import Entry

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LoraSpec:
    """Kind, size and place of the adapters.

    `alpha` 0 means `alpha = dim`. Patterns are regular expressions that must match a whole module path such
    as `layers.0.attention.to_q`. Without `include` the attention and feed-forward layers of the main blocks
    are taken; with it, exactly the Linear layers that one of the patterns names, wherever they are. `exclude`
    is applied last, unless it matches all that would be taken without `include`: users of musubi-tuner write
    "exclude everything, include these". `dims`: (pattern, rank) of layers with another rank, the first match
    counts. `own`: these layers and no others, each with its own sizes. `factor`, `full`, `outer` (shape of
    w1) are LoKr's.
    """

    dim: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kind: str = "lora"
    rslora: bool = False
    dims: tuple[tuple[str, int], ...] = ()
    factor: int = -1
    full: bool = False
    outer: tuple[int, int] | None = None
    own: Mapping[str, "LoraSpec"] = field(default_factory=dict)

    @property
    def effective_alpha(self) -> float:
        return self.alpha if self.alpha > 0 else float(self.dim)

    @property
    def written_alpha(self) -> float:
        """The alpha that means the same to a reader, who divides it by the rank."""
        return self.effective_alpha * math.sqrt(self.dim) if self.rslora else self.effective_alpha

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank (rank-stabilised: Kalajdzievski 2023, arXiv 2312.03732)."""
        return self.written_alpha / self.dim

    @property
    def has_dropout(self) -> bool:
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0

    def at(self, path: str) -> "LoraSpec":
        """The sizes of one layer."""
        if path in self.own:
            return self.own[path]
        found = matching(self.dims, path)
        return self if found is None or found == self.dim else replace(self, dim=found)


def matching(pairs: Sequence[tuple[str, Number]], path: str) -> Number | None:
    """The value of the first (pattern, value) whose pattern matches the whole path."""
    return next((value for pattern, value in pairs if re.fullmatch(pattern, path)), None)


class Adapter(nn.Module):
    """A frozen Linear with something trained beside it. Input (..., in), output (..., out) in the base
    layer's output type; the trained numbers are fp32 whatever the base is."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base
        self.spec = spec
        self.scale = spec.scale
        self.multiplier = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        if self.multiplier == 0 or self._skipped():
            y_NO: Tensor = self.base(x_NI)
        else:
            y_NO = self._adapted(x_NI, len(x))
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def _adapted(self, x_NI: Tensor, samples: int) -> Tensor:
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters in their order."""
        return dict(self.named_parameters(recurse=False))

    def factors(self) -> list[nn.Parameter]:
        """Those whose product the change is: all of them times t make it t ** len(factors) as large."""
        return list(self.trained().values())

    def entry(self) -> Entry:
        """The adapter as a file holds it."""
        raise NotImplementedError

    def misfit(self, entry: Entry) -> str:
        """Why `start_from(entry)` is impossible, as the end of a sentence; empty when it is possible."""
        raise NotImplementedError

    def start_from(self, entry: Entry) -> None:
        """Take over what a file's adapter does to this layer; ranks it does not have start afresh, without
        effect."""
        raise NotImplementedError

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The weight change (out, in) in fp32 that this adapter stands for at multiplier 1."""
        return self.entry().delta(self.base.weight)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Frobenius norm of what the factors make, as a scalar on the device."""
        change: Tensor = torch.linalg.vector_norm(self.delta())
        return change

    def _skipped(self) -> bool:
        p = self.spec.module_dropout
        return self.training and p > 0 and _happens(p)

    def _dropped(self, h_NR: Tensor, samples: int) -> Tensor:
        """Single values and, per sample, whole columns left out in training."""
        if not self.training:
            return h_NR
        if self.spec.dropout > 0:
            h_NR = functional.dropout(h_NR, self.spec.dropout)
        if self.spec.rank_dropout > 0:
            keep = 1.0 - self.spec.rank_dropout
            mask_B1R = torch.rand(samples, 1, h_NR.shape[-1], device=h_NR.device) < keep
            kept_BLR = h_NR.view(samples, -1, h_NR.shape[-1]) * (mask_B1R.to(h_NR.dtype) / keep)
            h_NR = kept_BLR.view(h_NR.shape)
        return h_NR


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _happens(p: float) -> bool:
    """Compiled code cannot branch on a number that was drawn, and torch would warn of it at each layer."""
    return float(torch.rand(())) < p


def drawn(shape: tuple[int, int], generator: torch.Generator | None, device: torch.device) -> nn.Parameter:
    """A factor that starts like the weight of a Linear of that shape, the same on every device."""
    values = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
    return nn.Parameter(values.to(device))


def rank_misfit(found: int, own: int) -> str:
    if found <= own:
        return ""
    return f"has rank {found} there and {own} is trained"
