"""The command `generate`: files, names, metadata, LoRAs, stops and mistakes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zimage_gui.engine.generate import Resident, check
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.generate_plan import requests_of
from zimage_gui.engine.generator import Generator
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.errors import Interrupted, UserError

DATA = Path(__file__).parents[1] / "data"
LORA = DATA / "lora_dialects" / "main_kohya_split.safetensors"
DORA = DATA / "lora_dialects" / "dora_peft.safetensors"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _texts(run, kind: str) -> str:
    return "\n".join(event.text for event in run.events if event.kind == kind)


def test_a_picture_and_its_latent_have_the_first_seeds_names_and_metadata(options, run):
    latent, picture = generate(
        options(output_type="latent_images", guidance_scale=2.0, negative_prompt="blurry"), run
    )
    assert re.fullmatch(r"\d{8}-\d{6}-\d{3}_7_latent\.safetensors", latent.name)
    assert re.fullmatch(r"\d{8}-\d{6}-\d{3}_7_000\.png", picture.name)
    assert picture.parent == run.folder / "samples"
    with safe_open(latent, "pt") as file:
        metadata = file.metadata()
        assert file.get_slice("latent").get_shape() == [1, 16, 6, 8]
    musubi = {"seeds": "7", "height": "48", "width": "64", "infer_steps": "2", "guidance_scale": "2.0"}
    assert metadata.items() >= (musubi | {"negative_prompt": "blurry", "embedded_cfg_scale": "2.5"}).items()
    sample = next(event for event in run.events if event.kind == "sample")
    assert (sample.path, sample.seed, sample.prompt) == (str(picture), 7, "a photo of a red circle")
    assert [event.done for event in run.events if event.kind == "progress"][-1] == 2


def test_a_pictures_settings_make_it_again(options, run):
    (first,) = generate(
        options(guidance_scale=1.5, flow_shift=6.0, negative_prompt="ünscharf", seed=None), run
    )
    assert "Seed: " in _texts(run, "note")
    found = {key: value for key, value in read_settings(first).items() if key != "lora_weight"}
    (second,) = generate(options(**found), run)
    assert second != first
    assert np.array_equal(_pixels(first), _pixels(second))


def test_latents_are_decoded_later_to_the_same_picture(options, run):
    latent, picture = generate(options(output_type="latent_images"), run)
    (decoded,) = generate(options(prompt=None, latent_path=[latent], dit=None), run)
    assert decoded.name.endswith(f"_7__{latent.stem}_000.png")
    assert np.array_equal(_pixels(decoded), _pixels(picture))
    assert read_settings(decoded)["seed"] == 7


def test_musubi_latents_are_decoded(options, run):
    models = DATA / "musubi" / "models"
    latent = DATA / "musubi" / "generated" / "g1_aligned_latent.safetensors"
    (decoded,) = generate(options(prompt=None, latent_path=[latent], vae=models / "vae.safetensors"), run)
    theirs = _pixels(DATA / "musubi" / "generated" / "g1_aligned.png").astype(int)
    assert np.abs(_pixels(decoded).astype(int) - theirs).max() <= 4
    assert read_settings(decoded)["infer_steps"] == 6


def test_a_prompt_file_overrides_what_its_lines_name(options, run, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one --w 32 --h 32 --d 1\n# no\ntwo --s 1 --l 2 --n bad\n", encoding="utf-8")
    one, two = generate(options(prompt=None, from_file=path), run)
    assert _pixels(one).shape == (32, 32, 3)
    settings = read_settings(two)
    assert (settings["infer_steps"], settings["guidance_scale"], settings["negative_prompt"]) == (
        1,
        2.0,
        "bad",
    )
    assert settings["image_size"] == [48, 64]


def test_further_pictures_take_the_next_seeds(options):
    requests = requests_of(options(batch_count=3), [PromptLine("a"), PromptLine("b", seed=100)])
    assert [request.seed for request in requests] == [7, 8, 9, 100, 101, 102]


def test_random_seeds_are_of_32_bits_and_differ_by_line(options):
    seeds = [request.seed for request in requests_of(options(seed=None), [PromptLine("a")] * 4)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_no_file_is_ever_replaced(options, run, tmp_path):
    target = tmp_path / "bilder 图" / "cat.png"
    first = generate(options(output=target, batch_count=2), run)
    before = [path.read_bytes() for path in first]
    second = generate(options(output=target, seed=8), run)
    assert [path.name for path in first + second] == ["cat.png", "cat-2.png", "cat-3.png"]
    assert [path.read_bytes() for path in first] == before
    (third,) = generate(options(output=target, seed=9, overwrite=True), run)
    assert third == target
    assert target.read_bytes() != before[0]


def test_no_metadata_leaves_none(options, run):
    latent, picture = generate(options(output_type="latent_images", no_metadata=True), run)
    assert read_settings(picture) == {}
    with safe_open(latent, "pt") as file:
        assert file.metadata() is None


def test_loras_are_applied_counted_and_taken_off_without_loading_again(options, run):
    resident = Resident()
    (plain,) = resident.run(options(), run)
    loads = _texts(run, "stage").count("Loading")
    (with_lora,) = resident.run(options(lora_weight=[LORA, DORA], lora_multiplier=[0.7]), run)
    (after,) = resident.run(options(), run)
    assert "main_kohya_split.safetensors at 0.7: all of its 14 modules" in _texts(run, "note")
    assert "dora_peft.safetensors at 1: all of its 4 modules" in _texts(run, "note")
    assert not np.array_equal(_pixels(with_lora), _pixels(plain))
    assert np.array_equal(_pixels(after), _pixels(plain))
    assert _texts(run, "stage").count("Loading") == loads == 3
    assert read_settings(with_lora)["lora_multiplier"] == [0.7, 1.0]
    resident.close()


def test_patterns_restrict_a_lora(options, run):
    generate(
        options(lora_weight=[LORA], include_patterns=["attention"], exclude_patterns=[r"layers\.1"]), run
    )
    assert "all of its 4 modules" in _texts(run, "note")


def test_a_replaced_model_file_is_loaded_again(options, run, tmp_path):
    import shutil

    models = tmp_path / "models"
    shutil.copytree(DATA / "reference" / "hub", models)
    resident = Resident()
    resident.run(options(model_dir=models), run)
    file = next((models / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes())
    resident.run(options(model_dir=models), run)
    assert _texts(run, "stage").count("Loading the VAE") == 2


def test_a_changed_lora_file_is_read_again(options, run, tmp_path):
    path = tmp_path / "lora.safetensors"
    tensors = load_file(LORA)
    save_file(tensors, path)
    resident = Resident()
    (first,) = resident.run(options(lora_weight=[path]), run)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, path)
    (second,) = resident.run(options(lora_weight=[path]), run)
    assert not np.array_equal(_pixels(first), _pixels(second))


@pytest.mark.parametrize(("asked_at", "pictures"), [(1, 0), (2, 0), (4, 0), (5, 1), (7, 1)])
def test_a_stop_ends_within_a_step_and_keeps_what_is_done(options, run, asked_at, pictures):
    """Asked once before each picture and after each of its three steps: four times a picture."""
    asked = []

    def stopping() -> bool:
        if any(event.kind == "stage" and event.name == "generate" for event in run.events):
            asked.append(1)
        return len(asked) >= asked_at

    run.stop_requested = stopping
    with pytest.raises(Interrupted):
        generate(options(batch_count=3, infer_steps=3), run)
    assert len(list(run.folder.glob("samples/*.png"))) == pictures
    assert len(asked) == asked_at


def test_a_prompt_over_512_tokens_is_warned_about(options, run):
    generate(options(prompt="a cat " * 300 + "zebra", infer_steps=1, image_size=(32, 32)), run)
    assert "zebra" in _texts(run, "warning")


def test_a_prompt_of_a_book_is_warned_about_in_a_line(options, run):
    generate(options(prompt="a cat " * 50_000, infer_steps=1, image_size=(32, 32)), run)
    assert len(_texts(run, "warning")) < 500 and " … " in _texts(run, "warning")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_makes_a_similar_picture(options, run, precision):
    (full,) = generate(options(infer_steps=4), run)
    (half,) = generate(options(infer_steps=4, mixed_precision=precision), run)
    difference = np.abs(_pixels(full).astype(int) - _pixels(half).astype(int)).mean()
    assert difference < 4
    assert ("overflow" in _texts(run, "warning")) == (precision == "fp16")


def test_every_mistake_is_reported_at_once_before_anything_is_loaded(options, run, tmp_path):
    config = options(
        prompt=None,
        from_file=tmp_path / "absent.txt",
        vae=tmp_path / "vae.safetensors",
        text_encoder=LORA,
        lora_weight=[
            tmp_path / "gone.safetensors",
            DATA / "lora_dialects" / "broken_shape_mismatch.safetensors",
        ],
    )
    with pytest.raises(UserError) as caught:
        generate(config, run)
    text = str(caught.value)
    for part in (
        "absent.txt",
        "vae.safetensors",
        "text encoder",
        "gone.safetensors",
        "layers.0.attention.to_k",
    ):
        assert part in text
    assert not run.events
    assert {problem.sentence() for problem in check(config)} >= {
        problem.sentence() for problem in caught.value.problems if "vae" not in problem.option
    }


def test_a_lora_that_fits_nothing_leaves_the_resident_model_sound(options, run):
    resident = Resident()
    (plain,) = resident.run(options(), run)
    with pytest.raises(UserError, match="belong to no module"):
        resident.run(options(lora_weight=[DATA / "lora_dialects" / "broken_half_foreign.safetensors"]), run)
    (after,) = resident.run(options(), run)
    assert np.array_equal(_pixels(after), _pixels(plain))


def test_a_file_that_is_no_latent_is_refused(options):
    (problem,) = check(options(prompt=None, latent_path=[LORA]))
    assert "latent" in problem.sentence()


def test_a_pickled_latent_is_named_and_never_opened(options, tmp_path):
    torch.save(torch.zeros(16, 8, 8), tmp_path / "latent.pt")
    (problem,) = check(options(prompt=None, latent_path=[tmp_path / "latent.pt"]))
    assert "PyTorch pickle" in problem.sentence() and "safetensors" in problem.remedy


def test_a_latent_of_undefined_numbers_is_told_instead_of_drawn(options, run, tmp_path):
    save_file({"latent": torch.full((16, 8, 8), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="infinite or undefined numbers"):
        generate(options(prompt=None, latent_path=[tmp_path / "nan.safetensors"]), run)
    assert not [event for event in run.events if event.kind == "sample"]


def test_decoding_takes_no_notice_of_loras_and_says_so(options, run, tmp_path):
    """The first seed's lines may name a LoRA beside latents; only the VAE has work."""
    (latent,) = generate(options(output_type="latent", save_path=tmp_path), run)
    config = options(latent_path=[latent], lora_weight=[LORA])
    assert len(generate(config, run)) == 1
    assert "lora_weight" in "".join(event.text for event in run.events if event.kind == "note")


