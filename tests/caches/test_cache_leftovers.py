"""Cache files of pictures that are gone are deleted, and no other file ever is."""

import shutil

import pytest
import torch
from cache_project import MUSUBI, Project
from safetensors.torch import save_file


def test_files_of_deleted_pictures_go_and_nothing_else(project):
    del project.options["cache_directory"]  # then caches lie among the pictures
    gone, stays = project.picture("gone.png"), project.picture("stays.png")
    project.latents()
    project.texts()
    save_file({"lora": torch.zeros(2)}, project.folder / "gone_0064x0064_zi.safetensors.safetensors")
    save_file({"lora": torch.zeros(2)}, project.folder / "my_lora_zi_te.safetensors")
    save_file(
        {"latents_1x8x8_float32": torch.zeros(16, 8, 8)},
        project.folder / "old_0064x0064_zi.safetensors",
        {"architecture": "flux"},
    )
    foreign = {path.name for path in project.folder.iterdir()} - {
        "gone_0064x0064_zi.safetensors",
        "gone_zi_te.safetensors",
        "gone.png",
        "gone.txt",
    }
    gone.unlink()
    gone.with_suffix(".txt").unlink()
    project.latents(keep_cache=True)
    assert (project.folder / "gone_0064x0064_zi.safetensors").exists() and "kept as asked" in project.told
    project.latents()
    assert "removed 1 latent cache file" in project.told
    project.texts()
    assert {path.name for path in project.folder.iterdir()} == foreign and stays.exists()


def test_files_of_a_picture_that_only_lost_its_caption_or_belongs_elsewhere_stay(project, tmp_path):
    path = project.picture("a.png")
    project.picture("b.png")
    project.latents()
    path.with_suffix(".txt").unlink()
    assert project.latents() == [] and (project.cache / "a_0064x0064_zi.safetensors").exists()
    other = Project(tmp_path / "other")
    other.options["cache_directory"] = other.cache = project.cache
    other.picture("c.png")
    other.latents()
    assert {"a_0064x0064_zi.safetensors", "b_0064x0064_zi.safetensors"} <= {
        path.name for path in project.cache.iterdir()
    }
    assert "may belong to another dataset" in other.told


def test_a_cache_folder_named_by_mistake_loses_nothing(project):
    shutil.copytree(MUSUBI / "cache", project.cache)
    project.picture("mine.png")
    project.latents()
    project.latents()
    assert len(list(project.cache.glob("*_zi.safetensors"))) == 10


@pytest.mark.parametrize("resolution", [128, 64])
def test_musubis_files_of_deleted_pictures_go(golden, resolution):
    shutil.copytree(MUSUBI / "cache", golden.cache)
    golden.options |= {"resolution": resolution}
    (golden.folder / "tiny64.png").unlink()
    golden.latents()
    golden.texts()
    assert not list(golden.cache.glob("tiny64*")) and len(list(golden.cache.iterdir())) == 16
