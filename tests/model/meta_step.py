"""A training step on the meta device: shapes and bytes of the released model without its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zimage_gui.model import attention, recompute
from zimage_gui.model.quantise import Quant, QuantLinear, packed


class Flash(torch.autograd.Function):
    """Shapes of a flash kernel alone, as the meta device has none: it keeps its inputs, its result and one fp32
    number per row and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(grad), torch.empty_like(grad), torch.empty_like(grad)


@contextmanager
def on_meta(flash: bool = True) -> Iterator[None]:
    """What a step needs to run there. flash: attention keeps what a flash kernel keeps."""
    with pytest.MonkeyPatch.context() as patch:
        if flash:
            patch.setattr(attention, "_kernel", Flash.apply)
        # on the meta device every address is 0
        patch.setattr(recompute, "_address", lambda tensor: tensor.untyped_storage()._cdata)
        patch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # knows no meta device
        yield


def quantised(model: nn.Module, quant: Quant) -> None:
    """Keep the matrices of the blocks as a load with `base_quant` does."""
    for block in (
        part for kind in ("layers", "noise_refiner", "context_refiner") for part in getattr(model, kind)
    ):
        for name, layer in list(block.named_modules()):
            if not isinstance(layer, nn.Linear) or "adaLN" in name:
                continue
            weight = layer.weight.detach()
            if weight.is_meta and quant == "nf4":  # its table look-up has no meta kernel
                codes = torch.empty(weight.numel() // 2, dtype=torch.uint8, device="meta")
                scale = torch.empty(weight.numel() // 64, dtype=torch.float32, device="meta")
            else:
                codes, scale = packed(weight, quant, weight.dtype)
            parent, _, attribute = name.rpartition(".")
            shape = (weight.shape[0], weight.shape[1])
            setattr(block.get_submodule(parent), attribute, QuantLinear(quant, codes, scale, shape))
