"""`demo --to` writes a project whose files this program and diffusers load to the same model."""

import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

from zimage_gui.config.app import DemoConfig
from zimage_gui.demo.draw import held_out_subjects
from zimage_gui.demo.judge import judge
from zimage_gui.demo.measure import DemoModel
from zimage_gui.demo.pictures import ZORB_PROMPT, zorb_subjects
from zimage_gui.demo.project import TEXT_ENCODER_FILE, TRANSFORMER_FILE, VAE_FILE, run, write_project
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.model.weights import load_text_encoder, load_transformer, load_vae

PROMPT = held_out_subjects()[0].caption


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "my demo 图"
    write_project(folder)
    return folder


def test_hub_folder_and_comfy_files_hold_the_same_model(project: Path) -> None:
    hub, comfy = project / "models/hub", project / "models/comfy"
    for load, file in (
        (load_transformer, TRANSFORMER_FILE),
        (load_vae, VAE_FILE),
        (load_text_encoder, TEXT_ENCODER_FILE),
    ):
        theirs, ours = load(comfy / file), load(hub)
        assert theirs.config == ours.config
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_the_same_picture_from_the_hub_folder(project: Path) -> None:
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(project / "models/hub", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        PROMPT,
        height=128,
        width=128,
        num_inference_steps=20,
        guidance_scale=0.0,
        latents=noise,
        output_type="pil",
    ).images[0]
    ours = next(DemoModel(project / "models/hub", dtype=torch.float32).pictures([PROMPT], [0]))
    a, b = (torch.tensor(list(p.tobytes()), dtype=torch.float32) for p in (ours, theirs))
    assert (a - b).abs().max() <= 1


def test_the_dataset_is_sixteen_captioned_zorbs_without_the_proofs_prompt(project: Path) -> None:
    pictures = sorted((project / "dataset").glob("*.png"))
    captions = [p.with_suffix(".txt").read_text(encoding="utf-8").strip() for p in pictures]
    assert len(pictures) == 16 and captions == [s.caption for s in zorb_subjects()]
    assert all(judge(Image.open(p)).shape == "zorb" for p in pictures)
    assert ZORB_PROMPT.caption not in captions


def test_the_settings_name_files_that_exist(project: Path) -> None:
    settings = tomllib.loads((project / "train_lora.toml").read_text(encoding="utf-8"))
    paths = [
        *settings["models"].values(),
        settings["dataset"]["dataset_config"],
        settings["previews"]["sample_prompts"],
    ]
    assert all((project / path).exists() for path in paths)
    dataset = tomllib.loads((project / "dataset.toml").read_text(encoding="utf-8"))
    assert (project / dataset["datasets"][0]["image_directory"]).is_dir()


def test_writing_again_keeps_what_was_changed_and_completes_the_rest(project: Path) -> None:
    (project / "prompts.txt").write_text("mine", encoding="utf-8")
    (project / "dataset.toml").unlink()
    assert write_project(project) == 1
    assert (project / "prompts.txt").read_text(encoding="utf-8") == "mine"
    assert write_project(project, overwrite=True) > 40
    assert (project / "prompts.txt").read_text(encoding="utf-8") != "mine"


def test_a_folder_with_other_files_is_refused_unless_overwritten(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="holds other files"):
        run(DemoConfig(to=tmp_path), NullRun(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "diary.txt"]
    assert run(DemoConfig(to=tmp_path, overwrite=True), NullRun(tmp_path)) == [tmp_path]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        run(DemoConfig(to=tmp_path / "taken"), NullRun(tmp_path))
