"""Both cache commands: musubi's files to the number, exactly the changed items redone, and nothing lost."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from cache_project import MUSUBI, VAE, metadata
from PIL import Image
from safetensors.torch import load_file, save_file

from zimage_gui.events import Progress, Warning


def test_files_have_musubis_names_keys_shapes_and_numbers(golden):
    golden.latents()
    golden.texts()
    expected = sorted((MUSUBI / "cache").glob("*.safetensors"))
    assert sorted(path.name for path in golden.cache.iterdir()) == [path.name for path in expected]
    for path in expected:
        theirs, ours = load_file(path), load_file(golden.cache / path.name)
        assert {key: (value.dtype, value.shape) for key, value in ours.items()} == {
            key: (value.dtype, value.shape) for key, value in theirs.items()
        }
        assert metadata(path).items() <= metadata(golden.cache / path.name).items()
        (key,) = theirs
        difference = (ours[key].float() - theirs[key].float()).abs().max().item()
        if "alpha" not in path.name or path.name.endswith("_te.safetensors"):
            assert difference <= (0.02 if path.name.endswith("_te.safetensors") else 3e-3), path.name


def test_musubis_own_caches_are_used_and_said_to_be_unverified(golden):
    shutil.copytree(MUSUBI / "cache", golden.cache)
    assert golden.latents() == [] and "9 latent cache files of another program used unverified" in golden.told
    assert "alpha_star.png" in golden.told
    assert golden.texts() == [] and "9 text cache files of another program used unverified" in golden.told


def test_a_foreign_cache_of_another_bucket_size_or_caption_is_not_used(golden):
    shutil.copytree(MUSUBI / "cache_no_upscale", golden.cache)
    assert golden.latents() == [
        "gray_card_0120x0090_zi.safetensors",
        "portrait_a_0097x0151_zi.safetensors",
        "tiny64_0064x0064_zi.safetensors",
    ]
    shutil.copytree(MUSUBI / "cache", golden.cache, dirs_exist_ok=True)
    (golden.folder / "tiny64.txt").write_text("a boat", encoding="utf-8")
    assert golden.texts() == ["tiny64_zi_te.safetensors"]


def test_nothing_is_done_twice(project):
    project.picture("a.png")
    project.picture("b.jpg", size=(90, 60))
    assert project.latents() == ["a_0064x0064_zi.safetensors", "b_0090x0060_zi.safetensors"]
    assert project.texts() == ["a_zi_te.safetensors", "b_zi_te.safetensors"]
    assert project.latents() == [] and project.texts() == []


def test_exactly_the_changed_items_are_redone(project):
    for name in "abc":
        project.picture(f"{name}.png")
    project.latents()
    project.texts()
    project.picture("b.png", colour="blue")
    os.utime(project.folder / "a.png")
    assert project.latents() == ["b_0064x0064_zi.safetensors"] and "the picture has changed" in project.told
    (project.folder / "c.txt").write_text("another star", encoding="utf-8")
    assert project.texts() == ["c_zi_te.safetensors"] and "the caption has changed" in project.told
    assert project.latents() == []


def test_another_resolution_or_encoder_redoes_what_it_changes(project, tmp_path):
    project.picture("a.png")
    project.picture("b.png", size=(64, 32))
    project.latents()
    project.options |= {"resolution": 64}
    assert len(project.latents()) == 2 and "bucket has changed" in project.told
    other = load_file(VAE)
    other["encoder.conv_in.bias"] += 1
    save_file(other, tmp_path / "vae.safetensors")
    project.vae = tmp_path / "vae.safetensors"
    assert len(project.latents()) == 2 and "another encoder" in project.told
    shutil.copy(project.vae, tmp_path / "renamed.safetensors")
    project.vae = tmp_path / "renamed.safetensors"
    assert project.latents() == []


def test_another_precision_redoes_and_is_said(project):
    project.picture("a.png")
    project.latents()
    exact = load_file(project.cache / "a_0064x0064_zi.safetensors")["latents_1x16x16_float32"]
    assert project.latents(mixed_precision="bf16") and "another precision" in project.told
    rough = load_file(project.cache / "a_0064x0064_zi.safetensors")["latents_1x16x16_float32"]
    assert 0 < (exact - rough).abs().max() < 0.2


@pytest.mark.parametrize("damage", ["empty", "cut", "bytes", "other"])
def test_a_damaged_cache_file_is_remade_and_said(project, damage):
    project.picture("a.png")
    project.latents()
    path = project.cache / "a_0064x0064_zi.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "other":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        content[-5] ^= 1
        path.write_bytes({"empty": b"", "cut": content[:-100], "bytes": content}[damage])
    assert project.latents() == [path.name]
    assert any(isinstance(event, Warning) and "damaged" in event.text for event in project.watched.events)
    assert project.latents() == []


def test_skip_existing_believes_what_is_there(project):
    project.picture("a.png")
    project.latents()
    project.texts()
    project.picture("a.png", colour="blue", caption="changed")
    assert project.latents(skip_existing=True) == [] and project.texts(skip_existing=True) == []
    project.options |= {"resolution": 64}
    assert project.latents(skip_existing=True) == ["a_0064x0064_zi.safetensors"]


def test_pictures_of_one_stem_get_files_of_their_own(project):
    project.picture("a.jpg", caption="one caption for both")
    project.picture("a.png", colour="blue", caption="one caption for both")
    made = project.latents()
    assert len(made) == 2 and "a_0064x0064_zi.safetensors" in made
    tensors = [load_file(project.cache / name)["latents_1x16x16_float32"] for name in made]
    assert not torch.equal(*tensors)
    assert len(project.texts()) == 2
    assert project.latents() == [] and project.texts() == []


def test_a_jsonl_over_two_folders_with_one_stem_keeps_both(project, tmp_path):
    first = project.picture("one/a.png")
    second = project.picture("two/a.png", colour="blue")
    lines = [
        json.dumps({"image_path": str(path), "caption": path.parent.name}) for path in (first, second, first)
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "set.toml").write_text(
        '[[datasets]]\nimage_jsonl_file = "set.jsonl"\ncache_directory = "cache"\nresolution = 64\n',
        encoding="utf-8",
    )
    project.cache.mkdir()
    project.options = {"dataset_config": tmp_path / "set.toml", "device": "cpu"}
    project.latents()
    project.texts()
    captions = [metadata(path)["caption1"] for path in project.cache.glob("*_te.safetensors")]
    assert (
        sorted(captions) == ["one", "one", "two"]
        and len(list(project.cache.glob("*_0064x0064_zi.safetensors"))) == 3
    )


def test_batches_give_the_same_latents_as_single_pictures(project):
    rng = np.random.default_rng(0)
    for name in "abcde":
        project.picture(f"{name}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            project.folder / f"{name}.png"
        )
    project.latents(batch_size=1)
    single = {path.name: load_file(path)["latents_1x16x16_float32"] for path in project.cache.iterdir()}
    shutil.rmtree(project.cache)
    project.latents(batch_size=3)
    for name, latent in single.items():
        torch.testing.assert_close(
            load_file(project.cache / name)["latents_1x16x16_float32"], latent, rtol=0, atol=2e-5
        )


def test_progress_has_a_total_and_ends_full(project):
    project.picture("a.png")
    project.latents()
    last = [event for event in project.watched.events if isinstance(event, Progress)][-1]
    assert (last.done, last.total, last.unit) == (1, 1, "pictures") and last.rate > 0 and last.eta == 0


def test_captions_that_are_equal_are_encoded_once_and_written_for_each(project):
    project.picture("a.png", caption="same")
    project.picture("b.png", caption="same")
    assert len(project.texts()) == 2
    first, second = (load_file(path)["varlen_llm_embed_bfloat16"] for path in sorted(project.cache.iterdir()))
    assert torch.equal(first, second)


def test_words_beyond_512_tokens_are_named(project):
    project.picture("a.png", caption="boat " * 600 + "unseen")
    project.texts()
    assert "a.png" in project.told and "unseen" in project.told
    assert load_file(project.cache / "a_zi_te.safetensors")["varlen_llm_embed_bfloat16"].shape[0] == 512


def test_pictures_are_shown_as_they_are_trained_and_nothing_is_encoded(project):
    for name in ("a.png", "b.png"):
        project.picture(name, size=(200, 100), colour="white")
    project.vae = None
    assert project.latents(debug_mode="console", console_width=10, console_num_images=1) == []
    assert (
        project.told.count("\n@@@@@@@@@@") == 3 and "a.png, 160x96" in project.told
    )  # 10 wide, half as high
    assert project.latents(debug_mode="image") == []
    shown = sorted((project.watched.folder / "resized").iterdir())
    for path in shown:
        with Image.open(path) as image:
            assert image.size == (160, 96)
    assert len(shown) == 2
