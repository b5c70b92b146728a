"""Attention in half precision on a CPU: the way that trains gives what the way that samples gives."""

import pytest
import torch

from zimage_gui.model import attention as module
from zimage_gui.model.attention import attention


@pytest.mark.parametrize("tokens", [7, 96])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention_and_its_gradients_are_close_to_fp32(
    tokens: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, tokens, 3, 16, requires_grad=True) for _ in range(3)]
    half = [part.detach().to(dtype).requires_grad_() for part in exact]
    weights = torch.randn(2, tokens, 3, 16)
    expected, trained = attention(*exact), attention(*half)
    sampled = attention(*[part.detach() for part in half])
    assert trained.dtype is sampled.dtype is dtype and trained.shape == expected.shape
    for result in (trained, sampled):
        assert float((result.float() - expected).detach().norm() / expected.detach().norm()) < 0.02
    (expected * weights).sum().backward()
    (trained.float() * weights).sum().backward()
    for one, other in zip(exact, half, strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad - other.grad.float()).norm() / one.grad.norm()) < 0.03


def test_a_table_too_large_to_keep_goes_through_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.randn(1, 32, 2, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    kept = attention(*parts)
    monkeypatch.setattr(module, "_LARGEST_TABLE", 100)
    torch.testing.assert_close(attention(*parts), kept, atol=0.02, rtol=0.02)
