"""Low-rank adapters on Linear layers, as they are trained. Knows the adapter's maths and which layers take
one; knows no file format, no optimizer and no dataset.

    y = W x + multiplier * (alpha / rank) * up(dropout(down x))          (Hu et al. 2021, arXiv 2106.09685)

Adapter weights are fp32 whatever the base is. They are cast to the activation's type for the product, never
the other way round: a fp32 copy of the activations would cost more memory than the adapter itself.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from zimage_gui.model.adapter import Adapter, LoraSpec, drawn, rank_misfit
from zimage_gui.model.lora_entries import Entry, LowRank
from zimage_gui.model.low_rank import low_rank_linear, opened_low_rank_linear
from zimage_gui.model.quantise import QuantLinear
from zimage_gui.model.whole_shapes import LORA_TARGET

__all__ = ["LoraLinear", "LoraNetwork", "LoraSpec", "attach_lora", "target_paths"]


class LoraLinear(Adapter):
    """A frozen Linear with an adapter beside it. Input (..., in), output (..., out) in the base layer's
    output type."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(base, spec, generator)
        device = base.weight.device
        self.lora_down = drawn((spec.dim, base.in_features), generator, device)
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

    def entry(self) -> Entry:
        return self._pair()

    def _pair(self) -> LowRank:
        return LowRank(self.lora_down.detach(), self.lora_up.detach(), self.spec.written_alpha)

    def misfit(self, entry: Entry) -> str:
        if not isinstance(entry, LowRank):
            return f"is a {entry.kind} there"
        return rank_misfit(entry.rank, self.spec.dim)

    @torch.no_grad()
    def start_from(self, entry: Entry) -> None:
        assert isinstance(entry, LowRank)
        self.lora_down[: entry.rank] = entry.down.to(self.lora_down)
        self.lora_up[:, : entry.rank] = entry.up.to(self.lora_up) * (entry.scale / self.scale)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The weight change (out, in) in fp32 that this adapter stands for at multiplier 1."""
        return self.scale * (self.lora_up.float() @ self.lora_down.float())

    @torch.no_grad()
    def norm(self) -> Tensor:
        return self.scale * product_norm(self.lora_up, self.lora_down)


def product_norm(left_OR: Tensor, right_RI: Tensor) -> Tensor:
    """Frobenius norm of left @ right without making the product."""
    square = ((left_OR.t() @ left_OR) * (right_RI @ right_RI.t())).sum()
    return square.clamp_min(0).sqrt()


class LoraNetwork:
    """All adapters of one model, by the path of the Linear each one sits on."""

    def __init__(self, model: nn.Module, modules: dict[str, Adapter], spec: LoraSpec) -> None:
        self._model = model
        self.modules = modules
        self.spec = spec

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, module in self.modules.items():
            for name, parameter in module.trained().items():
                yield f"{path}.{name}", parameter

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
    if spec.own:
        return [path for path in paths if path in spec.own]
    usual = [path for path in paths if LORA_TARGET.fullmatch(path)]
    chosen = [path for path in paths if _matches(include, path)] if include else usual
    if not include or not all(_matches(exclude, path) for path in usual):
        chosen = [path for path in chosen if not _matches(exclude, path)]
    if not chosen:
        raise ValueError(
            f"no layer is left for the LoRA: include {list(spec.include)}, exclude {list(spec.exclude)} "
            f"match none of the {len(paths)} Linear layers (a name is {paths[len(paths) // 2]})"
        )
    return chosen


def attach_lora(
    model: nn.Module, spec: LoraSpec, seed: int = 0, kind: type[Adapter] = LoraLinear
) -> LoraNetwork:
    """Put an adapter of a kind on every layer that `spec` names and freeze everything else. The start is the
    same on every device: it is drawn on the CPU from `seed` in the order of the layers. Raises `ValueError`
    as `target_paths` does.
    """
    paths = target_paths(model, spec)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules: dict[str, Adapter] = {}
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, nn.Linear)
        modules[path] = kind(base, spec.at(path), generator).train(model.training)
        model.set_submodule(path, modules[path])
    return LoraNetwork(model, modules, spec)


def _matches(patterns: list[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"{error.pattern!r} is not a regular expression: {error}") from error
