"""The text encoder: Qwen3 without its last layer, as Z-Image reads captions.

Knows the language model and the features it gives. Must not know files, templates or the transformer.

The features are the residual stream before the last layer (`hidden_states[-2]`), without the final norm. So
the last layer, that norm and the output head do not exist here. Parameter names: the hub's, sans `model.`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zimage_gui.model.norms import RMSNorm
from zimage_gui.model.sizes import TextEncoderConfig as TextEncoderConfig

if TYPE_CHECKING:
    from zimage_gui.model.tokenizer import Tokenizer


def rope_cos_sin(tokens: int, config: TextEncoderConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position·θ^(-2i/d), (tokens, head_dim) fp32, both halves of a head alike."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angle = torch.outer(torch.arange(tokens, dtype=torch.float32, device=device), config.rope_theta**-half)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate_halves(x_BHLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + d/2]) of every head."""
    first, second = x_BHLD.chunk(2, dim=-1)
    return x_BHLD * cos_LD + torch.cat([-second, first], dim=-1) * sin_LD


class SelfAttention(nn.Module):
    """Causal attention with grouped key/value heads and RMSNorm on every query and key head."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x_BLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
        split = (-1, self.head_dim)
        q_BHLD = self.q_norm(self.q_proj(x_BLD).unflatten(-1, split)).transpose(1, 2)
        k_BHLD = self.k_norm(self.k_proj(x_BLD).unflatten(-1, split)).transpose(1, 2)
        v_BHLD = self.v_proj(x_BLD).unflatten(-1, split).transpose(1, 2)
        q_BHLD, k_BHLD = rotate_halves(q_BHLD, cos_LD, sin_LD), rotate_halves(k_BHLD, cos_LD, sin_LD)
        out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(out_BHLD.transpose(1, 2).flatten(-2))
        return out


class MLP(nn.Module):
    """down(silu(gate x) · up x)."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))
        return out


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), cos_LD, sin_LD)
        out: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out


class Qwen3TextEncoder(nn.Module):
    """Token ids to caption features."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Features (B, L, hidden) in the model's dtype for right-padded ids (B, L) int64.

        No mask is needed: attention is causal, so a real token never sees the padding behind it. Rows of
        padding come out meaningless.
        """
        x_BLD: Tensor = self.embed_tokens(ids_BL)
        cos_LD, sin_LD = rope_cos_sin(ids_BL.shape[1], self.config, x_BLD.device)
        cos_LD, sin_LD = cos_LD.to(x_BLD.dtype), sin_LD.to(x_BLD.dtype)
        for layer in self.layers:
            x_BLD = layer(x_BLD, cos_LD, sin_LD)
        return x_BLD

    def unused_names(self, names: Iterable[str]) -> list[str]:
        """Tensors of a whole Qwen3 that this truncated one leaves on disk."""
        last = f"layers.{self.config.n_layers}."
        return [name for name in names if name == "norm.weight" or name.startswith(last)]


@torch.no_grad()
def encode_prompts(encoder: Qwen3TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[Tensor]:
    """Features of every prompt's real tokens, (L_i, hidden) each, computed in one right-padded batch."""
    encoded = [tokenizer.encode_prompt(prompt).ids for prompt in prompts]
    if not encoded:
        return []
    ids_BL = torch.full((len(encoded), max(map(len, encoded))), tokenizer.pad_id, dtype=torch.int64)
    for row, ids in zip(ids_BL, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    features = encoder(ids_BL.to(encoder.embed_tokens.weight.device))
    return [rows[: len(ids)].clone() for rows, ids in zip(features, encoded, strict=True)]
