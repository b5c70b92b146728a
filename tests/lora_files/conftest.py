"""The tiny transformer the golden LoRA files were made for."""

import json

import pytest
from lora_golden import DIALECTS, HUB
from safetensors.torch import load_file
from torch import Tensor

from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer


@pytest.fixture(scope="session")
def base() -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in sorted((HUB / "transformer").glob("*.safetensors")):
        weights.update({name: tensor.float() for name, tensor in load_file(file).items()})
    return weights


@pytest.fixture
def model(base: dict[str, Tensor]) -> ZImageTransformer:
    sizes = json.loads((HUB / "transformer" / "config.json").read_text(encoding="utf-8"))
    names = ("dim", "n_layers", "n_refiner_layers", "n_heads", "cap_feat_dim")
    config = TransformerConfig(axes_dims=tuple(sizes["axes_dims"]), **{name: sizes[name] for name in names})
    built = ZImageTransformer(config)
    built.load_state_dict(base)
    return built.requires_grad_(False)


@pytest.fixture(scope="session")
def probe() -> dict[str, Tensor]:
    """Inputs `x`, `cap`, `t` and the raw outputs `out/<content>` with every golden LoRA merged."""
    return load_file(DIALECTS / "expected" / "outputs.safetensors")
