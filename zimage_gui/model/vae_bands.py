"""Decoding band by band, so that the device holds a strip of the largest feature maps and not the whole.

Knows the decoder's layers and how a band of rows goes through them. Must not know files or when it is needed.

Tiles that are decoded apart show seams and shifted colours, because the decoder's group norms look at the
whole picture. Here every layer is finished for the whole picture before the next one begins: norms are taken
over all of it, a convolution sees its neighbours' rows, and the result is the undivided one but for rounding.
Between layers the maps lie on `store`, which is the CPU for a GPU.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zimage_gui.model.vae import Decoder, ResnetBlock2D, Upsample2D

BAND = 1 << 25
"""Numbers of a feature map that are computed together."""

Band = Callable[[Tensor], Tensor]


def decode_banded(decoder: Decoder, z_BCHW: Tensor, store: torch.device, band: int = BAND) -> Tensor:
    """What `decoder(z)` gives, on `store`; z lies on the device that computes, in VAE space."""
    device = z_BCHW.device
    # At the latents' own size everything together is small, and attention looks at all of it.
    x = decoder.mid_block(decoder.conv_in(z_BCHW)).to(store)
    for layer in (part for block in decoder.up_blocks for part in block.modules()):
        if isinstance(layer, ResnetBlock2D):
            x = _resnet(layer, x, device, band)
        elif isinstance(layer, Upsample2D):
            x = _by_bands(layer, x, device, band, layer.conv.out_channels, scale=2)
    out = _normed_conv(decoder.conv_norm_out, decoder.conv_out, x, device, band)
    return _by_bands(out, x, device, band, decoder.conv_out.out_channels)


def _resnet(block: ResnetBlock2D, x: Tensor, device: torch.device, band: int) -> Tensor:
    out_channels = block.conv1.out_channels
    first = _normed_conv(block.norm1, block.conv1, x, device, band)
    h = _by_bands(first, x, device, band, out_channels)
    second = _normed_conv(block.norm2, block.conv2, h, device, band)
    h = _by_bands(second, h, device, band, out_channels)
    shortcut = block.conv_shortcut if hasattr(block, "conv_shortcut") else nn.Identity()
    for rows in _rows(x, band):
        h[:, :, rows] += shortcut(x[:, :, rows].to(device)).to(h.device)
    return h


def _normed_conv(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, device: torch.device, band: int) -> Band:
    """conv(silu(norm(part))) with the norm of the whole of x."""
    moments = _moments(norm, x, device, band)
    mean, variance = (part.repeat_interleave(x.shape[1] // norm.num_groups, 1) for part in moments)
    gain = norm.weight.float() * (variance + norm.eps).rsqrt()
    shift = norm.bias.float() - mean * gain

    def run(part: Tensor) -> Tensor:
        normed = part.float() * gain[:, :, None, None] + shift[:, :, None, None]
        out: Tensor = conv(F.silu(normed.to(part.dtype)))
        return out

    return run


def _moments(norm: nn.GroupNorm, x: Tensor, device: torch.device, band: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group over the whole map, (B, groups) fp32, joined from the bands'."""
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    mean, spread = mean.to(device, torch.float64), spread.to(device, torch.float64)
    for rows in _rows(x, band):
        part = x[:, :, rows].to(device).float().reshape(x.shape[0], norm.num_groups, -1)
        n = part.shape[2]
        variance, middle = (value.double() for value in torch.var_mean(part, dim=2, correction=0))
        difference = middle - mean
        total = count + n
        mean = mean + difference * (n / total)
        spread = spread + variance * n + difference**2 * (count * n / total)
        count = total
    return mean.float(), (spread / count).float()


def _by_bands(run: Band, x: Tensor, device: torch.device, band: int, channels: int, scale: int = 1) -> Tensor:
    """`run` over all of x; each band is given one more row on either side, as a 3 x 3 convolution needs."""
    batch, _, height, width = x.shape
    out = torch.empty(batch, channels, height * scale, width * scale, dtype=x.dtype, device=x.device)
    for rows in _rows(x, band):
        above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
        part = run(x[:, :, above:below].to(device))
        first = (rows.start - above) * scale
        length = (rows.stop - rows.start) * scale
        out[:, :, rows.start * scale : rows.stop * scale] = part[:, :, first : first + length].to(x.device)
    return out


def _rows(x: Tensor, band: int) -> list[slice]:
    batch, channels, height, width = x.shape
    step = max(1, band // (batch * channels * width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]
