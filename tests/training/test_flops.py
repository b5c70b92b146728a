"""Executed work of one LoRA step, counted, against the work that is useful."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import LoraMethod
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.events import NullRun
from zimage_gui.model.attention import attention
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

LAYERS, IMAGE, TEXT, RANK = 30, 1024, 64, 4
CONFIG = TransformerConfig(dim=256, n_layers=LAYERS, n_heads=2, cap_feat_dim=64)


def useful(config: TransformerConfig) -> int:
    """M_lora of `performance.md` 2.2: forward everywhere, in the main blocks the gradient of activations too.

    A block's weights are 4 d^2 + 3 d f. Weight gradients of the frozen base are not part of it.
    """
    weights = 4 * config.dim**2 + 3 * config.dim * config.ffn_dim
    tokens, refiners = IMAGE + TEXT, config.n_refiner_layers
    linears = 2 * 2 * weights * LAYERS * tokens + 2 * weights * refiners * tokens
    return linears + 12 * config.dim * LAYERS * tokens**2 + 4 * config.dim * refiners * (IMAGE**2 + TEXT**2)


def executed(checkpointing: bool, tmp_path: Path) -> int:
    """FLOPs of one update, the adapters' own included."""
    model = ZImageTransformer(CONFIG)
    method = LoraMethod(model, attach_lora(model, LoraSpec(dim=RANK)))
    optimizer = build_optimizer("AdamW", [], 1e-4, method.parameters())
    schedule = build_schedule(ScheduleSpec(), optimizer, 1)
    settings = LoopSettings(0, 1, 1, gradient_checkpointing=checkpointing)
    trainer = Trainer(method, optimizer, schedule, Objective(), settings, NullRun(tmp_path))
    batch = Batch(torch.randn(1, 16, 64, 64), [torch.randn(TEXT, CONFIG.cap_feat_dim)], ["x"], [0])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.update([batch])
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("checkpointing", "bound"), [(False, 1.05), pytest.param(True, 1.55, marks=pytest.mark.slow)])
def test_a_lora_step_executes_hardly_more_than_the_useful_work(
    checkpointing: bool, bound: float, tmp_path: Path
) -> None:
    # the bound is meant without the adapters' own work (under 2 %); it holds with it
    assert 0.95 < executed(checkpointing, tmp_path) / useful(CONFIG) <= bound


def test_the_count_of_one_attention_is_right_by_hand() -> None:
    tokens, dim = 96, 64
    q, k, v = (torch.randn(1, tokens, 2, dim // 2, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = attention(q, k, v)
        assert counter.get_total_flops() == 2 * (2 * tokens * tokens * dim)  # q k^T and p v
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 4) * (2 * tokens * tokens * dim)  # backward: dv, dp, dq, dk
