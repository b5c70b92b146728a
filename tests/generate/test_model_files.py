"""A models folder is told apart by looking."""

import shutil
from pathlib import Path

import pytest

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.model_files import find_models, find_part
from zimage_gui.errors import UserError

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
SINGLE = DATA / "reference" / "single"
PARTS = ("transformer", "vae", "text_encoder")


@pytest.fixture
def folder(tmp_path):
    def make(**files: Path) -> Path:
        for name, source in files.items():
            target = tmp_path / "my models 模型" / name.replace("__", "/").replace("_st", ".safetensors")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        return tmp_path / "my models 模型"

    return make


DIT, VAE, TEXT = (
    SINGLE / "z_image_fused.safetensors",
    SINGLE / "ae.safetensors",
    SINGLE / "qwen_3.safetensors",
)
FLUX_LORA = DATA / "lora_dialects" / "broken_other_model.safetensors"


def test_a_hub_folder_is_found_by_its_part_folders():
    assert [find_part(HUB, part) for part in PARTS] == [HUB / part for part in PARTS]


def test_a_comfyui_folder_is_found_among_other_models(folder):
    models = folder(
        diffusion_models__flux_st=FLUX_LORA,
        diffusion_models__z__mine_st=DIT,
        text_encoders__clip_l_st=FLUX_LORA,
        text_encoders__q_st=TEXT,
        vae__other_st=FLUX_LORA,
        vae__ae_st=VAE,
    )
    found = [find_part(models, part).relative_to(models).as_posix() for part in PARTS]
    assert found == [
        "diffusion_models/z/mine.safetensors",
        "vae/ae.safetensors",
        "text_encoders/q.safetensors",
    ]


def test_the_second_seeds_flat_folder_is_found_by_what_the_files_are(folder):
    models = folder(z_image_turbo_bf16_st=DIT, qwen3_4b_text_encoder_st=TEXT, ae_st=VAE)
    assert [find_part(models, part).name for part in PARTS] == [
        "z_image_turbo_bf16.safetensors", "ae.safetensors", "qwen3_4b_text_encoder.safetensors",
    ]  # fmt: skip


def test_several_fitting_files_are_named_and_refused(folder):
    models = folder(diffusion_models__a_st=DIT, diffusion_models__b_st=DIT)
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors.*dit"):
        find_part(models, "transformer")


def test_a_known_name_decides_between_several(folder):
    models = folder(diffusion_models__a_st=DIT, diffusion_models__z_image_turbo_bf16_st=DIT)
    assert find_part(models, "transformer").stem == "z_image_turbo_bf16"


def test_a_named_file_wins_and_everything_missing_is_one_answer(folder):
    models = folder(vae__ae_st=VAE)
    files, problems = find_models(GenerateConfig(model_dir=models, dit=DIT), *PARTS)
    assert (files.dit, files.vae, files.text_encoder) == (DIT, models / "vae" / "ae.safetensors", None)
    (problem,) = problems
    assert "text encoder" in problem.sentence()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="model_dir"):
        find_part(tmp_path / "absent", "vae")
