"""The hand-written gradient of RMSNorm, and the choice of an attention library."""

import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from zimage_gui.errors import UserError
from zimage_gui.model.attention import attention, use_backend
from zimage_gui.model.norms import RMSNorm, fused_rms_norm, scaled_rms_norm


@pytest.mark.parametrize("norm", [scaled_rms_norm, fused_rms_norm])
@pytest.mark.parametrize("scale_shape", [(8,), (2, 1, 8), (1, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_and_both_its_gradients_equal_the_formulas(
    norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    scale_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 8) * 3).to(dtype).requires_grad_()
    scale = torch.randn(scale_shape).requires_grad_()
    exact_x, exact_scale = x.detach().double().requires_grad_(), scale.detach().double().requires_grad_()
    upstream = torch.randn(2, 5, 8)
    out = norm(x, scale, 1e-5)
    exact = F.rms_norm(exact_x, (8,), None, 1e-5) * exact_scale
    assert out.dtype is dtype
    out.backward(upstream.to(dtype))
    exact.backward(upstream.to(dtype).double())
    tolerance = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for actual, wanted in ((out, exact), (x.grad, exact_x.grad), (scale.grad, exact_scale.grad)):
        assert actual is not None and wanted is not None
        error = actual.detach().double() - wanted.detach()
        assert float(error.norm() / wanted.detach().norm()) < tolerance


def test_a_norm_of_scaled_input_keeps_the_meaning_of_eps() -> None:
    norm = RMSNorm(16, eps=1e-2)
    x = torch.randn(3, 16) * 0.05
    assert torch.allclose(norm(x * 0.25, input_scale=0.25), norm(x), atol=1e-6)


@pytest.fixture
def default_backend() -> Iterator[None]:
    yield
    use_backend("torch")


@pytest.mark.parametrize("name", ["flash", "flash3", "xformers", "sage"])
def test_a_missing_library_is_named_with_the_way_out(name: str, default_backend: None) -> None:
    with pytest.raises(UserError, match=r"attn_mode.*pip install .*attn_mode torch"):
        use_backend(name)


def test_an_unknown_backend_is_refused(default_backend: None) -> None:
    with pytest.raises(UserError, match="must be one of torch, flash, flash3, xformers, sage"):
        use_backend("magic")


def test_libraries_get_their_own_layout_and_sage_refuses_to_train(
    monkeypatch: pytest.MonkeyPatch, default_backend: None
) -> None:
    """The libraries need a GPU; stand-ins with their signatures show that each call reaches them rightly."""
    plain = F.scaled_dot_product_attention

    def by_token(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tensor_layout: str = "NHD"
    ) -> torch.Tensor:
        assert tensor_layout == "NHD"
        return plain(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    packages = {
        "flash_attn": types.SimpleNamespace(flash_attn_func=by_token),
        "flash_attn_interface": types.SimpleNamespace(flash_attn_func=lambda *qkv: (by_token(*qkv), None)),
        "xformers.ops": types.SimpleNamespace(memory_efficient_attention=by_token),
        "sageattention": types.SimpleNamespace(sageattn=by_token),
    }
    for package, library in packages.items():
        monkeypatch.setitem(sys.modules, package, library)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "xformers", types.SimpleNamespace(ops=packages["xformers.ops"]))  # type: ignore[arg-type]
    q, k, v = (torch.randn(2, 5, 3, 8).bfloat16() for _ in range(3))
    use_backend("sdpa")
    wanted = attention(q, k, v)
    for name in ("flash", "flash3", "xformers", "sage"):
        use_backend(name)
        assert torch.allclose(attention(q, k, v), wanted, atol=2e-2)
    with pytest.raises(UserError, match="only generate"):
        attention(q.requires_grad_(), k, v)
    for name in ("flash", "flash3", "sage"):
        use_backend(name)
        with pytest.raises(UserError, match="computes in bf16 or fp16 only"):
            attention(q.float(), k.float(), v.float())
