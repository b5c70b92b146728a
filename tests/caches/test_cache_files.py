"""Keys of cache files are unique, stable and fit any file system; identities see what matters."""

import shutil
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from zimage_gui.engine.cache_files import Kind, cache_items, model_identity, open_cache, write_cache
from zimage_gui.engine.dataset.buckets import fit
from zimage_gui.engine.dataset.scan import Picture
from zimage_gui.engine.dataset.sources import folder_source

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
SOURCE = folder_source(Path("/data/images"))
stems = st.sampled_from(["a", "A", "a-1", "猫", "é", "e\u0301", "x" * 300, "猫" * 90]) | st.text(
    "ab-_.猫", min_size=1, max_size=4
)
paths = st.builds(
    lambda folder, stem, ending: Path("/data") / folder / (stem + ending),
    st.sampled_from(["images", "two"]),
    stems,
    st.sampled_from([".png", ".jpg"]),
)


def picture(path):
    return Picture(path, SOURCE, fit((64, 64), (64, 64)), "caption", None)


@settings(max_examples=80, deadline=None)
@given(st.lists(paths, max_size=12))
def test_no_two_pictures_share_a_file_even_where_case_does_not_count(pictures):
    items = cache_items([picture(path) for path in pictures])
    for kind in Kind:
        names = [item.path(kind).name for item in items]
        assert len({name.casefold() for name in names}) == len(names)
        assert all(len(name.encode()) <= 255 for name in names)
    assert cache_items([picture(path) for path in pictures]) == items


@settings(max_examples=80, deadline=None)
@given(st.lists(paths, unique=True, max_size=12))
def test_the_first_picture_of_a_stem_has_musubis_name_and_every_key_can_be_read_back(pictures):
    items = cache_items([picture(path) for path in pictures])
    for item in items[:1]:
        assert item.key == item.picture.path.stem or len(item.picture.path.stem.encode()) > 200
    for item in items:
        assert item.latent_path.name.rsplit("_", 2)[0] == item.key  # how musubi splits it
        assert item.text_path.name == f"{item.key}_zi_te.safetensors"


def test_a_written_file_is_read_back_by_us_and_by_safetensors(tmp_path):
    path = tmp_path / "a_0064x0064_zi.safetensors"
    values = torch.randn(16, 8, 8)
    write_cache(
        path,
        "latents_1x8x8_float32",
        "F32",
        (16, 8, 8),
        values.numpy().tobytes(),
        {"architecture": "z_image", "caption1": "猫\n"},
    )
    assert torch.equal(load_file(path)["latents_1x8x8_float32"], values)
    assert open_cache(path, Kind.LATENT).metadata["caption1"] == "猫\n"


def test_a_model_is_known_by_its_bytes_and_settings_not_by_its_name(tmp_path):
    vae = MUSUBI / "models/vae.safetensors"
    base = model_identity(vae, "vae")
    shutil.copy(vae, tmp_path / "other.safetensors")
    assert model_identity(tmp_path / "other.safetensors", "vae") == base
    changed = load_file(vae)
    changed["encoder.mid_block.resnets.1.conv2.bias"] += 1
    save_file(changed, tmp_path / "changed.safetensors")
    assert model_identity(tmp_path / "changed.safetensors", "vae") != base
    (tmp_path / "config.json").write_text('{"norm_num_groups": 16}', encoding="utf-8")
    assert model_identity(tmp_path / "other.safetensors", "vae") != base
    (tmp_path / "config.json").write_text('{"_diffusers_version": "1"}', encoding="utf-8")
    assert model_identity(tmp_path / "other.safetensors", "vae") == base
