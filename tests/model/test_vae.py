"""The autoencoder equals diffusers' for the same weights, and the two latent spaces invert each other."""

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVae

from zimage_gui.model.sizes import vae_sizes_from
from zimage_gui.model.vae import AutoencoderKL, VaeConfig, to_model_space, to_vae_space

CONFIGS = [
    VaeConfig((32, 64), layers_per_block=1),
    VaeConfig((16, 32, 32), layers_per_block=2, norm_groups=8),
]


def pair(config: VaeConfig) -> tuple[AutoencoderKL, ReferenceVae]:
    torch.manual_seed(0)
    levels = len(config.block_out_channels)
    reference = ReferenceVae(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ours = AutoencoderKL(config).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


@pytest.mark.parametrize("config", CONFIGS, ids=["wide", "three-levels"])
@torch.no_grad()
def test_encoding_and_decoding_equal_diffusers(config: VaeConfig) -> None:
    ours, reference = pair(config)
    images = torch.rand(2, 3, 24, 40) * 2 - 1
    posterior = reference.encode(images).latent_dist
    mean, logvar = ours.encode_moments(images)
    assert torch.allclose(mean, posterior.mode(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(logvar, posterior.logvar, rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours.decode(mean), reference.decode(mean).sample, rtol=1e-5, atol=1e-5)


def test_the_real_autoencoder_has_the_published_size() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(VaeConfig())
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683
    assert len(vae.state_dict()) == 244
    assert vae.config.downscale == 8


def test_the_latent_spaces_invert_each_other() -> None:
    z = torch.randn(2, 16, 4, 4)
    config = VaeConfig()
    assert torch.allclose(to_model_space(z, config), (z - 0.1159) * 0.3611)
    assert torch.allclose(to_vae_space(to_model_space(z, config), config), z, atol=1e-6)


def test_a_picture_that_would_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="30x16 does not divide by 4"):
        AutoencoderKL(CONFIGS[1]).encode_mode(torch.zeros(1, 3, 16, 30))


def test_norm_groups_follow_the_widths_where_no_config_says_them() -> None:
    for config in CONFIGS:
        shapes = {name: tuple(value.shape) for name, value in AutoencoderKL(config).state_dict().items()}
        assert vae_sizes_from(shapes, {})["norm_groups"] == config.norm_groups
