"""The autoencoder's training is a pure function of its recipe, resumes exactly, and scales its latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zimage_gui.demo.draw import SIZE
from zimage_gui.demo.train_vae import (
    DEMO_VAE,
    STATE,
    Recipe,
    Training,
    batch_of,
    normalise_latents,
    picture_pool,
    train,
    unseen_flat,
)
from zimage_gui.model.vae import AutoencoderKL, to_model_space

TINY = Recipe(
    crop_steps=3,
    whole_steps=1,
    decoder_steps=1,
    crop_batch=2,
    whole_batch=1,
    rich_pictures=3,
    flat_pictures=3,
    threads=1,
)


@pytest.mark.slow
def test_the_training_resumes_with_the_same_weights(tmp_path: Path) -> None:
    pool = picture_pool(TINY)
    straight, stopped = (Training(TINY, tmp_path / name) for name in ("a", "b"))
    (tmp_path / "b").mkdir()
    for _ in range(3):
        straight.one_step(pool)
    stopped.one_step(pool)
    stopped.save()
    resumed = Training(TINY, tmp_path / "b")
    assert resumed.step == 1
    for _ in range(2):
        resumed.one_step(pool)
    for a, b in zip(straight.vae.parameters(), resumed.vae.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_whole_training_says_what_it_reached_and_leaves_a_state(tmp_path: Path) -> None:
    lines: list[str] = []
    train(replace(TINY, crop_steps=1), tmp_path, lines.append)
    assert "dB" in lines[-1] and lines[0].startswith("1341875 parameters")
    assert int(load_file(tmp_path / STATE)["step"]) == 3


def test_the_last_steps_change_the_decoder_alone(tmp_path: Path) -> None:
    pool, run = picture_pool(TINY), Training(TINY, tmp_path)
    run.step = TINY.encoder_steps
    before = {name: value.clone() for name, value in run.vae.state_dict().items()}
    run.one_step(pool)
    changed = {
        n.split(".")[0] for n, value in run.vae.state_dict().items() if not torch.equal(value, before[n])
    }
    assert changed == {"decoder"}
    assert Recipe().rate(Recipe().total_steps) == 0


def test_crops_come_first_and_whole_pictures_last() -> None:
    pool = picture_pool(TINY)
    assert batch_of(pool, TINY, 0).shape == (2, 3, 64, 64)
    assert batch_of(pool, TINY, 3).shape == (1, 3, SIZE, SIZE)
    assert torch.equal(batch_of(pool, TINY, 1), batch_of(pool, TINY, 1))


@torch.no_grad()
def test_latents_are_normalised_without_changing_the_picture_inside() -> None:
    torch.manual_seed(3)
    vae = AutoencoderKL(DEMO_VAE)
    pictures = unseen_flat(8)
    z_before = vae.encode_mode(pictures)
    first_before = vae.decoder.conv_in(z_before)
    normalise_latents(vae, pictures)
    z = vae.encode_mode(pictures)
    model_space = to_model_space(z, DEMO_VAE)
    assert model_space.mean((0, 2, 3)).abs().max() < 1e-3
    assert abs(float(model_space.std()) - 1) < 1e-3
    inside = vae.decoder.conv_in(z)[..., 1:-1, 1:-1]
    assert torch.allclose(inside, first_before[..., 1:-1, 1:-1], atol=1e-4)
