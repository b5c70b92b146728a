"""Every golden value of the reference model, from the hub folder and from the single files."""

import pytest
import torch
from golden import REFERENCE, expected, manifest, worst

from zimage_gui.model import flow
from zimage_gui.model.text_encoder import Qwen3TextEncoder, encode_prompts
from zimage_gui.model.tokenizer import load_tokenizer
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL, to_model_space, to_vae_space

CASES = [name for name in manifest()["cases"]["transformer"] if name.startswith("c")]


def inputs(case: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    values = expected()
    latents = values[f"transformer/{case}/x"].transpose(0, 1)
    return latents, values[f"transformer/{case}/t"], [values[f"transformer/{case}/cap"]]


@torch.no_grad()
def test_the_transformer_gives_the_golden_outputs(transformer: ZImageTransformer) -> None:
    for case in CASES:
        out = transformer(*inputs(case))
        assert worst(out[0], expected()[f"transformer/{case}/out"][:, 0]) < 5e-5, case


@torch.no_grad()
def test_a_batch_of_different_sizes_gives_the_golden_outputs_also_one_by_one(
    transformer: ZImageTransformer,
) -> None:
    values = expected()
    latents = [values[f"transformer/mixed_batch/x{i}"][:, 0] for i in range(3)]
    captions = [values[f"transformer/mixed_batch/cap{i}"] for i in range(3)]
    time = values["transformer/mixed_batch/t"]
    together = transformer.forward_any(latents, time, captions)
    for i in range(3):
        wanted = values[f"transformer/mixed_batch/out{i}"][:, 0]
        assert worst(together[i], wanted) < 5e-5
        assert worst(transformer(latents[i][None], time[i : i + 1], captions[i : i + 1])[0], wanted) < 5e-5


@torch.no_grad()
def test_a_pair_with_captions_of_different_padded_lengths_gives_the_golden_output(
    transformer: ZImageTransformer,
) -> None:
    values = expected()
    captions = [values["transformer/pair/cap0"], values["transformer/pair/cap1"]]
    latents = list(values["transformer/pair/x"][:, :, 0])
    out = transformer.forward_any(latents, values["transformer/pair/t"], captions)
    assert worst(torch.stack(out), values["transformer/pair/out"][:, :, 0]) < 5e-5


@torch.no_grad()
def test_pad_tokens_and_exact_time_matter_as_much_as_they_do_in_the_reference(
    transformer: ZImageTransformer,
) -> None:
    said = manifest()["cases"]["transformer_sensitivity"]
    latents, time, captions = inputs(said["case"])
    wanted = expected()[f"transformer/{said['case']}/out"][:, 0]
    for name, key in (("x_pad_token", "if_x_pad_token_zero"), ("cap_pad_token", "if_cap_pad_token_zero")):
        token = getattr(transformer, name)
        kept = token.clone()
        token.zero_()
        change = worst(transformer(latents, time, captions)[0], wanted)
        token.copy_(kept)
        assert change == pytest.approx(said.get(key, said.get(f"max_abs_change_{key}")), rel=1e-3)
    case = said["case_of_the_last"]
    latents, time, captions = inputs(case)
    rounded = (time * 1000).bfloat16().float() / 1000
    change = worst(transformer(latents, rounded, captions)[0], expected()[f"transformer/{case}/out"][:, 0])
    assert change == pytest.approx(said["if_t_times_1000_rounded_to_bf16"], rel=1e-3)


@torch.no_grad()
def test_the_time_embedding_is_golden(transformer: ZImageTransformer) -> None:
    out = transformer.t_embedder(expected()["t_embedder/t"] * 1000, torch.float32)
    assert worst(out, expected()["t_embedder/out"]) < 1e-5


@torch.no_grad()
def test_the_autoencoder_gives_the_golden_latents_and_pictures(vae: AutoencoderKL) -> None:
    values = expected()
    for case in ("encode0", "encode1"):
        pixels = values[f"vae/{case}/pixels"].permute(2, 0, 1)[None].float() / 127.5 - 1
        mean, logvar = vae.encode_moments(pixels)
        assert worst(mean[0], values[f"vae/{case}/mean"]) < 2e-4
        assert worst(logvar[0], values[f"vae/{case}/logvar"]) < 2e-4
        assert worst(to_model_space(mean, vae.config)[0], values[f"vae/{case}/model_latent"]) < 2e-4
    assert worst(vae.decode(values["vae/decode0/z"][None])[0], values["vae/decode0/image"]) < 2e-4
    latent = to_vae_space(values["vae/decode1/model_latent"][None], vae.config)
    assert worst(vae.decode(latent)[0], values["vae/decode1/image"]) < 2e-4


def test_prompts_become_the_golden_ids_and_features(text_encoder: Qwen3TextEncoder) -> None:
    tokenizer = load_tokenizer(None, REFERENCE / "hub" / "text_encoder", 600)
    prompts = [case["prompt"] for case in manifest()["cases"]["text"]]
    together = encode_prompts(text_encoder, tokenizer, prompts)
    for i, prompt in enumerate(prompts):
        assert list(tokenizer.encode_prompt(prompt).ids) == expected()[f"text/{i}/input_ids"].tolist()
        wanted = expected()[f"text/{i}/features"]
        assert worst(together[i], wanted) < 5e-5
        assert worst(encode_prompts(text_encoder, tokenizer, [prompt])[0], wanted) < 5e-5


def test_sigmas_are_golden() -> None:
    for name, wanted in expected().items():
        if name.startswith("sigmas/"):
            shift, steps = (int(part.lstrip("shiftn")) for part in name.split("/")[1:])
            assert worst(flow.shifted_sigmas(steps, shift), wanted) < 1e-6, name


@pytest.mark.parametrize("case", ["single", "batch2"])
def test_the_loss_and_its_gradients_are_golden(transformer: ZImageTransformer, case: str) -> None:
    values = {name.removeprefix(f"loss/{case}/"): value for name, value in expected().items()}
    captions = [values[f"cap{i}"] for i in range(len(values["x0"]))]
    names = manifest()["cases"]["loss"][case]["grad_norm_names"]
    parameters = dict(transformer.named_parameters())
    noisy = flow.noisy(values["x0"], values["noise"], values["sigma"])
    target = flow.velocity(values["x0"], values["noise"])
    transformer.requires_grad_(True)
    try:
        out = outputs_of(transformer, noisy, flow.time_of_sigma(values["sigma"]), captions)
        loss = ((-out - target) ** 2).mean()
        gradients = dict(
            zip(names, torch.autograd.grad(loss, [parameters[name] for name in names]), strict=True)
        )
    finally:
        transformer.requires_grad_(False)
    assert loss.item() == pytest.approx(float(values["value"]), abs=1e-5)
    norms = torch.stack([gradient.norm() for gradient in gradients.values()])
    assert torch.allclose(norms, values["grad_norms"], rtol=1e-4, atol=0)
    for name in manifest()["cases"]["loss"][case]["full_gradients"]:
        assert worst(gradients[name], values[f"grad/{name}"]) < 1e-5


def outputs_of(
    model: ZImageTransformer, noisy: torch.Tensor, time: torch.Tensor, captions: list[torch.Tensor]
) -> torch.Tensor:
    return torch.stack(model.forward_any(list(noisy), time, captions))
