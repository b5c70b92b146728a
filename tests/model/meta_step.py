"""A training step on the meta device: shapes and bytes of the released model without its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from zimage_gui.model import attention, recompute


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
