"""The Z-Image transformer (S3-DiT), as the official model computes it, written to be read.

Knows the network, its parameter names (those of the diffusers checkpoint) and its sequence layout.
Must not know files, LoRA, samplers or training.

Tensor names end in their shape: B batch, L tokens, D model width, H heads, C channels, N picture tokens.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zimage_gui.model.attention import attention
from zimage_gui.model.norms import RMSNorm
from zimage_gui.model.recompute import Elsewhere, cheap, keeping_products
from zimage_gui.model.rope import rope_tables, rotate
from zimage_gui.model.sizes import TransformerConfig as TransformerConfig
from zimage_gui.model.swiglu import swiglu

SEQUENCE_MULTIPLE = 32
TIME_FREQUENCIES = 256
TIME_HIDDEN = 1024
MAX_TIME_PERIOD = 10_000.0
# In fp16 the attention output and the gate product leave the range. Both go through a bias-free linear
# layer into an RMSNorm, which cancels a common factor; a power of two makes the detour exact.
FP16_ATTENTION_SCALE = 1 / 4
FP16_FFN_SCALE = 1 / 32


def padded(tokens: int) -> int:
    """Length after padding to the next multiple of 32, as the official model pads every sequence."""
    return -(-tokens // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def _padded_length(captions: Sequence[Tensor]) -> int:
    return padded(max(map(len, captions)))


class Attention(nn.Module):
    """Multi-head self-attention with per-head RMSNorm on queries and keys and rotary positions."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim = config.dim
        self.heads = config.n_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, config.norm_eps)
        self.norm_k = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BLD: Tensor, rope_L1C2: Tensor) -> Tensor:
        heads = (*x_BLD.shape[:-1], self.heads, -1)
        q_BLHD = cheap(_rotated_norm, self.norm_q, self.to_q(x_BLD).view(heads), rope_L1C2)
        k_BLHD = cheap(_rotated_norm, self.norm_k, self.to_k(x_BLD).view(heads), rope_L1C2)
        v_BLHD = self.to_v(x_BLD).view(heads)
        out_BLD = attention(q_BLHD, k_BLHD, v_BLHD).flatten(-2)
        if out_BLD.dtype is torch.float16:
            out_BLD = out_BLD * FP16_ATTENTION_SCALE
        out: Tensor = self.to_out[0](out_BLD)
        return out


def _rotated_norm(norm: RMSNorm, heads_BLHD: Tensor, rope_L1C2: Tensor) -> Tensor:
    return rotate(norm(heads_BLHD), rope_L1C2)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        linear_x = x_BLD * FP16_FFN_SCALE if x_BLD.dtype is torch.float16 else x_BLD
        out: Tensor = self.w2(cheap(swiglu, self.w1(x_BLD), self.w3(linear_x)))
        return out


class Factors(NamedTuple):
    """What the time makes of a block: factors of its four norms, (B, 1, D) fp32, or None without a time."""

    attention_in: Tensor | None
    attention_out: Tensor | None
    ffn_in: Tensor | None
    ffn_out: Tensor | None


class FinalScale(NamedTuple):
    """What the time makes of the final layer: the factor (B, 1, D) of its norm."""

    scale: Tensor


