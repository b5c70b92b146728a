"""Low-rank adapters on Linear layers, as they are trained. Knows the adapter's maths and which layers take
one; knows no file format, no optimizer and no dataset.

    y = W x + multiplier * (alpha / rank) * up(dropout(down x))          (Hu et al. 2021, arXiv 2106.09685)

Adapter weights are fp32 whatever the base is. They are cast to the activation's type for the product, never
the other way round: a fp32 copy of the activations would cost more memory than the adapter itself.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zimage_gui.model.low_rank import low_rank_linear, opened_low_rank_linear
from zimage_gui.model.quantise import QuantLinear

DEFAULT_TARGET = re.compile(r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])")


@dataclass(frozen=True)
class LoraSpec:
    """Size and place of the adapters.

    `alpha` 0 means `alpha = dim`. Patterns are regular expressions that must match a whole module path such
    as `layers.0.attention.to_q`. Without `include` the attention and feed-forward layers of the main blocks
    are taken; with it, exactly the Linear layers that one of the patterns names, wherever they are. `exclude`
    is applied last.
    """

    dim: int = 16
    alpha: float = 0.0
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def effective_alpha(self) -> float:
        return self.alpha if self.alpha > 0 else float(self.dim)

    @property
    def has_dropout(self) -> bool:
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0


class LoraLinear(nn.Module):
    """A frozen Linear with an adapter beside it. Input (..., in), output (..., out) in the base layer's
    output type."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base
        self.spec = spec
        self.scale = spec.effective_alpha / spec.dim
        self.multiplier = 1.0
        down = torch.empty(spec.dim, base.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        device = base.stored[0].device if isinstance(base, QuantLinear) else base.weight.device
        self.lora_down = nn.Parameter(down.to(device))
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, spec.dim, device=device))

    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        if self.multiplier == 0 or self._skipped():
            y_NO: Tensor = self.base(x_NI)
        elif self._is_plain(x):
            y_NO = self._in_one_step(x_NI)
        else:
            y_NO = self._composed(x_NI, len(x))
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @property
    def _factor(self) -> float:
        return self.scale * self.multiplier

    def _is_plain(self, x: Tensor) -> bool:
        """Whether this is training, nothing stands between the two products, and the base is a frozen matrix.
        Outside training the base layer is called itself, so that a fresh adapter changes no bit."""
        base = self.base
        frozen = type(base) is QuantLinear or (
            type(base) is nn.Linear and base.bias is None and not base.weight.requires_grad
        )
        return (
            self.training
            and frozen
            and not self.spec.has_dropout
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _in_one_step(self, x_NI: Tensor) -> Tensor:
        base, down, up = self.base, self.lora_down, self.lora_up
        if isinstance(base, QuantLinear):
            return opened_low_rank_linear(x_NI, down, up, self._factor, base.open, *base.stored)
        return low_rank_linear(x_NI, base.weight, down, up, self._factor)

    def _composed(self, x_NI: Tensor, samples: int) -> Tensor:
        """The same from separate steps, for any base layer and with dropout."""
        y_NO: Tensor = self.base(x_NI)
        h_NR = self._dropped(functional.linear(x_NI, self.lora_down.to(x_NI.dtype)), samples)
        return y_NO.addmm_(h_NR.to(y_NO.dtype), self.lora_up.to(y_NO.dtype).t(), alpha=self._factor)

    def _skipped(self) -> bool:
        p = self.spec.module_dropout
        return self.training and p > 0 and float(torch.rand(())) < p

    def _dropped(self, h_NR: Tensor, samples: int) -> Tensor:
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

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The weight change (out, in) in fp32 that this adapter stands for at multiplier 1."""
        return self.scale * (self.lora_up.float() @ self.lora_down.float())


class LoraNetwork:
    """All adapters of one model, by the path of the Linear each one sits on."""

    def __init__(self, model: nn.Module, modules: dict[str, LoraLinear], spec: LoraSpec) -> None:
        self._model = model
        self.modules = modules
        self.spec = spec

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, module in self.modules.items():
            yield f"{path}.lora_down", module.lora_down
            yield f"{path}.lora_up", module.lora_up

    def set_multiplier(self, multiplier: float) -> None:
        for module in self.modules.values():
            module.multiplier = multiplier

    def detach(self) -> None:
        """Take the adapters off: the model has its own Linear layers again, untouched."""
        for path, module in self.modules.items():
            self._model.set_submodule(path, module.base)


def target_paths(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Module paths of `model` that `spec` names, in the model's order.

    Raises `ValueError` when a pattern is no regular expression or nothing is left.
    """
    include, exclude = _compiled(spec.include), _compiled(spec.exclude)
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if include:
        chosen = [path for path in paths if any(pattern.fullmatch(path) for pattern in include)]
    else:
        chosen = [path for path in paths if DEFAULT_TARGET.fullmatch(path)]
    chosen = [path for path in chosen if not any(pattern.fullmatch(path) for pattern in exclude)]
    if not chosen:
        raise ValueError(
            f"no layer is left for the LoRA: include {list(spec.include)}, exclude {list(spec.exclude)} "
            f"match none of the {len(paths)} Linear layers (a name is {paths[len(paths) // 2]})"
        )
    return chosen


def attach_lora(model: nn.Module, spec: LoraSpec, seed: int = 0) -> LoraNetwork:
    """Put an adapter on every layer that `spec` names and freeze everything else. The start is the same on
    every device: it is drawn on the CPU from `seed` in the order of the layers. Raises `ValueError` as
    `target_paths` does.
    """
    paths = target_paths(model, spec)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules: dict[str, LoraLinear] = {}
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, nn.Linear)
        modules[path] = LoraLinear(base, spec, generator).train(model.training)
        model.set_submodule(path, modules[path])
    return LoraNetwork(model, modules, spec)


def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"{error.pattern!r} is not a regular expression: {error}") from error
