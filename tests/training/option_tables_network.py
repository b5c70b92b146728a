"""One case for every option that only one kind of training has, and those whose case is another for one kind."""

from __future__ import annotations

from pathlib import Path

from option_cases import (
    Case,
    Changes,
    Proof,
    Refused,
    formats,
    held,
    layers,
    losses,
    moved,
    told,
    weights,
)
from option_proofs import result_is_the_one_named


def lora_cases(p: Path) -> dict[str, Case]:
    base = {"base_weights": (p / "adapter.safetensors",)}
    start = {"network_weights": p / "adapter.safetensors"}
    lokr = {"network_module": "lokr", "network_dim": 2}
    return {
        "network_module": Changes("loha", layers),
        "network_dim": Changes(4, layers),
        "network_alpha": Changes(1.0, losses),
        "base_weights": Changes((p / "adapter.safetensors",), losses),
        "base_weights_multiplier": Changes((0.5,), losses, base),
        "network_weights": Changes(p / "adapter.safetensors", losses),
        "dim_from_weights": Changes(True, layers, start),
        "include_patterns": Changes((".*attention.*",), layers),
        "exclude_patterns": Changes((".*attention.*",), layers),
        "network_args": Changes(("rank_dropout=0.5",), losses),
        "network_dropout": Changes(0.5, losses),
        "rank_dropout": Changes(0.5, losses),
        "module_dropout": Changes(0.5, losses),
        "scale_weight_norms": Changes(0.01, held),
        "use_rslora": Changes(True, losses),
        "loraplus_lr_ratio": Changes(8.0, losses),
        "network_reg_dims": Changes((".*attention.*=1",), layers),
        "network_reg_lrs": Changes((".*attention.*=0",), losses),
        "lokr_factor": Changes(4, layers, lokr),
        "lokr_full": Changes(True, layers, lokr),
        "blocks_to_swap": Changes(2, moved, kept=weights),
        "base_quant": Changes("int8", losses),
        "lora_format": Changes("native", layers),
        "save_precision": Changes("bf16", formats),
        "output": Proof(result_is_the_one_named),
    }


def finetune_cases(p: Path) -> dict[str, Case]:
    bf16 = {"mixed_precision": "bf16"}
    return {
        "shard_weights": Refused(True, "there is one"),  # with two processes: test_shared_out
        "train_patterns": Changes((r"layers\.1",), told),
        "freeze_patterns": Changes((r"layers\.1",), told),
        "full_bf16": Changes(True, losses, bf16),
        "stochastic_rounding": Changes(False, weights, bf16 | {"full_bf16": True}),
        "fused_backward_pass": Changes(True, weights, {"max_grad_norm": 1e-3, "optimizer_type": "SGD"}),
        "blocks_to_swap": Changes(2, moved, kept=weights),
        "save_precision": Changes("bf16", formats, instead="fp32"),
        "save_layout": Changes("diffusers", layers),
    }
