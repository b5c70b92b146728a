"""A tiny random transformer twice: diffusers' and ours, with the same weights."""

import torch
from diffusers import ZImageTransformer2DModel

from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

SMALL = TransformerConfig(
    dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=24, axes_dims=(8, 12, 12)
)


def twins(config: TransformerConfig = SMALL) -> tuple[ZImageTransformer, ZImageTransformer2DModel]:
    torch.manual_seed(0)
    reference = ZImageTransformer2DModel(
        dim=config.dim,
        n_layers=config.n_layers,
        n_refiner_layers=config.n_refiner_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads,
        cap_feat_dim=config.cap_feat_dim,
        axes_dims=list(config.axes_dims),
        axes_lens=[1536, 512, 512],
    ).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    ours = ZImageTransformer(config).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def reference_outputs(
    reference: ZImageTransformer2DModel,
    latents: list[torch.Tensor],
    time: torch.Tensor,
    captions: list[torch.Tensor],
) -> list[torch.Tensor]:
    return [out[:, 0] for out in reference([latent[:, None] for latent in latents], time, captions).sample]
