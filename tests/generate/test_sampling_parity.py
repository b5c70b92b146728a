"""Sampling equals diffusers' ZImagePipeline, and musubi's pictures where the two agree on the model."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zimage_gui.engine.generator import Generator, LoraChoice, PictureRequest, starting_noise
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.model_key import ModelKey
from zimage_gui.engine.sampler import Cancelled, denoise
from zimage_gui.model.flow import shifted_sigmas

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
REFERENCE = json.loads((DATA / "reference" / "manifest.json").read_text(encoding="utf-8"))
MUSUBI = DATA / "musubi"
MUSUBI_CASES = {
    case["name"]: case
    for case in json.loads((MUSUBI / "manifest.json").read_text(encoding="utf-8"))["generated"]
}


def _generator(dit: Path, vae: Path, text_encoder: Path, tokenizer: Path | None = None) -> Generator:
    return Generator(ModelKey.of(ModelFiles(dit, vae, text_encoder), tokenizer, torch.device("cpu"), "no"))


@pytest.fixture(scope="module")
def reference() -> Generator:
    return _generator(HUB / "transformer", HUB / "vae", HUB / "text_encoder")


@pytest.fixture(scope="module")
def musubi() -> Generator:
    models = MUSUBI / "models"
    return _generator(
        models / "dit.safetensors",
        models / "vae.safetensors",
        models / "text_encoder.safetensors",
        MUSUBI / "tokenizer",
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(DATA / "reference" / "expected.safetensors")


def _features(generator: Generator, text: str) -> list[torch.Tensor]:
    generator.encode([text])
    return [generator._feature(text)]


@pytest.mark.parametrize("name", REFERENCE["cases"]["pipeline"])
def test_a_whole_loop_equals_the_diffusers_pipeline(reference, expected, name):
    case = REFERENCE["cases"]["pipeline"][name]
    wanted = {
        key.rsplit("/", 1)[1]: value for key, value in expected.items() if key.startswith(f"pipeline/{name}/")
    }
    sigmas = shifted_sigmas(case["steps"], case["shift"])
    torch.testing.assert_close(sigmas, wanted["sigmas"], atol=1e-6, rtol=0)
    seen = []
    latents = denoise(
        reference.transformer,
        wanted["noise"],
        _features(reference, case["prompt"]),
        _features(reference, case["negative_prompt"] or "") if case["guidance_scale"] else None,
        sigmas,
        case["guidance_scale"],
        lambda done, total, latents: seen.append(latents.clone()),
    )
    torch.testing.assert_close(latents, wanted["latents"], atol=1e-4, rtol=0)
    steps = torch.cat([seen[index] for index in case["after_step_indices"]])
    torch.testing.assert_close(steps, wanted["after_step"], atol=1e-4, rtol=0)
    if "image" in wanted:
        (image,) = reference.decode(latents)
        levels = ((wanted["image"].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0)
        assert (torch.tensor(np.asarray(image)) - levels).abs().max() < 0.51


def test_a_request_equals_a_live_diffusers_pipeline_with_its_noise(reference):
    request = PictureRequest("two dogs", "blurry", 64, 48, 3, 2.5, 3.0, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import ZImagePipeline

        pipeline = ZImagePipeline.from_pretrained(HUB, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            height=64,
            width=48,
            num_inference_steps=3,
            guidance_scale=2.5,
            latents=starting_noise(request, torch.device("cpu")),
            output_type="latent",
        ).images
    torch.testing.assert_close(reference.latents(request), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("g1_aligned", 0.03), ("g2_aligned_lora", 0.03), ("g3_aligned_cfg", 0.1)]
)
def test_musubi_pictures_are_met_with_its_sigmas(musubi, name, tolerance):
    """Musubi ran in bf16; the tolerance is what diffusers in fp32 differs from it (see the golden manifest)."""
    case = MUSUBI_CASES[name]
    noise = load_file(MUSUBI / "generated" / "initial_noise.safetensors")[name]
    request = PictureRequest(
        case["prompt"],
        case.get("negative", ""),
        case["h"],
        case["w"],
        case["steps"],
        case["guidance"],
        case["shift"],
        case["seed"],
    )
    torch.testing.assert_close(starting_noise(request, torch.device("cpu")), noise.float(), atol=0, rtol=0)
    choices = [LoraChoice(MUSUBI / "lora" / "lora_raw.safetensors", case["lora"])] if "lora" in case else []
    assert musubi.set_loras(choices) == ([14] if choices else [])
    positive, *negative = (_features(musubi, text) for text in request.texts)
    latents = denoise(
        musubi.transformer,
        noise,
        positive,
        negative[0] if negative else None,
        torch.tensor(case["sigmas"]),
        case["guidance"],
    )
    wanted = load_file(MUSUBI / "generated" / f"{name}_latent.safetensors")["latent"]
    assert (latents - wanted).abs().max() < tolerance
    if name == "g1_aligned":
        (image,) = musubi.decode(wanted)
        with Image.open(MUSUBI / "generated" / "g1_aligned.png") as picture:
            theirs = np.asarray(picture).astype(int)
        assert np.abs(np.asarray(image).astype(int) - theirs).max() <= 4
    musubi.set_loras([])


def test_guidance_acts_below_one_too(reference):
    plain, little = (
        reference.latents(PictureRequest("a cat", "a dog", 32, 32, 1, g, 3.0, 1)) for g in (0.0, 0.5)
    )
    opposite = reference.latents(PictureRequest("a dog", "", 32, 32, 1, 0.0, 3.0, 1))
    torch.testing.assert_close(little, plain + 0.5 * (plain - opposite), atol=1e-5, rtol=1e-5)


def test_pictures_of_one_call_do_not_see_each_other(reference):
    """Two captions of different padded length in one call give what each gives alone."""
    noise = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(0))
    captions = _features(reference, "a cat") + _features(reference, "a cat and " * 30)
    sigmas = shifted_sigmas(2, 3.0)
    both = denoise(reference.transformer, noise, captions, None, sigmas, 0.0)
    for index in range(2):
        alone = denoise(
            reference.transformer, noise[index : index + 1], captions[index : index + 1], None, sigmas, 0.0
        )
        torch.testing.assert_close(both[index : index + 1], alone, atol=1e-5, rtol=0)


def test_cancel_stops_after_the_step_in_hand(reference):
    seen = []

    def stop_at_two(done: int, total: int, latents: torch.Tensor) -> bool:
        seen.append((done, total))
        return done == 2

    with pytest.raises(Cancelled):
        reference.latents(PictureRequest("a cat", "", 32, 32, 9, 0.0, 3.0, 1), stop_at_two)
    assert seen == [(1, 9), (2, 9)]


def test_guidance_without_a_negative_prompt_is_an_error(reference):
    with pytest.raises(ValueError, match="negative"):
        denoise(
            reference.transformer,
            torch.zeros(1, 16, 4, 4),
            _features(reference, "a"),
            None,
            shifted_sigmas(1, 3.0),
            1.0,
        )


def test_what_the_time_alone_decides_is_computed_before_the_steps(reference):
    """The time's layers run once for a schedule, and the network's output stays what it is for a plain time."""
    network = reference.transformer
    captions, rows = _features(reference, "a cat"), []
    layers = [
        module for name, module in network.named_modules() if "adaLN" in name or name == "t_embedder.mlp"
    ]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
        for layer in layers
        if hasattr(layer, "weight") or hasattr(layer, "0")
    ]
    noise = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(0))
    denoise(network, noise, captions * 2, None, shifted_sigmas(5, 3.0), 0.0)
    for hook in hooks:
        hook.remove()
    assert set(rows) == {5} and len(rows) <= len(hooks)
    times = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        for time, known in zip(times, network.modulations(times), strict=True):
            plain = network(noise, time.expand(2), captions * 2)
            torch.testing.assert_close(network(noise, known, captions * 2), plain, atol=1e-5, rtol=1e-5)
