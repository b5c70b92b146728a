"""A model folder of the second seed works as it is: generate, caches, training."""

import shutil

import numpy as np
import pytest
import torch
from making import REFERENCE, SINGLE, write_model
from PIL import Image
from safetensors.torch import load_file
from tiny_project import finetune_config, lora_config, write_models, write_pictures

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.model_files import find_part
from zimage_gui.engine.train import check, run
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun

NAMES = {"transformer": "z_image_turbo_bf16", "vae": "ae", "text_encoder": "qwen3_4b_text_encoder"}
PARTS = {"dit": "transformer", "vae": "vae", "te": "text_encoder"}


def as_folder(models, target, **only):
    """The second seed's folder of the models in `models`, all of them .bpk."""
    target.mkdir()
    for part, path in models.items():
        write_model(path, part, target / f"{NAMES[part]}.bpk", only=only.get(part, ""))
    return target


def test_a_picture_from_a_folder_of_bpk_files_is_the_one_from_safetensors(tmp_path):
    folder = as_folder(SINGLE, tmp_path / "models 模型", vae="decoder.")
    shutil.copy(REFERENCE / "hub" / "tokenizer" / "tokenizer.json", folder / "qwen3-tokenizer.json")
    shutil.copy(REFERENCE / "hub" / "vae" / "config.json", folder / "config.json")
    pictures = []
    for models in (folder, REFERENCE / "hub"):
        config = GenerateConfig(
            model_dir=models,
            prompt="a photo",
            image_size=(32, 32),
            infer_steps=1,
            seed=3,
            mixed_precision="no",
            device="cpu",
        )
        (path,) = generate(config, NullRun(tmp_path / models.name))
        with Image.open(path) as image:
            pictures.append(np.asarray(image))
    assert np.array_equal(*pictures)


@pytest.fixture
def project(tmp_path):
    write_models(tmp_path / "models")
    write_pictures(tmp_path / "pictures", 2)
    return tmp_path


@pytest.mark.parametrize("make", [lora_config, finetune_config])
def test_training_on_bpk_files_gives_the_weights_of_training_on_safetensors(make, project):
    folder = as_folder(
        {part: project / "models" / f"{name}.safetensors" for name, part in PARTS.items()}, project / "bpk"
    )
    results = []
    for name, models in (
        ("a", {}),
        ("b", {"dit": None, "vae": None, "text_encoder": None, "model_dir": folder}),
    ):
        config = make(
            project,
            output_dir=project / name,
            max_train_steps=2,
            cache_directory=project / f"{name} cache",
            **models,
        )
        assert check(config) == []
        (path,) = [
            path for path in run(config, NullRun(project / name / "run")) if path.suffix == ".safetensors"
        ]
        results.append(load_file(path))
    first, second = results
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_caching_names_a_decoder_alone_before_any_work(project):
    alone = write_model(project / "models" / "vae.safetensors", "vae", project / "ae.bpk", only="decoder.")
    (problem,) = check(lora_config(project, vae=alone))
    assert problem.option == "vae"
    assert "needs its encoder too" in problem.sentence()


def test_the_base_name_wins_over_the_extension_and_bpk_over_safetensors(tmp_path):
    package = write_model(SINGLE["transformer"], "transformer", tmp_path / "made.bpk")
    order = [
        "z_image.safetensors",
        "z_image_turbo.safetensors",
        "z_image_turbo.bpk",
        "z_image_turbo_bf16.bpk",
        "z_image_turbo_f16.safetensors",
        "z_image_turbo_f16.bpk",
    ]
    models = tmp_path / "models"
    models.mkdir()
    for name in order:
        shutil.copy(package if name.endswith("bpk") else SINGLE["transformer"], models / name)
        assert find_part(models, "transformer").name == name


def test_a_broken_bpk_in_a_models_folder_is_named(tmp_path):
    (tmp_path / "ae.bpk").write_bytes(b"NRUB\1\0")
    found = find_part(tmp_path, "vae")
    with pytest.raises(UserError, match="too short"):
        generate(
            GenerateConfig(
                model_dir=tmp_path,
                vae=found,
                dit=SINGLE["transformer"],
                text_encoder=SINGLE["text_encoder"],
                prompt="x",
                device="cpu",
            ),
            NullRun(tmp_path),
        )