def test_the_text_encoder_runs_once_for_each_new_text(options, run, monkeypatch):
    encoded = []
    from zimage_gui.engine import generator

    original = generator.encode_prompts
    monkeypatch.setattr(
        generator, "encode_prompts", lambda e, t, texts: encoded.extend(texts) or original(e, t, texts)
    )
    resident = Resident()
    resident.run(options(batch_count=2, guidance_scale=1.0, infer_steps=1), run)
    resident.run(options(seed=9, infer_steps=1), run)
    assert encoded == ["a photo of a red circle", ""]


def test_closing_frees_the_models(options, run):
    resident = Resident()
    resident.run(options(infer_steps=1), run)
    generator: Generator = resident._generator
    resident.close()
    assert generator._transformer is generator.pictures._vae is generator._text_encoder is None


def test_the_pictures_metadata_is_json_with_a_version(options, run):
    (picture,) = generate(options(infer_steps=1, lora_weight=[LORA]), run)
    with Image.open(picture) as image:
        info = image.info
    assert json.loads(info["zimage_gui"])["version"]
    assert info["parameters"].startswith(
        "a photo of a red circle <lora:main_kohya_split:1>\nSteps: 1, Sampler: Euler, CFG scale: 1,"
    )


def test_cpu_noise_is_the_noise_of_the_cpu_generator(options):
    from zimage_gui.engine.generator import starting_noise

    (request,) = requests_of(options(cpu_noise=True), [PromptLine("a")])
    expected = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(starting_noise(request, torch.device("cpu")), expected)


