"""The picture autoencoder (the Flux AE): pixels to latents and back.

Knows the network and the two linear spaces a latent can live in. Must not know files, key layouts,
pictures on disk or the transformer: `weights.py` fills these parameters, whose names are diffusers'.

Two latent spaces: *VAE space* is what the encoder gives and the decoder takes; *model space*, about unit
variance, is where the transformer works: model = (vae - shift_factor) * scaling_factor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
LOGVAR_LIMITS = (-30.0, 20.0)


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder; the defaults are those of the real model (83.8 M parameters)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side: every level but the last halves the picture."""
        return 1 << (len(self.block_out_channels) - 1)


def to_model_space(z: Tensor, config: VaeConfig) -> Tensor:
    """VAE space to the transformer's space, any shape."""
    return (z - config.shift_factor) * config.scaling_factor


def to_vae_space(x: Tensor, config: VaeConfig) -> Tensor:
    """The transformer's space to VAE space, any shape; inverse of `to_model_space`."""
    return x / config.scaling_factor + config.shift_factor


class ResnetBlock2D(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        out: Tensor = shortcut + h
        return out


class Attention(nn.Module):
    """Single-head self-attention over all positions of a feature map (B, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens_BLC = self.group_norm(x).flatten(2).transpose(1, 2)
        # SDPA wants a head axis; without it CPU builds fall back to a slow path.
        q, k, v = (proj(tokens_BLC).unsqueeze(1) for proj in (self.to_q, self.to_k, self.to_v))
        mixed_BLC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out_BLC: Tensor = self.to_out[0](mixed_BLC)
        return x + out_BLC.transpose(1, 2).reshape(x.shape)


class Downsample2D(nn.Module):
    """Halve the picture; the single row and column of padding lie at the bottom and right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample2D(nn.Module):
    """Double the picture by nearest neighbour, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)])
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


def _resnets(count: int, in_channels: int, out_channels: int, groups: int) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList([ResnetBlock2D(widths[i], widths[i + 1], groups) for i in range(count)])


class DownBlock(nn.Module):
    """Residual blocks of one encoder level, then (but for the last level) a halving."""

    def __init__(self, in_channels: int, out_channels: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(count, in_channels, out_channels, groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample2D(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks of one decoder level, then (but for the last level) a doubling."""

    def __init__(self, in_channels: int, out_channels: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(count, in_channels, out_channels, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample2D(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to the posterior's mean and log variance (B, 2 * latent, H/8, W/8)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_groups
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.layers_per_block, groups, last=i == len(pairs) - 1)
            for i, (a, b) in enumerate(pairs)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """(B, latent, h, w) in VAE space to pictures (B, 3, 8h, 8w), about [-1, 1] but not clamped."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_groups
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, config.layers_per_block + 1, groups, last=i == len(pairs) - 1)
            for i, (a, b) in enumerate(pairs)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class AutoencoderKL(nn.Module):
    """Encoder and decoder of one autoencoder, or the decoder alone; runs in the dtype of its parameters."""

    def __init__(self, config: VaeConfig, *, decoder_only: bool = False) -> None:
        super().__init__()
        self.config = config
        if not decoder_only:
            self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def unused_names(self, names: Iterable[str]) -> list[str]:
        """Tensors of a whole autoencoder that a decoder alone leaves on disk."""
        return [name for name in names if name.startswith("encoder.") and not hasattr(self, "encoder")]

    def encode_moments(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, each (B, latent, H/8, W/8), VAE space.

        Raises ValueError when a side does not divide by `config.downscale`: the result would be cut.
        """
        height, width = images_BCHW.shape[-2:]
        side = self.config.downscale
        if height % side or width % side:
            raise ValueError(f"a picture of {width}x{height} does not divide by {side}, the VAE's step")
        mean, logvar = self.encoder(images_BCHW).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS)

    def encode_mode(self, images_BCHW: Tensor) -> Tensor:
        """Most probable latent (the posterior's mean), unscaled: (B, latent, H/8, W/8), VAE space."""
        return self.encode_moments(images_BCHW)[0]

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, 8h, 8w) of VAE-space latents, unclamped."""
        out: Tensor = self.decoder(z_BCHW)
        return out
