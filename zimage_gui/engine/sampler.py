"""Sampling of the flow: from noise to latents, the same loop for `generate` and for training previews.

Knows guidance, steps, what of a picture is kept, and which options of a prompt line choose among them. It
must not know prompts as text, files, LoRAs or the VAE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.model import flow
from zimage_gui.model.sigmas import schedule
from zimage_gui.model.solvers import SOLVERS
from zimage_gui.model.transformer import ZImageTransformer, padded


class Cancelled(Exception):
    """`on_step` asked to stop; no latents result."""


class Sampled(Protocol):
    """What a sampler asks of a `ZImageTransformer`. What `modulations` makes of a time goes to the passes."""

    @property
    def device(self) -> torch.device: ...

    def modulations(self, times_S: Tensor, /) -> Sequence[Any]: ...

    def refine_captions(self, captions: Sequence[Tensor], /) -> Tensor | Sequence[Tensor]: ...

    def forward_any(
        self, latents: Sequence[Tensor], time: Any, captions: Sequence[Tensor], /
    ) -> list[Tensor]: ...

    def __call__(self, latents_BCHW: Tensor, time: Any, captions: Any, /) -> Tensor: ...


OnStep = Callable[[int, int, Tensor], bool | None]
Forward = Callable[[Tensor, Any, Tensor], Tensor]
"""A pass of the network, given what `modulations` and `refine_captions` made."""


@dataclass(frozen=True)
class Sampling:
    """How a picture is sampled, by the names of the options of `generate`: what these share with the
    previews during training."""

    sampler: str = "euler"
    scheduler: str = "reference"
    cfg_truncation: float = 1.0
    cfg_normalization: float = 0.0

    def guidance(self, scale: float, batched: bool = False) -> "Guidance":
        return Guidance(scale, self.cfg_truncation, self.cfg_normalization, batched)

    def sigmas(self, steps: int, shift: float, strength: float = 1.0) -> Tensor:
        """The levels that are visited: the last ⌈strength·N⌉ steps of a schedule of N, as diffusers' pictures
        from pictures take them."""
        return _levels(self.scheduler, steps, shift, strength)


REFERENCE = Sampling()


def sampling_of(line: PromptLine, otherwise: Sampling = REFERENCE) -> Sampling:
    """What a line of a prompt file chooses, and `otherwise` where it says nothing."""
    names = (field.name for field in fields(Sampling))
    given = {name: value for name in names if (value := getattr(line, name)) is not None}
    return replace(otherwise, **given)


@lru_cache(maxsize=256)
def _levels(scheduler: str, steps: int, shift: float, strength: float) -> Tensor:
    sigmas = schedule(scheduler, steps, shift)
    count = len(sigmas) - 1
    return sigmas[int(max(count - min(count * strength, count), 0)) :]


@dataclass(frozen=True)
class Guidance:
    """How far the negative prompt pushes.

    scale g adds g·(positive - negative) and is off at 0. truncation: none once the time 1 - σ is above it.
    normalization k > 0: the guided output is no longer than k times the positive one. batched: both outputs
    in one pass of the network, which is faster and needs twice the memory.
    """

    scale: float = 0.0
    truncation: float = 1.0
    normalization: float = 0.0
    batched: bool = False


_CAPTION_TOKENS = 512
_ROWS_IN_FLIGHT = 12
"""Numbers per token, in widths of the model, that a block holds at once beside its gate's three."""


