"""One picture seen in several ways: everything is cached ahead, and plain files stay what they were."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zimage_gui.config.build import build
from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.config.dataset import load_dataset
from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.engine import cache_latents, cache_text
from zimage_gui.engine.cache_files import cache_items, open_cache
from zimage_gui.engine.caches import ensure_caches
from zimage_gui.engine.dataset.captions import caption_variants
from zimage_gui.engine.dataset.plan import epoch_batches
from zimage_gui.engine.dataset.report import dataset_toml
from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import check, file_sources, folder_source
from zimage_gui.engine.loader import load_batch
from zimage_gui.engine.masks import make_masks
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun, Warning

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
VAE, TEXT = MUSUBI / "models/vae.safetensors", MUSUBI / "models/text_encoder.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Two pictures whose halves differ."""
    made = tmp_path / "pictures"
    made.mkdir()
    for name, captions in (("a", "red, left, big, old\nanother red"), ("b", "blue, right, small, new")):
        pixels = np.zeros((64, 96, 4), np.uint8)
        pixels[:, :48] = (200, 30, 60, 255)
        pixels[:, 48:] = (20, 60, 220, 0)
        Image.fromarray(pixels).save(made / f"{name}.png")
        (made / f"{name}.txt").write_text(captions, encoding="utf-8")
    return made


def config_of(folder, kind=TrainLoraConfig, **options):
    models = (
        {"text_encoder": TEXT, "tokenizer": MUSUBI / "tokenizer"} if kind is not CacheLatentsConfig else {}
    )
    models |= {"vae": VAE} if kind is not CacheTextConfig else {}
    shared = {"dataset": folder, "resolution": (96, 64), "enable_bucket": False, "device": "cpu"}
    return kind(**{**shared, **models, **options})


def test_lines_orders_and_the_trigger_word_make_captions_without_doubles():
    text = "a, b, c, d"
    made = caption_variants(text, prefix="zorb", orders=6, keep=1)
    assert made[0] == "zorb a, b, c, d" and 3 < len(made) <= 7 and len(set(made)) == len(made)
    assert all(one.startswith("zorb a, ") for one in made)
    assert all(sorted(one.removeprefix("zorb ").split(", ")) == ["a", "b", "c", "d"] for one in made)
    assert made == caption_variants(text, prefix="zorb", orders=6, keep=1)
    assert caption_variants("zorb here\n\n there ", prefix="zorb", lines=True) == ("zorb here", "zorb there")
    assert caption_variants("one\ntwo") == ("one\ntwo",) and caption_variants("", lines=True) == ("",)
    assert caption_variants("alone", orders=4) == ("alone",)


def test_a_caption_file_that_stands_for_thousands_is_named_and_left_out(folder):
    (folder / "a.txt").write_text("\n".join(f"line, {number}" for number in range(300)), encoding="utf-8")
    for options, left in (({}, ["a", "b"]), ({"shuffle_caption": True}, ["b"])):
        report = scan((folder_source(folder, resolution=(64, 64), caption_lines=True, **options),))
        assert [picture.path.stem for picture in report.pictures] == left
    assert "at most 1000" in report.refused[0].sentence()


def test_every_caption_is_encoded_ahead_and_the_plain_file_is_what_it_would_be_without(folder):
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain)
    (plain / "a.txt").write_text("red, left, big, old", encoding="utf-8")
    cache_text.run(config_of(plain, CacheTextConfig), NullRun(folder.parent))
    options = {"caption_lines": True, "shuffle_caption": True, "keep_tokens": 1, "shuffle_variants": 2}
    cache_text.run(
        config_of(folder, CacheTextConfig, caption_dropout_rate=0.1, **options), NullRun(folder.parent)
    )
    assert (folder / "a_zi_te.safetensors").read_bytes() == (plain / "a_zi_te.safetensors").read_bytes()
    others = [path for path in folder.glob("*.safetensors") if not path.name.endswith("_zi_te.safetensors")]
    assert all(re.fullmatch(r"[ab]_zi_te_[0-9a-f]{12}\.safetensors", path.name) for path in others)
    index = ensure_caches(config_of(folder, caption_dropout_rate=0.1, **options), NullRun(folder.parent))
    first, second = index.items
    assert first.caption == "red, left, big, old" and "another red" in [
        one.caption for one in first.other_texts
    ]
    assert 2 <= len(first.other_texts) <= 3 and 1 <= len(second.other_texts) <= 2
    assert (
        first.empty
        and first.empty.caption == ""
        and len(others) == 2 + len(first.other_texts + second.other_texts)
    )


