"""Whole denoising loops end on the latents and the picture that diffusers' pipeline made of the same noise."""

import pytest
import torch
from golden import REFERENCE, expected, manifest, worst

from zimage_gui.engine.sampler import denoise
from zimage_gui.model import flow
from zimage_gui.model.text_encoder import Qwen3TextEncoder, encode_prompts
from zimage_gui.model.tokenizer import load_tokenizer
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL, to_vae_space


@pytest.mark.parametrize("case", sorted(manifest()["cases"]["pipeline"]))
@torch.no_grad()
def test_a_denoising_loop_ends_where_the_reference_ends(
    case: str, transformer: ZImageTransformer, text_encoder: Qwen3TextEncoder, vae: AutoencoderKL
) -> None:
    said = manifest()["cases"]["pipeline"][case]
    values = {name.removeprefix(f"pipeline/{case}/"): value for name, value in expected().items()}
    sigmas = flow.shifted_sigmas(said["steps"], said["shift"])
    assert worst(sigmas, values["sigmas"]) < 1e-6
    tokenizer = load_tokenizer(None, REFERENCE / "hub" / "text_encoder", 600)
    positive, negative = encode_prompts(
        text_encoder, tokenizer, [said["prompt"], said["negative_prompt"] or ""]
    )
    seen: list[torch.Tensor] = []
    latents = denoise(
        transformer,
        values["noise"],
        [positive],
        [negative],
        sigmas,
        said["guidance_scale"],
        on_step=lambda _done, _total, x: seen.append(x.clone()),
    )
    for row, index in enumerate(said["after_step_indices"]):
        assert worst(seen[index][0], values["after_step"][row]) < 1e-4
    assert worst(latents, values["latents"]) < 1e-4
    if "image" in values:
        image = vae.decode(to_vae_space(latents, vae.config))[0]
        assert worst(image, values["image"]) < 1e-4
