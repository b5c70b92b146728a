"""From a folder to batches: what the trainer gets is right, and does not depend on threads or on where it
starts.
"""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.engine.caches import ensure_caches
from zimage_gui.engine.loader import Loader, epoch_batches, load_batch
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
MODELS = {
    "vae": MUSUBI / "models/vae.safetensors",
    "text_encoder": MUSUBI / "models/text_encoder.safetensors",
}


def config_of(folder, **changes):
    options = {
        "dataset": folder,
        "resolution": 128,
        "device": "cpu",
        "tokenizer": MUSUBI / "tokenizer",
        **MODELS,
        **changes,
    }
    return TrainLoraConfig(**{name: value for name, value in options.items() if value is not None})


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "images"
    shutil.copytree(MUSUBI / "images", folder)
    config = config_of(folder, batch_size=2, num_repeats=3)
    return folder, config, ensure_caches(config, NullRun(folder.parent))


def test_the_index_lists_every_picture_with_its_shape_and_length(cached):
    folder, _, index = cached
    assert [item.picture.name for item in index.items] == sorted(
        path.name for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".webp")
    )
    by_name = {item.key: item for item in index.items}
    assert by_name["banner.v2"].latent_shape == (16, 8, 32) and by_name["banner.v2"].tokens == 131
    assert by_name["banner.v2"].padded_tokens == 160 and by_name["tiny64"].padded_tokens == 32
    assert index.samples_per_epoch == 27 and {item.batch_size for item in index.items} == {2}


def test_batches_hold_latents_in_model_space_and_captions_as_stored(cached):
    folder, _, index = cached
    for plan in epoch_batches(index, 1, 0):
        batch = load_batch(plan)
        for row, (latent, caption, key) in enumerate(
            zip(batch.latents, batch.captions, batch.keys, strict=True)
        ):
            (stored,) = load_file(next(folder.glob(f"{key}_????x????_zi.safetensors"))).values()
            torch.testing.assert_close(latent, (stored - 0.1159) * 0.3611, rtol=0, atol=1e-6)
            (features,) = load_file(folder / f"{key}_zi_te.safetensors").values()
            assert torch.equal(caption, features) and caption.dtype == torch.bfloat16
            assert plan.items[row].key == key
        assert batch.latents.dtype == torch.float32 and batch.indices == [*plan.indices]


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return all(
        one.keys == two.keys and one.indices == two.indices and torch.equal(one.latents, two.latents)
        for one, two in pairs
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(cached, workers):
    index = cached[2]
    with Loader(index, 7, workers=0) as plain, Loader(index, 7, workers=workers) as threaded:
        for epoch in (0, 1):
            assert same(plain.epoch(epoch), threaded.epoch(epoch))


def test_an_epoch_entered_in_the_middle_goes_on_as_if_never_left(cached):
    index = cached[2]
    with Loader(index, 7) as loader:
        whole = list(loader.epoch(3))
        assert same(whole[4:], loader.epoch(3, start=4)) and list(loader.epoch(3, start=len(whole))) == []


def test_leaving_an_epoch_early_does_no_harm(cached):
    with Loader(cached[2], 7, workers=3) as loader:
        first = next(iter(loader.epoch(0)))
        assert same([first], [next(iter(loader.epoch(0)))])


def threads():
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_threads_stay_between_epochs_only_when_asked_to(cached):
    before = threads()
    for persistent in (False, True):
        with Loader(cached[2], 7, workers=2, persistent=persistent) as loader:
            list(loader.epoch(0))
            assert (threads() > before) is persistent
        assert threads() == before


def test_complete_caches_need_no_encoder_at_all(cached):
    folder, _, index = cached
    again = ensure_caches(
        config_of(folder, batch_size=2, num_repeats=3, vae=None, text_encoder=None, tokenizer=None),
        NullRun(folder.parent),
    )
    assert again == index


def test_musubis_caches_train_as_they_are(tmp_path):
    shutil.copytree(MUSUBI / "images", tmp_path / "images")
    shutil.copytree(MUSUBI / "cache", tmp_path / "images", dirs_exist_ok=True)
    index = ensure_caches(
        config_of(tmp_path / "images", vae=None, text_encoder=None, tokenizer=None), NullRun(tmp_path)
    )
    assert len(index.items) == 9
    assert torch.isfinite(load_batch(epoch_batches(index, 0, 0)[0]).latents).all()


def test_text_features_of_another_width_than_the_transformers_are_named(cached):
    from zimage_gui.engine.cache_run import prepare
    from zimage_gui.engine.caches import check_width
    from zimage_gui.engine.dataset.sources import sources_of

    prepared = prepare(sources_of(cached[1]), NullRun(cached[0].parent), 1)
    check_width(prepared.items, 64)
    with pytest.raises(UserError, match="Another text encoder"):
        check_width(prepared.items, 2560)


def test_both_missing_encoders_are_told_at_once(tmp_path):
    shutil.copytree(MUSUBI / "images", tmp_path / "images")
    with pytest.raises(UserError) as raised:
        ensure_caches(
            config_of(tmp_path / "images", vae=None, text_encoder=None, tokenizer=None), NullRun(tmp_path)
        )
    assert [problem.option for problem in raised.value.problems] == ["vae", "text_encoder"]


def test_a_folder_without_usable_pictures_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        ensure_caches(config_of(tmp_path), NullRun(tmp_path))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"no caption file a\.txt"):
        ensure_caches(config_of(tmp_path), NullRun(tmp_path))


def test_training_never_deletes_other_cache_files(tmp_path):
    shutil.copytree(MUSUBI / "images", tmp_path / "images")
    shutil.copytree(MUSUBI / "cache", tmp_path / "images", dirs_exist_ok=True)
    (tmp_path / "images" / "tiny64.png").unlink()
    ensure_caches(config_of(tmp_path / "images"), NullRun(tmp_path))
    assert (tmp_path / "images" / "tiny64_0064x0064_zi.safetensors").exists()


def test_two_dataset_entries_never_share_a_batch(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (64, 64), (number * 80, 0, 0)).save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text("boat", encoding="utf-8")
    (tmp_path / "set.toml").write_text(
        '[general]\nresolution = 64\n[[datasets]]\nimage_directory = "one"\nbatch_size = 4\n'
        '[[datasets]]\nimage_directory = "two"\nnum_repeats = 2\nbatch_size = 3\n', encoding="utf-8"
    )  # fmt: skip
    config = config_of(None, dataset_config=tmp_path / "set.toml", resolution=None)
    index = ensure_caches(config, NullRun(tmp_path))
    batches = epoch_batches(index, 0, 0)
    assert sorted((batch.items[0].source, len(batch.items)) for batch in batches) == [(0, 3), (1, 3), (1, 3)]
    assert all({item.picture.parent.name for item in batch.items} in ({"one"}, {"two"}) for batch in batches)


def test_a_cache_file_changed_under_a_running_training_is_named(cached, tmp_path):
    folder, config, _ = cached
    copy = tmp_path / "images"
    shutil.copytree(folder, copy)
    index = ensure_caches(config.model_copy(update={"dataset": copy}), NullRun(tmp_path))
    path = copy / "tiny64_0064x0064_zi.safetensors"
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="tiny64_0064x0064_zi"), Loader(index, 0) as loader:
        list(loader.epoch(0))
    path.unlink()
    with pytest.raises(UserError, match="tiny64_0064x0064_zi"), Loader(index, 0) as loader:
        list(loader.epoch(0))