def bytes_of_both(transformer: ZImageTransformer, latents_BCHW: Tensor) -> int:
    """What a pass with both prompts needs beside the weights, about."""
    config = transformer.config
    pictures, _, height, width = latents_BCHW.shape
    tokens = 2 * pictures * (height * width // config.patch_size**2 + _CAPTION_TOKENS)
    return tokens * (_ROWS_IN_FLIGHT * config.dim + 3 * config.ffn_dim) * transformer.dtype.itemsize


@dataclass(frozen=True)
class Kept:
    """What inpainting leaves as it is: latents x0 (B, C, H, W) where `mask` (1 or B, 1, H, W) is 0; 1 is made
    anew. `noise` is the noise that the loop started from."""

    x0: Tensor
    mask: Tensor
    noise: Tensor


@torch.no_grad()
def denoise(
    transformer: Sampled,
    start_BCHW: Tensor,
    positive: Sequence[Tensor],
    negative: Sequence[Tensor] | None,
    sigmas: Tensor,
    guidance: Guidance | float = 0.0,
    on_step: OnStep | None = None,
    *,
    solver: str = "euler",
    kept: Kept | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Integrates dx/dσ = v = -(model output) from sigmas[0] to sigmas[-1].

    start_BCHW: fp32, model space, on the transformer's device: noise where sigmas[0] is 1, else a picture
    with that share of noise; sigmas (N+1,) fall to 0; positive and negative hold one (L_i, cap) feature
    tensor per picture; guidance above 0 needs `negative`. `on_step(done, total, latents)` runs after each
    step; when it returns True, Cancelled is raised. `forward` runs in the transformer's stead. Returns fp32
    latents of the same shape. Latents and the update stay fp32 whatever the transformer's dtype.
    """
    guidance = Guidance(guidance) if isinstance(guidance, float | int) else guidance
    if guidance.scale > 0 and negative is None:
        raise ValueError("guidance needs the features of a negative prompt")
    levels = [float(sigma) for sigma in sigmas]
    times = _Times(transformer, levels[:-1])
    velocity = _velocity(transformer, positive, negative, guidance, times, forward or transformer)
    start = latents = start_BCHW.to(torch.float32)
    steps = len(levels) - 1
    for done, latents in enumerate(SOLVERS[solver](start, levels, velocity, _keeper(kept)), 1):
        if on_step is not None and on_step(done, steps, latents):
            raise Cancelled
    return latents


def _keeper(kept: Kept | None) -> Callable[[Tensor, float], Tensor] | None:
    """x ← (1 - m)·((1 - σ)·x0 + σ·noise) + m·x after every step."""
    if kept is None:
        return None

    def keep(latents: Tensor, sigma: float) -> Tensor:
        original = flow.noisy(kept.x0, kept.noise, torch.full((1,), sigma, device=latents.device))
        return (1 - kept.mask) * original + kept.mask * latents

    return keep


def _velocity(
    transformer: Sampled,
    positive: Sequence[Tensor],
    negative: Sequence[Tensor] | None,
    guidance: Guidance,
    times: "_Times",
    forward: Forward,
) -> Callable[[Tensor, float], Tensor]:
    """v(x, σ) with all guidance in it. Captions are refined here once: they depend on no step."""
    one = _refined(transformer, positive)
    other = _refined(transformer, negative) if negative is not None and guidance.scale > 0 else None
    both = _both(transformer, positive, negative, one, other) if guidance.batched else None
    output = partial(_output, transformer, forward)

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        time = times.at(sigma)
        if other is None or float(flow.sampling_time(torch.tensor(sigma))) > guidance.truncation:
            return -output(latents, time, one)
        if both is not None:
            ahead, opposite = output(torch.cat([latents, latents]), time, both).chunk(2)
        else:
            ahead, opposite = (output(latents, time, part) for part in (one, other))
        return -flow.limited(flow.guided(ahead, opposite, guidance.scale), ahead, guidance.normalization)

    return velocity


Captions = Sequence[Tensor] | Tensor

_LEVELS_AT_ONCE = 64
"""They take 2 MB each with the real model, so that 1000 steps would take 2 GB."""


def _refined(transformer: Sampled, captions: Sequence[Tensor]) -> Captions:
    """The captions' part of the network, which is the same in every step; lengths that differ stay as they
    are."""
    one_length = len({padded(len(caption)) for caption in captions}) == 1
    return transformer.refine_captions(captions) if one_length else captions


def _both(
    transformer: Sampled,
    positive: Sequence[Tensor],
    negative: Sequence[Tensor] | None,
    one: Captions,
    other: Captions | None,
) -> Captions | None:
    """Both prompts as one batch; lengths that differ are run as two passes by `forward_any` all the same."""
    if other is None or negative is None:
        return None
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return torch.cat([one, other])
    return [*positive, *negative]


def _output(transformer: Sampled, forward: Forward, latents: Tensor, time: Any, captions: Captions) -> Tensor:
    """The raw model output, about x0 - noise, in fp32."""
    if isinstance(captions, Tensor):
        output = forward(latents, time, captions)
    else:
        output = torch.stack(transformer.forward_any(list(latents), time, captions))
    return output.float()


class _Times:
    """What the network makes of each level alone, worked out for many levels at a time before they are
    visited."""

    def __init__(self, transformer: Sampled, levels: Sequence[float]) -> None:
        self._transformer = transformer
        self._levels = list(dict.fromkeys(levels))
        self._known: dict[float, Any] = {}

    def at(self, sigma: float) -> Any:
        if sigma not in self._known:
            first = self._levels.index(sigma)
            group = self._levels[first : first + _LEVELS_AT_ONCE]
            sigmas = torch.tensor(group, dtype=torch.float32, device=self._transformer.device)
            found = self._transformer.modulations(flow.sampling_time(sigmas))
            self._known = dict(zip(group, found, strict=True))
        return self._known[sigma]
