"""A cheap picture of latents: colours as a linear map of the 16 channels, fitted to the VAE itself.

Knows least squares and drawn test pictures. Must not know samplers, files or who looks at the picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zimage_gui.model.vae import AutoencoderKL, to_model_space

_EDGE = 128
_PICTURES = 6


def drawn_pictures(edge: int = _EDGE, count: int = _PICTURES) -> Tensor:
    """(count, 3, edge, edge) in [-1, 1]: smooth colour fields and flat patches, the same every time."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for index in range(count):
        coarse = torch.rand(1, 3, 3 + index, 3 + index, generator=generator) * 2 - 1
        mode = "nearest" if index % 2 else "bicubic"
        aligned = None if mode == "nearest" else False
        pictures.append(
            F.interpolate(coarse, size=(edge, edge), mode=mode, align_corners=aligned).clamp(-1, 1)
        )
    return torch.cat(pictures)


@torch.no_grad()
def fit_colours(vae: AutoencoderKL) -> Tensor:
    """(17, 3): the colour of a latent in model space, and in the last row a constant, by least squares over
    test pictures that the VAE encodes."""
    parameter = next(vae.parameters())
    rows, wanted = [], []
    for picture in drawn_pictures():
        z = vae.encode_mode(picture[None].to(parameter))
        rows.append(_with_one(to_model_space(z, vae.config)[0].float().cpu().flatten(1).T))
        wanted.append(F.avg_pool2d(picture, vae.config.downscale).flatten(1).T)
    # A little ridge: a channel that the test pictures do not move keeps out.
    x, y = torch.cat(rows).double(), torch.cat(wanted).double()
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    matrix: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    return matrix.float()


def colours(latents_CHW: Tensor, matrix: Tensor) -> Tensor:
    """(h, w, 3) uint8 on the CPU, one pixel per latent; undefined numbers become grey."""
    channels, height, width = latents_CHW.shape
    rows = latents_CHW.detach().float().cpu().reshape(channels, -1).T
    pixels = (_with_one(rows) @ matrix).nan_to_num(0, 0, 0).clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).reshape(height, width, 3)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