class Block(nn.Module):
    """One transformer block; with `modulated`, scales and gates come from the time embedding.

    x ← x + tanh(gate_a)·norm(attention(norm(x)·(1 + scale_a))), then the same with the feed-forward part.
    The caption refiner has neither scales nor gates. visit: whoever moves the block's weights, if anyone.
    """

    visit: Elsewhere | None = None

    def __init__(self, config: TransformerConfig, modulated: bool):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)
        self.attention_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attention_norm2 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm2 = RMSNorm(config.dim, config.norm_eps)
        self.adaLN_modulation: nn.ModuleList | None = None
        if modulated:
            self.adaLN_modulation = nn.ModuleList([nn.Linear(config.time_dim, 4 * config.dim)])

    def forward(self, x_BLD: Tensor, rope_L1C2: Tensor, time: Tensor | Factors | None) -> Tensor:
        """time: its embedding (B, time_dim), or what `factors` made of it."""
        half = x_BLD.dtype is torch.float16
        scale_a, gate_a, scale_f, gate_f = time if isinstance(time, Factors) else self.factors(time)
        out_BLD = self.attention(cheap(self.attention_norm1, x_BLD, scale_a), rope_L1C2)
        x_BLD = x_BLD + self.attention_norm2(out_BLD, gate_a, FP16_ATTENTION_SCALE if half else 1.0)
        out_BLD = self.feed_forward(cheap(self.ffn_norm1, x_BLD, scale_f))
        x_BLD = x_BLD + self.ffn_norm2(out_BLD, gate_f, FP16_FFN_SCALE if half else 1.0)
        return x_BLD

    def factors(self, time_BT: Tensor | None) -> Factors:
        """1 + scale, tanh(gate), 1 + scale, tanh(gate): scales and gates multiply what a norm puts out, so
        they are folded into its weight.
        """
        if self.adaLN_modulation is None:
            return Factors(None, None, None, None)
        modulation = self.adaLN_modulation[0](time_BT).float().unsqueeze(1)
        scale_a, gate_a, scale_f, gate_f = modulation.chunk(4, dim=-1)
        return Factors(1 + scale_a, gate_a.tanh(), 1 + scale_f, gate_f.tanh())


class TimeEmbedder(nn.Module):
    """Sinusoid of the scaled time, then a two-layer MLP: (B,) → (B, time_dim).

    The sinusoid is cos first, then sin, of t·10000^(-i/128). Time must arrive in fp32: rounded to bf16 it
    is off by up to two of its thousand steps.
    """

    def __init__(self, out_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, out_dim)
        )

    def forward(self, scaled_time_B: Tensor, dtype: torch.dtype) -> Tensor:
        half = TIME_FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=scaled_time_B.device)
        angle = scaled_time_B.float()[:, None] * torch.exp(index * (-math.log(MAX_TIME_PERIOD) / half))
        out: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))
        return out


