"""Options of `generate` beyond prompt, size and seed: each shows its effect in files, names and metadata."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from zimage_gui.cli import main
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.generate import Resident, check
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.generate_plan import batches, requests_of
from zimage_gui.engine.generator import Generator
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.model_key import ModelKey
from zimage_gui.engine.png_settings import read_settings
from zimage_gui.engine.preview import preview_prompts
from zimage_gui.engine.prompt_lines import parse_line
from zimage_gui.engine.sampler import Sampling
from zimage_gui.errors import Interrupted
from zimage_gui.events import SKIP_FILE, STEP_PICTURE

HUB = Path(__file__).parents[1] / "data" / "reference" / "hub"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _texts(run, kind: str) -> str:
    return "\n".join(event.text for event in run.events if event.kind == kind)


@pytest.fixture
def start(tmp_path) -> Path:
    """A photograph lying on its side: 80 x 100 upright."""
    rows, columns = np.mgrid[:80, :100]
    pixels = np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "foto 图.jpg", exif=exif, quality=95)
    return tmp_path / "foto 图.jpg"


@pytest.mark.parametrize("choice", [{"sampler": "heun"}, {"scheduler": "beta"}, {"sampler": "dpmpp_2m"}])
def test_sampler_and_scheduler_change_the_picture_and_come_back_from_it(options, run, choice):
    plain, other = generate(options(infer_steps=3), run) + generate(options(infer_steps=3, **choice), run)
    assert not np.array_equal(_pixels(plain), _pixels(other))
    found = read_settings(other)
    assert found.items() >= choice.items()
    (again,) = generate(options(**{k: v for k, v in found.items() if k != "lora_weight"}), run)
    assert np.array_equal(_pixels(again), _pixels(other))


def test_other_programs_read_the_sampler_and_ours_comes_back(options, run, tmp_path):
    (picture,) = generate(options(sampler="res_multistep", scheduler="simple"), run)
    with Image.open(picture) as image:
        text = image.info["parameters"]
        assert json.loads(image.info["zimage_gui"])["cfg_truncation"] == 1.0
    assert "Sampler: Res Multistep, Schedule type: Simple" in text


def test_lines_of_a_prompt_file_choose_their_sampler_and_picture(options, start, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        "a --sampler heun --scheduler Simple --cfg_truncation 0.5 --cfg_normalization 2\n"
        f"b --image_path {start.name} --strength 0.3\nc\n",
        encoding="utf-8",
    )
    config = options(prompt=None, from_file=path, sampler="dpmpp_2m", batch_count=2)
    from zimage_gui.engine.generate_plan import prompts_of

    first, _, second, _, third, _ = requests_of(config, prompts_of(config))
    assert first.sampling == Sampling("heun", "simple", 0.5, 2.0)
    assert second.sampling == third.sampling == Sampling("dpmpp_2m")
    assert (second.image_path, second.strength, third.image_path) == (start, 0.3, None)


@pytest.mark.parametrize(
    "line", ["a --sampler euler_a", "a --scheduler karras", "a --strength 0", "a --strength 2"]
)
def test_a_line_with_an_unknown_sampler_is_refused(line):
    with pytest.raises(ValueError, match="must be"):
        parse_line(line)


def test_previews_during_training_take_the_same_options():
    (prompt,) = preview_prompts(
        [parse_line("a --sampler heun --scheduler beta --cfg_truncation 0.4")], (64, 64), 1
    )
    assert prompt.sampling == Sampling("heun", "beta", 0.4)


def test_neighbours_that_differ_in_their_seeds_are_computed_together(options):
    requests = requests_of(options(batch_count=5), [parse_line("a"), parse_line("b --s 3")])
    assert [[request.prompt + str(request.seed) for request in batch] for batch in batches(requests, 3)] == [
        ["a7", "a8", "a9"], ["a10", "a11"], ["b7", "b8", "b9"], ["b10", "b11"]
    ]  # fmt: skip


def test_a_batch_gives_the_pictures_of_one_by_one(options, run, tmp_path):
    alone = generate(options(batch_count=3, output_type="latent", save_path=tmp_path / "a"), run)
    together = generate(
        options(batch_count=3, batch_size=3, output_type="latent", save_path=tmp_path / "b"), run
    )
    assert [path.name.split("_")[1] for path in together] == ["7", "8", "9"]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(load_file(one)["latent"], load_file(other)["latent"], atol=2e-5, rtol=0)
    assert [event.done for event in run.events if event.kind == "progress" and event.unit == "steps"][-1] == 6


def test_memory_that_is_short_for_a_batch_makes_it_one_by_one(options, run, monkeypatch):
    whole = Generator.latents_of

    def crowded(self, requests, on_step=None):
        if len(requests) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, requests, on_step)

    monkeypatch.setattr(Generator, "latents_of", crowded)
    assert len(generate(options(batch_count=2, batch_size=2), run)) == 2
    assert "one by one" in _texts(run, "warning")


def test_a_picture_is_begun_from_and_what_was_done_to_it_is_told(options, run, start):
    latent, picture = generate(
        options(image_path=start, strength=0.5, infer_steps=4, output_type="latent_images"), run
    )
    note = _texts(run, "note")
    assert (
        "foto 图.jpg: turned by its EXIF orientation; scaled from 80x100 to 64x80; cropped to 64x48" in note
    )
    found = read_settings(picture)
    assert (found["image_path"], found["strength"]) == (start.name, 0.5)
    with safe_open(latent, "pt") as file:
        assert json.loads(file.metadata()["zimage_gui"])["image_path"] == start.name
    with Image.open(picture) as image:
        assert "Denoising strength: 0.5" in image.info["parameters"]
    assert [event.done for event in run.events if event.kind == "progress" and event.unit == "steps"][-1] == 2


@pytest.mark.parametrize(
    ("steps", "strength", "words"), [(2, 0.6, 1), (2, 0.5, 0), (9, 0.95, 1), (4, 1.0, 0)]
)
def test_a_picture_of_which_no_step_sees_anything_is_told(options, run, start, steps, strength, words):
    """diffusers rounds the steps up: 0.6 of 2 are 2, which begin from pure noise. Strength 1 asks for that."""
    generate(options(image_path=start, strength=strength, infer_steps=steps), run)
    assert _texts(run, "note").count("begins from pure noise") == words


def test_less_strength_stays_nearer_to_the_picture(options, run, start):
    def distance(**changes) -> float:
        (path,) = generate(options(image_path=start, infer_steps=10, **changes), run)
        (same,) = generate(options(image_path=start, infer_steps=10, strength=0.1), run)
        return float(np.abs(_pixels(path).astype(float) - _pixels(same)).mean())

    near, default, far = distance(strength=0.2), distance(), distance(strength=1.0)
    assert near < default < far


def test_a_mask_leaves_its_black_part(options, run, start, tmp_path):
    pixels = np.zeros((100, 80), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    config = options(image_path=start, mask_path=tmp_path / "mask.png", output_type="latent", infer_steps=3)
    (masked,) = generate(config, run)
    (other,) = generate(config.with_(seed=99), run)
    one, two = (load_file(path)["latent"] for path in (masked, other))
    assert torch.equal(one[..., :4], two[..., :4]) and not torch.allclose(one[..., 4:], two[..., 4:])


def test_wrong_pictures_and_masks_are_told_before_anything_is_loaded(options, start, tmp_path):
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def said(**changes) -> str:
        return " ".join(problem.sentence() for problem in check(options(**changes)))

    assert "is 10x10, and the picture 80x100" in said(image_path=start, mask_path=tmp_path / "small.png")
    assert "is damaged, or no picture" in said(image_path=tmp_path / "broken.png")
    assert "mask_path" in said(mask_path=start) and "needs image_path" in said(mask_path=start)
    (tmp_path / "p.txt").write_text("a --mask_path foto.png\nb --image_path gone.png\n", encoding="utf-8")
    sentence = said(prompt=None, from_file=tmp_path / "p.txt")
    assert "needs image_path" in sentence and "does not exist" in sentence


def test_typed_prompts_make_pictures_until_the_stream_ends(options, run, monkeypatch):
    typed = "a cat --s 1\n\n# nothing\na dog --w x\na fox --s 1 --d 3 --w 32 --h 32"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    pictures = generate(options(prompt=None, interactive=True), run)
    assert [read_settings(picture)["prompt"] for picture in pictures] == ["a cat", "a fox"]
    assert read_settings(pictures[1])["seed"] == 3 and _pixels(pictures[1]).shape == (32, 32, 3)
    assert "This line --w must be a whole number" in _texts(run, "warning")
    steps = [event for event in run.events if event.kind == "progress" and event.unit == "steps"]
    assert [(event.done, event.total) for event in steps if event.done] == [(1, 1), (1, 1)]
    assert _texts(run, "stage").count("Loading the transformer") == 1


def test_a_typed_prompt_that_cannot_be_made_does_not_end_the_asking(options, run, monkeypatch, tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing", encoding="utf-8")
    typed = "a __nope__ and __empty__ --image_path gone.png\na fox --s 1"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    pictures = generate(options(prompt=None, interactive=True, wildcards_dir=tmp_path), run)
    assert [read_settings(picture)["prompt"] for picture in pictures] == ["a fox"]
    told = _texts(run, "warning")
    assert all(said in told for said in ("__nope__", "__empty__", "gone.png: does not exist"))


def test_a_stop_ends_the_asking(options, run, monkeypatch):
    class Silent:
        def __iter__(self):
            import threading

            threading.Event().wait()

    monkeypatch.setattr(sys, "stdin", Silent())
    run.stop = True
    with pytest.raises(Interrupted, match="between two prompts"):
        generate(options(prompt=None, interactive=True), run)


def test_prompts_come_from_one_place():
    for given in ({"prompt": "a", "interactive": True}, {"from_file": "p.txt", "interactive": True}):
        sentences = [problem.sentence() for problem in GenerateConfig(model_dir=HUB, **given).problems()]
        assert sentences and "excludes" in sentences[0]


def test_a_rough_picture_of_each_step_lies_in_the_run_folder_meanwhile(options, run, monkeypatch):
    run.folder.mkdir()
    monkeypatch.setattr("zimage_gui.engine.step_pictures.EVERY", 0)
    seen = []

    def looking() -> bool:
        path = run.folder / STEP_PICTURE
        if path.exists():
            seen.append(_pixels(path))
        return False

    run.stop_requested = looking
    generate(options(infer_steps=4), run)
    assert len(seen) >= 4 and seen[-1].shape == (6, 8, 3)
    assert not np.array_equal(seen[0], seen[-1])
    assert not (run.folder / STEP_PICTURE).exists()
    seen.clear()
    generate(options(infer_steps=4, step_preview=False), run)
    assert not seen


def test_a_picture_is_skipped_within_a_step_and_the_next_is_made(options, run):
    run.folder.mkdir()
    looked = []

    def skipping() -> bool:
        if any(event.kind == "stage" and event.name == "generate" for event in run.events):
            looked.append(1)
            if len(looked) == 3:  # once before the picture, then after each step
                (run.folder / SKIP_FILE).touch()
        return False

    run.stop_requested = skipping
    (picture,) = generate(options(batch_count=2, infer_steps=9), run)
    assert read_settings(picture)["seed"] == 8
    assert "Skipped" in _texts(run, "note") and not (run.folder / SKIP_FILE).exists()


def test_the_text_encoder_goes_to_the_cpu_when_asked():
    files = ModelFiles(HUB / "transformer", HUB / "vae", HUB / "text_encoder")
    generator = Generator(ModelKey.of(files, None, torch.device("cuda"), "no"))
    assert generator._place_for(HUB / "text_encoder").type == "cuda"
    generator.text_encoder_cpu = True
    assert generator._place_for(HUB / "text_encoder").type == "cpu"


def test_the_options_reach_the_models(options, run):
    resident = Resident()
    resident.run(
        options(text_encoder_cpu=True, cfg_batch="never", vae_tiling="always", vae_dtype="bf16"), run
    )
    generator = resident._generator
    assert generator.text_encoder_cpu and generator.cfg_batch == "never"
    assert (generator.pictures.tiling, generator.vae.decoder.conv_in.weight.dtype) == (
        "always",
        torch.bfloat16,
    )
    resident.run(options(), run)
    assert generator.vae.decoder.conv_in.weight.dtype is torch.float32


def test_compiled_blocks_draw_the_same_picture_and_a_backend_that_is_none_is_refused(
    options, run, tmp_path
) -> None:
    pictures = []
    for name, compiled in (("plain", False), ("compiled", True)):
        config = options(
            compile=compiled, compile_backend="eager", output=tmp_path / f"{name}.png", compile_fullgraph=True
        )
        (path,) = generate(config, run)
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert "compiled at the first step" in _texts(run, "note")
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    (problem,) = check(options(compile=True, compile_backend="nonsense"))
    assert problem.option == "compile_backend"


def test_the_bell_rings_when_all_is_done_and_after_each_typed_prompt(tmp_path, capfd, monkeypatch):
    words = [
        "generate",
        "--model_dir",
        str(HUB),
        "--prompt",
        "a",
        "--image_size",
        "32",
        "32",
        "--infer_steps",
        "1",
    ]
    words += ["--device", "cpu", "--save_path", str(tmp_path / "out"), "--runs_dir", str(tmp_path / "runs")]
    for bell in ([], ["--bell"]):
        assert main([*words, *bell]) == 0
        assert capfd.readouterr().out.count("\a") == len(bell)
    asking = [word for word in words if word not in ("--prompt", "a")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\na dog\n"))
    assert main([*asking, "--interactive", "--bell"]) == 0
    assert capfd.readouterr().out.count("\a") == 2
