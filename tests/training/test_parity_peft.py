"""The step that the benchmark times computes what diffusers' transformer with a peft adapter computes."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from zimage_gui.model.transformer import TransformerConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import lora_step


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_adapter_gradients_equal_those_of_diffusers_and_peft(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TransformerConfig(
        dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, axes_dims=(4, 6, 6)
    )
    for name, value in (("CONFIG", config), ("RANK", 3), ("LATENT", 10), ("TEXT", 9)):
        monkeypatch.setattr(lora_step, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers and peft say about each other
        assert lora_step.parity(torch.float32, checkpointing, size=2) < 1e-5
