"""Latents become pictures: tiles, number formats and the rough map of colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import zimage_gui
from zimage_gui.engine import decoding
from zimage_gui.engine.decoding import PictureVae, decoding_bytes
from zimage_gui.model import latent_rgb
from zimage_gui.model.vae import VaeConfig, to_model_space
from zimage_gui.model.vae_bands import decode_banded
from zimage_gui.model.weights import load_vae

DEMO = Path(zimage_gui.__file__).parent / "demo" / "data" / "vae" / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def pictures() -> PictureVae:
    return PictureVae(DEMO, torch.device("cpu"), lambda done, total: None)


def _encoded(pictures: PictureVae, edge: int) -> torch.Tensor:
    drawn = latent_rgb.drawn_pictures(edge, 1)
    return pictures.encode(drawn)


def _levels(pictures: PictureVae, latents: torch.Tensor) -> np.ndarray:
    (image,) = pictures.decode(latents)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("band", [1, 40_000, 1 << 25])
@torch.no_grad()
def test_bands_show_no_seam(pictures, band):
    """Norms and neighbours are those of the whole picture: only rounding differs."""
    vae = pictures.ready()
    latents = torch.randn(2, 16, 9, 12)
    whole = vae.decode(latents)
    banded = decode_banded(vae.decoder, latents, torch.device("cpu"), band)
    seam = (banded - whole).abs().max()
    print(f"seam error {seam:.1e} of a range of 2")
    assert seam < 2e-5


def test_a_picture_in_bands_is_the_same_picture(pictures):
    latents = _encoded(pictures, 192)
    whole = _levels(pictures, latents)
    pictures.tiling = "always"
    difference = np.abs(_levels(pictures, latents) - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.fixture
def decoded_whole(pictures, monkeypatch) -> list[tuple[int, ...]]:
    """Sizes of the latents that were decoded in one go."""
    sizes = []
    vae = pictures.ready()
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: sizes.append(tuple(z.shape[-2:])) or decode(z))
    return sizes


def test_bands_begin_only_when_memory_is_short(pictures, decoded_whole, monkeypatch):
    notes = []
    pictures.note = notes.append
    latents = torch.zeros(1, 16, 6, 4)
    pictures.decode(latents)
    assert decoded_whole == [(6, 4)] and not notes
    monkeypatch.setattr(decoding, "free_memory", lambda device: 1)
    pictures.decode(latents)
    assert decoded_whole == [(6, 4)] and "band by band" in notes[0]
    pictures.tiling = "never"
    pictures.decode(latents)
    assert decoded_whole == [(6, 4)] * 2


def test_a_decode_that_runs_out_of_memory_is_done_in_bands(pictures, monkeypatch):
    def crowded(z):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pictures.ready(), "decode", crowded)
    (image,) = pictures.decode(torch.zeros(1, 16, 6, 4))
    assert image.size == (32, 48)
    pictures.tiling = "never"
    with pytest.raises(torch.OutOfMemoryError):
        pictures.decode(torch.zeros(1, 16, 6, 4))


def test_the_estimate_of_a_megapixel_is_some_gigabytes():
    assert 3 < decoding_bytes(VaeConfig(), 128, 128, torch.float32) / 2**30 < 6


def test_bf16_is_near_and_undefined_numbers_are_decoded_again_in_fp32(pictures):
    latents = _encoded(pictures, 64)
    full = _levels(pictures, latents)
    pictures.dtype = torch.bfloat16
    assert 0 < np.abs(_levels(pictures, latents) - full).mean() < 3
    warnings = []
    pictures.warn = warnings.append
    hook = pictures.ready().decoder.conv_in.register_forward_hook(
        lambda module, inputs, output: output * float("nan")
    )
    again = _levels(pictures, latents)
    hook.remove()
    assert np.array_equal(again, full)
    assert warnings == ["decoding in bf16 gave undefined numbers: done again in fp32"]


def test_a_vae_without_an_encoder_has_no_colours(monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {name: value for name, value in load_file(DEMO).items() if not name.startswith("encoder.")}
    save_file(tensors, tmp_path / "ae.safetensors")
    half = PictureVae(tmp_path / "ae.safetensors", torch.device("cpu"), lambda done, total: None)
    assert half.colour_map() is None


def test_the_colours_of_latents_are_those_of_the_picture(pictures):
    matrix = pictures.colour_map()
    assert matrix.shape == (17, 3) and pictures.colour_map() is matrix
    vae = load_vae(DEMO)
    torch.manual_seed(5)
    flat = torch.rand(1, 3, 2, 2) * 1.6 - 0.8
    picture = F.interpolate(flat, size=(64, 64), mode="nearest")
    with torch.no_grad():
        latents = to_model_space(vae.encode_mode(picture), vae.config)[0]
    found = latent_rgb.colours(latents, matrix).float()
    wanted = (F.avg_pool2d(picture, 8)[0].permute(1, 2, 0) + 1) * 127.5
    assert (found - wanted).abs().mean() < 20
    correlation = torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1]
    assert correlation > 0.95
    assert latent_rgb.colours(torch.full((16, 2, 2), float("nan")), matrix).shape == (2, 2, 3)
