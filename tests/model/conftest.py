import pytest
from golden import LAYOUTS

from zimage_gui.model.text_encoder import Qwen3TextEncoder
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL
from zimage_gui.model.weights import load_text_encoder, load_transformer, load_vae


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def transformer(layout: str) -> ZImageTransformer:
    import torch

    return load_transformer(LAYOUTS[layout][0], dtype=torch.float32)


@pytest.fixture(scope="module")
def vae(layout: str) -> AutoencoderKL:
    return load_vae(LAYOUTS[layout][1])


@pytest.fixture(scope="module")
def text_encoder(layout: str) -> Qwen3TextEncoder:
    import torch

    return load_text_encoder(LAYOUTS[layout][2], dtype=torch.float32)