def test_training_needs_no_encoder_when_all_variants_are_there(folder):
    options = {"caption_dropout_rate": 0.5, "flip_aug": True, "caption_prefix": "zorb"}
    first = ensure_caches(config_of(folder, **options), NullRun(folder.parent))
    without = {"vae": None, "text_encoder": None, "tokenizer": None}
    assert ensure_caches(config_of(folder, **options, **without), NullRun(folder.parent)) == first
    with pytest.raises(UserError, match="2 captions must be encoded"):
        ensure_caches(
            config_of(folder, **options | {"caption_prefix": "else"}, **without), NullRun(folder.parent)
        )


def test_a_mirrored_latent_is_that_of_the_mirrored_picture(folder):
    cache_latents.run(config_of(folder, CacheLatentsConfig, flip_aug=True), NullRun(folder.parent))
    mirrored = folder.parent / "mirrored"
    mirrored.mkdir()
    with Image.open(folder / "a.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored / "a.png")
    (mirrored / "a.txt").write_text("x", encoding="utf-8")
    cache_latents.run(config_of(mirrored, CacheLatentsConfig), NullRun(folder.parent))
    one, other = (
        next(iter(load_file(path).values()))
        for path in (folder / "a_0096x0064_zi_flip.safetensors", mirrored / "a_0096x0064_zi.safetensors")
    )
    torch.testing.assert_close(one, other)
    plain = next(iter(load_file(folder / "a_0096x0064_zi.safetensors").values()))
    assert float((plain - one).abs().max()) > 0.1


def test_the_transparent_part_is_masked_and_turns_with_its_picture(folder):
    index = ensure_caches(
        config_of(folder, alpha_mask=True, flip_aug=True, batch_size=2), NullRun(folder.parent)
    )
    sides = set()
    for epoch in range(6):
        for plan in epoch_batches(index, 1, epoch):
            batch = load_batch(plan)
            for item, mask in zip(plan.items, batch.masks, strict=True):
                opaque = mask[0, :, 6:] if item.flipped else mask[0, :, :6]
                assert mask.shape == (1, 8, 12) and float(mask.sum()) == 48 == float(opaque.sum())
                sides.add(item.flipped)
    assert sides == {True, False}


def test_a_picture_that_changed_after_the_scan_counts_whole_and_is_named(folder):
    report = scan((folder_source(folder, resolution=(96, 64), alpha_mask=True),))
    Image.new("RGBA", (40, 20), (0, 0, 0, 99)).save(folder / "a.png")
    run = NullRun(folder.parent)
    found = make_masks(cache_items(report.pictures), run)
    assert [item.picture.path.stem for item in found] == ["b"]
    assert any(
        "a.png: its mask changed while it was read" in event.text
        for event in run.events
        if isinstance(event, Warning)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_to_itself_among_masks_is_passed_over(folder):
    masks = folder.parent / "masks"
    masks.mkdir()
    (masks / "a.png").symlink_to("a.png")
    report = scan((folder_source(folder, resolution=(96, 64), mask_directory=masks),))
    assert make_masks(cache_items(report.pictures), NullRun(folder.parent)) == {}


def test_a_folder_of_masks_serves_the_pictures_it_has_and_a_bad_mask_is_named(folder):
    masks = folder.parent / "masks"
    masks.mkdir()
    (masks / "b.png").write_bytes(b"\x89PNG no")
    half = np.zeros((32, 48), np.uint8)
    half[:16] = 255
    Image.fromarray(half).save(masks / "A.webp", lossless=True)
    run = NullRun(folder.parent)
    index = ensure_caches(config_of(folder, mask_directory=masks, batch_size=2), run)
    assert index.items[0].mask_path and index.items[1].mask_path is None
    assert any("b.png: its mask" in event.text for event in run.events if isinstance(event, Warning))
    (plan,) = epoch_batches(index, 0, 0)
    row = [item.key for item in plan.items].index("a")
    mask, whole = load_batch(plan).masks[row, 0], load_batch(plan).masks[1 - row]
    assert float(mask[:3].min()) > 0.95 and float(mask[5:].max()) < 0.05 and float(whole.min()) == 1.0
    made = index.items[0].mask_path.stat().st_mtime_ns
    ensure_caches(config_of(folder, mask_directory=masks, batch_size=2), NullRun(folder.parent))
    assert index.items[0].mask_path.stat().st_mtime_ns == made
    Image.fromarray(255 - half).save(masks / "A.webp", lossless=True)
    ensure_caches(config_of(folder, mask_directory=masks, batch_size=2), NullRun(folder.parent))
    assert float(load_batch(plan).masks[row, 0, :3].max()) < 0.05
    for image in (Image.new("L", (48, 32)), Image.new("L", (64, 64), 255)):  # all black; of another shape
        image.save(masks / "A.webp", lossless=True)
        run = NullRun(folder.parent)
        assert (
            ensure_caches(config_of(folder, mask_directory=masks, batch_size=2), run).items[0].mask_path
            is None
        )
        assert any("a.png: its mask" in event.text for event in run.events if isinstance(event, Warning))


def test_variants_stay_while_their_picture_is_there_and_go_with_it(folder):
    options = {"caption_dropout_rate": 0.1, "flip_aug": True, "alpha_mask": True}
    ensure_caches(config_of(folder, **options), NullRun(folder.parent))
    before = {path.name for path in folder.iterdir()}
    for kind, module in ((CacheLatentsConfig, cache_latents), (CacheTextConfig, cache_text)):
        module.run(config_of(folder, kind), NullRun(folder.parent))
    assert {path.name for path in folder.iterdir()} == before
    (folder / "b.png").unlink()
    for kind, module in ((CacheLatentsConfig, cache_latents), (CacheTextConfig, cache_text)):
        module.run(config_of(folder, kind), NullRun(folder.parent))
    left = {path.name for path in folder.iterdir()}
    assert {name for name in before - left if name != "b.png"} == {
        name for name in before if name.startswith("b_")
    }
    assert len([name for name in left if name.startswith("a_")]) == 5


def test_a_dataset_file_says_it_per_entry_and_is_written_as_it_was_said(folder):
    masks = folder.parent / "masks"
    masks.mkdir()
    text = (
        '[general]\nflip_aug = true\ncaption_prefix = "zorb"\n[[datasets]]\nimage_directory = "pictures"\n'
        'shuffle_caption = true\nkeep_tokens = 2\nmask_directory = "masks"\ncaption_dropout_rate = 0.25\n'
    )
    (folder.parent / "set.toml").write_text(text, encoding="utf-8")
    (source,) = file_sources(load_dataset(folder.parent / "set.toml"))
    assert source.flip_aug and source.caption_prefix == "zorb" and source.mask_directory == masks
    assert (source.shuffle_caption, source.keep_tokens, source.caption_dropout_rate) == (True, 2, 0.25)
    (folder.parent / "again.toml").write_text(dataset_toml((source,), folder.parent), encoding="utf-8")
    assert file_sources(load_dataset(folder.parent / "again.toml")) == (source,)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep_tokens": 2}, "keep_tokens"),
        ({"shuffle_variants": 8}, "shuffle_variants"),
        ({"alpha_mask": True, "mask_directory": Path(".")}, "mask_directory"),
        ({"mask_directory": Path("nowhere")}, "mask_directory"),
    ],
)
def test_what_cannot_go_together_is_named(folder, options, named):
    assert [problem.option for problem in check((folder_source(folder, **options),))] == [named]
    assert [problem.option for problem in check((folder_source(folder, mask_directory=folder),))] == [
        "mask_directory"
    ]


@pytest.mark.parametrize(
    "options",
    [{"caption_dropout_rate": 1.5}, {"shuffle_variants": 0}, {"keep_tokens": -1}, {"flip_aug": "maybe"}],
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(UserError) as refused:
        build(TrainLoraConfig, {"dit": "d", "dataset": "p", **options})
    assert refused.value.problems[0].option in options


def test_files_of_variants_are_no_files_of_musubis(folder):
    """It lists `*_zi.safetensors` and `*_zi_te.safetensors`."""
    options = {"caption_dropout_rate": 0.1, "flip_aug": True, "alpha_mask": True}
    index = ensure_caches(config_of(folder, **options), NullRun(folder.parent))
    listed = {path.name for ending in ("_zi", "_zi_te") for path in folder.glob(f"*{ending}.safetensors")}
    assert listed == {f"{key}{ending}.safetensors" for key in "ab" for ending in ("_0096x0064_zi", "_zi_te")}
    assert open_cache(index.items[0].empty.path, cache_text.Kind.TEXT).metadata["caption1"] == ""