def test_a_long_prompt_file_is_encoded_in_groups(options, run, tmp_path, monkeypatch):
    from zimage_gui.engine import generate_job as module

    monkeypatch.setattr(module, "_AT_ONCE", 2)
    path = tmp_path / "p.txt"
    path.write_text("a\nb\nc\n", encoding="utf-8")
    pictures = generate(options(prompt=None, from_file=path, infer_steps=1, image_size=(32, 32)), run)
    assert [read_settings(picture)["prompt"] for picture in pictures] == ["a", "b", "c"]
    steps = [
        (event.done, event.total)
        for event in run.events
        if event.kind == "progress" and event.unit == "steps"
    ]
    assert steps[-1] == (3, 3)
    assert _texts(run, "stage").count("Loading the text encoder") == 1


def test_without_free_memory_the_text_encoder_is_freed_and_pictures_stay_the_same(options, run, monkeypatch):
    import psutil

    (plain,) = generate(options(), run)
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=0))
    resident = Resident()
    (tight,) = resident.run(options(), run)
    assert resident._generator._text_encoder is None
    before = _texts(run, "stage").count("Loading the text encoder")
    resident.run(options(prompt="another", infer_steps=1), run)
    assert _texts(run, "stage").count("Loading the text encoder") == before + 1
    # The VAE decodes in bands then: a value on the edge between two levels may fall to the other side.
    difference = np.abs(_pixels(plain).astype(int) - _pixels(tight))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert "band by band" in _texts(run, "note")
