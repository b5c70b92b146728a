"""DoRA: a LoRA that turns the rows of a weight while their lengths are trained by themselves.

Knows that one kind; must not know files or optimizers.

    y = m / ‖W + s·B A‖ · (W x + s·B A x)          (Liu et al. 2024, arXiv 2402.09353)

The norms, one per output row, take no part in the gradient (section 4.3 there). They come from the frozen
row norms and a product of the size of the adapter, so that no weight is ever made whole: any base layer that
can be called will do.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zimage_gui.model.adapter import LoraSpec
from zimage_gui.model.lora import LoraLinear
from zimage_gui.model.lora_entries import Dora, Entry, LowRank

_COLUMNS = 256
_TINY = torch.finfo(torch.float32).tiny


class DoraLinear(LoraLinear):
    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(base, spec, generator)
        self._squares_O = _row_squares(base)
        self.magnitude = nn.Parameter(self._squares_O.clamp_min(_TINY).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        y_NO: Tensor = self.base(x_NI)
        if self.multiplier != 0 and not self._skipped():
            y_NO = self._turned(x_NI, y_NO, len(x))
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def _turned(self, x_NI: Tensor, y_NO: Tensor, samples: int) -> Tensor:
        h_NR = self._dropped(functional.linear(x_NI, self.lora_down.to(x_NI.dtype)), samples)
        turned_NO = torch.addmm(y_NO, h_NR.to(y_NO.dtype), self.lora_up.to(y_NO.dtype).t(), alpha=self.scale)
        ratio_O = (self.magnitude / self._norms(x_NI.dtype)).to(y_NO.dtype)
        if self.multiplier == 1:
            return turned_NO * ratio_O
        return y_NO + self.multiplier * (turned_NO * ratio_O - y_NO)

    @torch.no_grad()
    def _norms(self, dtype: torch.dtype) -> Tensor:
        """(out) fp32: ‖W + s·B A‖² = ‖W‖² + 2 s·⟨B, W Aᵀ⟩ + s²·⟨B, B A Aᵀ⟩, row by row."""
        down_RI, up_OR, s = self.lora_down, self.lora_up, self.scale
        crossed_RO: Tensor = self.base(down_RI.to(dtype)).float()
        if self.base.bias is not None:
            crossed_RO = crossed_RO - self.base.bias.float()
        own_O = (up_OR @ (down_RI @ down_RI.t()) * up_OR).sum(dim=1)
        squares_O = self._squares_O + 2 * s * (up_OR * crossed_RO.t()).sum(dim=1) + s * s * own_O
        return squares_O.clamp_min(_TINY).sqrt()

    def factors(self) -> list[nn.Parameter]:
        return [self.lora_down, self.lora_up]

    def entry(self) -> Entry:
        return Dora(self._pair(), self.magnitude.detach().reshape(-1, 1), "magnitude")

    def delta(self) -> Tensor:
        return self.entry().delta(self.base.weight)

    def misfit(self, entry: Entry) -> str:
        if not isinstance(entry, Dora):
            return super().misfit(entry)
        if entry.magnitude.shape[1] != 1:
            return "is a DoRA over input columns there"
        return super().misfit(entry.inner)

    @torch.no_grad()
    def start_from(self, entry: Entry) -> None:
        """A plain LoRA's lengths are those it gives the rows."""
        inner = entry.inner if isinstance(entry, Dora) else entry
        assert isinstance(inner, LowRank)
        super().start_from(inner)
        if isinstance(entry, Dora):
            self.magnitude.copy_(entry.magnitude.reshape(-1))
        else:
            self.magnitude.copy_(self._norms(self.base.weight.dtype))


@torch.no_grad()
def _row_squares(base: nn.Linear) -> Tensor:
    """(out) fp32: the squared length of each row of the weight. A layer that is no plain Linear is asked
    with unit vectors."""
    weight = base.weight
    if type(base) is nn.Linear:
        return weight.float().square().sum(dim=1)
    total = torch.zeros(base.out_features, device=weight.device)
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float16) else torch.bfloat16
    for start in range(0, base.in_features, _COLUMNS):
        width = min(_COLUMNS, base.in_features - start)
        units = torch.zeros(width, base.in_features, device=weight.device, dtype=dtype)
        units[:, start : start + width].fill_diagonal_(1)
        columns_NO = base(units).float()
        if base.bias is not None:
            columns_NO = columns_NO - base.bias.float()
        total += columns_NO.square().sum(dim=0)
    return total
