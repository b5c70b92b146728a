"""Euler sampling of the flow: from noise to latents, the same loop for `generate` and for training previews.

Knows sigmas, guidance and steps. It must not know prompts as text, files, LoRAs or the VAE.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zimage_gui.model import flow
from zimage_gui.model.transformer import ZImageTransformer, padded


class Cancelled(Exception):
    """`on_step` asked to stop; no latents result."""


OnStep = Callable[[int, int, Tensor], bool | None]


@torch.no_grad()
def denoise(
    transformer: ZImageTransformer,
    noise_BCHW: Tensor,
    positive: Sequence[Tensor],
    negative: Sequence[Tensor] | None,
    sigmas: Tensor,
    guidance_scale: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """Integrates dx/dσ = v = -(model output) from sigmas[0] to sigmas[-1] by Euler steps.

    noise_BCHW: fp32, model space, on the transformer's device; sigmas (N+1,) fall to 0; positive and negative
    hold one (L_i, cap) feature tensor per picture. guidance_scale g adds g·(positive - negative) for every g
    > 0 and needs `negative` then. `on_step(done, total, latents)` runs after each step; when it returns True,
    Cancelled is raised. Returns fp32 latents of the same shape. Latents and the update stay fp32 whatever the
    transformer's dtype.
    """
    if guidance_scale > 0 and negative is None:
        raise ValueError("guidance needs the features of a negative prompt")
    latents = noise_BCHW.to(torch.float32)
    guides = [_refined(transformer, positive)]
    if guidance_scale > 0 and negative is not None:
        guides.append(_refined(transformer, negative))
    steps = sigmas.shape[0] - 1
    levels = [float(sigma) for sigma in sigmas]
    for index in range(steps):
        output, *opposite = (_output(transformer, latents, levels[index], captions) for captions in guides)
        if opposite:
            output = flow.guided(output, opposite[0], guidance_scale)
        latents = flow.euler_step(latents, output, levels[index], levels[index + 1])
        if on_step is not None and on_step(index + 1, steps, latents):
            raise Cancelled
    return latents


def _refined(transformer: ZImageTransformer, captions: Sequence[Tensor]) -> Sequence[Tensor] | Tensor:
    """The captions' part of the network, which is the same in every step; lengths that differ stay as they
    are."""
    one_length = len({padded(len(caption)) for caption in captions}) == 1
    return transformer.refine_captions(captions) if one_length else captions


def _output(
    transformer: ZImageTransformer, latents: Tensor, sigma: float, captions: Sequence[Tensor] | Tensor
) -> Tensor:
    """The raw model output, about x0 - noise, in fp32."""
    sigma_B = torch.full((latents.shape[0],), sigma, dtype=torch.float32, device=latents.device)
    time_B = flow.sampling_time(sigma_B)
    if isinstance(captions, Tensor):
        output: Tensor = transformer(latents, time_B, captions)
    else:
        output = torch.stack(transformer.forward_any(list(latents), time_B, captions))
    return output.float()
