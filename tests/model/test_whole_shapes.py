"""The table of tensors by which files are judged without torch is that of the networks."""

import pytest
import torch

from zimage_gui.model.sizes import TextEncoderConfig, TransformerConfig
from zimage_gui.model.text_encoder import Qwen3TextEncoder
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL, VaeConfig
from zimage_gui.model.whole_shapes import misfits, whole_shapes

NETWORKS = {
    "real transformer": lambda: ("transformer", ZImageTransformer(TransformerConfig())),
    "small transformer": lambda: (
        "transformer",
        ZImageTransformer(TransformerConfig(64, 3, 1, 2, 24, (8, 12, 12))),
    ),
    "real vae": lambda: ("vae", AutoencoderKL(VaeConfig())),
    "small vae": lambda: ("vae", AutoencoderKL(VaeConfig((8, 16), 1, 16, 8))),
    "decoder": lambda: ("vae", AutoencoderKL(VaeConfig(), decoder_only=True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_has_every_parameter_of_the_network(name):
    with torch.device("meta"):
        part, network = NETWORKS[name]()
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert whole_shapes(part, shapes, {}) == shapes
    first = min(shapes)
    assert misfits({**shapes, first: (7, 7)}, shapes)[0].startswith("1 tensor of another shape")
    assert "missing" in misfits({k: v for k, v in shapes.items() if k != first}, shapes)[0]


def test_a_text_encoder_has_one_layer_and_one_norm_more_than_are_used():
    with torch.device("meta"):
        network = Qwen3TextEncoder(TextEncoderConfig(n_layers=36))
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert whole_shapes("text_encoder", shapes, {}) == shapes | {"norm.weight": (2560,)}