class FinalLayer(nn.Module):
    """Scaled LayerNorm and the projection back to patches."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.linear = nn.Linear(config.dim, config.token_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_dim, config.dim))

    def forward(self, x_BND: Tensor, time: Tensor | FinalScale) -> Tensor:
        (scale,) = time if isinstance(time, FinalScale) else self.factor(time)
        out: Tensor = self.linear(F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6) * scale)
        return out

    def factor(self, time_BT: Tensor) -> FinalScale:
        return FinalScale(1 + self.adaLN_modulation(time_BT).unsqueeze(1))


RunBlock = Callable[[nn.Module, Tensor, Tensor, Tensor | Factors | None], Tensor]


def call_block(block: nn.Module, x_BLD: Tensor, rope_L1C2: Tensor, time: Tensor | Factors | None) -> Tensor:
    """Runs a block plainly. A trainer passes its own function in this place to checkpoint blocks."""
    out: Tensor = block(x_BLD, rope_L1C2, time)
    return out


def call_block_keeping_products(
    block: nn.Module, x_BLD: Tensor, rope_L1C2: Tensor, time: Tensor | Factors | None
) -> Tensor:
    """Runs a block for training: its matrix products are kept, what lies between them is computed again."""
    with keeping_products(getattr(block, "visit", None)):
        return call_block(block, x_BLD, rope_L1C2, time)


@dataclass(frozen=True)
class Modulation:
    """What each modulated part is given of the time: its embedding (B, time_dim), or, where that was done
    beforehand, what the part makes of it."""

    refiners: tuple[Tensor | Factors, ...]
    layers: tuple[Tensor | Factors, ...]
    final: Tensor | FinalScale


@dataclass(frozen=True)
class Hidden:
    """What stands between the two halves of the network.

    `sequence` (B, L, D) is [picture, caption], both padded; `rope` (L, 1, head_dim/2, 2); the first
    `image_tokens` rows are the picture of `grid` = (rows, columns) patches.
    """

    sequence: Tensor
    modulation: Modulation
    rope: Tensor
    image_tokens: int
    grid: tuple[int, int]


class ZImageTransformer(nn.Module):
    """The whole network. Output is the raw model output (about x0 - noise), always fp32."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        patch = f"{config.patch_size}-1"
        self.all_x_embedder = nn.ModuleDict({patch: nn.Linear(config.token_dim, config.dim)})
        self.all_final_layer = nn.ModuleDict({patch: FinalLayer(config)})
        self.t_embedder = TimeEmbedder(config.time_dim)
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim)
        )
        refiners = range(config.n_refiner_layers)
        self.noise_refiner = nn.ModuleList(Block(config, modulated=True) for _ in refiners)
        self.context_refiner = nn.ModuleList(Block(config, modulated=False) for _ in refiners)
        self.layers = nn.ModuleList(Block(config, modulated=True) for _ in range(config.n_layers))
        self.x_pad_token = nn.Parameter(torch.zeros(1, config.dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, config.dim))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in: that of its pad tokens, which no method quantises."""
        return self.x_pad_token.dtype

    @property
    def device(self) -> torch.device:
        return self.x_pad_token.device

    def forward(
        self,
        latents_BCHW: Tensor,
        time: Tensor | Modulation,
        captions: Sequence[Tensor] | Tensor,
        *,
        run_block: RunBlock = call_block,
    ) -> Tensor:
        """Model output (B, C, H, W) fp32 for latents (B, C, H, W) in model space, H and W even.

        `time` (B,) is 1 - sigma in fp32 (0 pure noise, 1 clean), or what `modulations` made of it;
        `captions` are (L_i, cap_feat_dim) features of real tokens only, whose lengths must be equal after
        padding to 32 (see `forward_any`), or what `refine_captions` made of them.
        """
        return self.decode(self.embed(latents_BCHW, time, captions, run_block=run_block), run_block=run_block)

    def forward_any(
        self, latents: Sequence[Tensor], time: Tensor | Modulation, captions: Sequence[Tensor]
    ) -> list[Tensor]:
        """Outputs (C, H, W) of samples of any sizes and caption lengths, each group in one unmasked batch."""
        groups: dict[tuple[torch.Size, int], list[int]] = {}
        for index, (latent, caption) in enumerate(zip(latents, captions, strict=True)):
            groups.setdefault((latent.shape, padded(len(caption))), []).append(index)
        outputs: dict[int, Tensor] = {}
        for members in groups.values():
            batch = torch.stack([latents[i] for i in members])
            own = time if isinstance(time, Modulation) else time[members]
            out = self(batch, own, [captions[i] for i in members])
            outputs.update(zip(members, out.unbind(), strict=True))
        return [outputs[i] for i in range(len(latents))]

    def modulations(self, times_S: Tensor) -> list[Modulation]:
        """All that depends on the time alone, for each of these times and batches of any size: a sampler
        computes it once for all steps. A block whose weights someone moves does it itself in each step."""
        time_ST = self._embed_time(times_S)
        refiners, layers = (self._split(part, time_ST) for part in (self.noise_refiner, self.layers))
        final = self._final.factor(time_ST).scale.chunk(len(time_ST))
        return [
            Modulation(refiner, layer, FinalScale(scale))
            for refiner, layer, scale in zip(refiners, layers, final, strict=True)
        ]

    @staticmethod
    def _split(blocks: Iterable[nn.Module], time_ST: Tensor) -> Iterable[tuple[Tensor | Factors, ...]]:
        """For each time, what each block is given."""
        per_block: list[Sequence[Tensor | Factors]] = []
        for block in blocks:
            assert isinstance(block, Block)
            if block.visit is not None:
                per_block.append(time_ST.chunk(len(time_ST)))
                continue
            factors = [factor.chunk(len(time_ST)) for factor in block.factors(time_ST) if factor is not None]
            per_block.append([Factors(*one) for one in zip(*factors, strict=True)])
        return zip(*per_block, strict=True)

    def refine_captions(self, captions: Sequence[Tensor], *, run_block: RunBlock = call_block) -> Tensor:
        """The caption part of `embed`, (B, L, D): it depends on neither picture nor time, so that a sampler
        computes it once for all steps."""
        return self._refined(captions, self.rope(0, 0, 0, _padded_length(captions)), run_block)

    def _refined(self, captions: Sequence[Tensor], rope_L1C2: Tensor, run_block: RunBlock) -> Tensor:
        caption_BLD = self._embed_captions(captions)
        for block in self.context_refiner:
            caption_BLD = run_block(block, caption_BLD, rope_L1C2, None)
        return caption_BLD

    def embed(
        self,
        latents_BCHW: Tensor,
        time: Tensor | Modulation,
        captions: Sequence[Tensor] | Tensor,
        *,
        run_block: RunBlock = call_block,
    ) -> Hidden:
        """First half: embedders and refiners. Nothing here is trained by a LoRA on `layers`."""
        rows, columns = (size // self.config.patch_size for size in latents_BCHW.shape[-2:])
        modulation = time if isinstance(time, Modulation) else self._unmodulated(time)
        image_BLD = self._embed_image(latents_BCHW)
        image_length = image_BLD.shape[1]
        caption_length = captions.shape[1] if isinstance(captions, Tensor) else _padded_length(captions)
        rope_L1C2 = self.rope(rows, columns, image_length, caption_length)
        for block, factors in zip(self.noise_refiner, modulation.refiners, strict=True):
            image_BLD = run_block(block, image_BLD, rope_L1C2[:image_length], factors)
        if not isinstance(captions, Tensor):
            captions = self._refined(captions, rope_L1C2[image_length:], run_block)
        sequence_BLD = torch.cat([image_BLD, captions], dim=1)
        return Hidden(sequence_BLD, modulation, rope_L1C2, rows * columns, (rows, columns))

    def decode(self, hidden: Hidden, run_block: RunBlock = call_block) -> Tensor:
        """Second half: the main blocks and the projection of the picture's tokens, (B, C, H, W) fp32."""
        x_BLD = hidden.sequence
        for block, factors in zip(self.layers, hidden.modulation.layers, strict=True):
            x_BLD = run_block(block, x_BLD, hidden.rope, factors)
        patches_BNP: Tensor = self._final(x_BLD[:, : hidden.image_tokens], hidden.modulation.final).float()
        patch, (rows, columns) = self.config.patch_size, hidden.grid
        pixels = patches_BNP.reshape(-1, rows, columns, patch, patch, self.config.in_channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(pixels), -1, patch * rows, patch * columns)

    @property
    def _final(self) -> FinalLayer:
        final: FinalLayer = self.all_final_layer[f"{self.config.patch_size}-1"]  # type: ignore[assignment]
        return final

    def _embed_time(self, time_B: Tensor) -> Tensor:
        time_BT: Tensor = self.t_embedder(time_B.float() * self.config.t_scale, self.dtype)
        return time_BT

    def _unmodulated(self, time_B: Tensor) -> Modulation:
        time_BT = self._embed_time(time_B)
        return Modulation((time_BT,) * len(self.noise_refiner), (time_BT,) * len(self.layers), time_BT)

    def rope(self, rows: int, columns: int, image_length: int, caption_length: int) -> Tensor:
        """The rotary table of [picture, caption], both padded; of one shape it is one tensor while cached."""
        axes, theta = self.config.axes_dims, self.config.rope_theta
        return rope_tables(rows, columns, image_length, caption_length, axes, theta, self.device)

    def _embed_image(self, latents_BCHW: Tensor) -> Tensor:
        """Patches in row-major order, channel fastest inside a patch, then the learned pad rows."""
        patch = self.config.patch_size
        batch, channels, height, width = latents_BCHW.shape
        pixels = latents_BCHW.to(self.dtype).reshape(
            batch, channels, height // patch, patch, width // patch, patch
        )
        patches_BNP = pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        tokens_BND = self.all_x_embedder[f"{patch}-1"](patches_BNP)
        missing = padded(tokens_BND.shape[1]) - tokens_BND.shape[1]
        pad_BLD = self.x_pad_token.to(tokens_BND.dtype).expand(len(tokens_BND), missing, -1)
        return torch.cat([tokens_BND, pad_BLD], dim=1)

    def _embed_captions(self, captions: Sequence[Tensor]) -> Tensor:
        """Embeds the real tokens of all captions at once, then pads each with the learned row."""
        lengths = [len(caption) for caption in captions]
        target = padded(max(lengths))
        if min(lengths) == 0 or padded(min(lengths)) != target:
            raise ValueError(f"captions of one batch need one padded length above 0, got lengths {lengths}")
        tokens = self.cap_embedder(torch.cat([caption.to(self.dtype) for caption in captions]))
        pad_1D = self.cap_pad_token.to(tokens.dtype)
        rows = [torch.cat([part, pad_1D.expand(target - len(part), -1)]) for part in tokens.split(lengths)]
        return torch.stack(rows)
