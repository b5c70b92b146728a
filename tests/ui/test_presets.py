"""Presets: shipped ones are right, names are harmless, and a round trip keeps what was set."""

from pathlib import Path

import pytest

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError
from zimage_gui.ui.presets import SHIPPED, Presets, clean_name
from zimage_gui.ui.values import collect


@pytest.mark.parametrize("config_class", [TrainLoraConfig, FinetuneConfig, GenerateConfig])
def test_every_shipped_preset_is_valid_and_says_what_it_is_for(config_class, tmp_path):
    presets = Presets(tmp_path, config_class)
    shipped = [preset for preset in presets.list() if preset.file.is_relative_to(SHIPPED)]
    assert shipped
    for preset in shipped:
        config_class(**collect(config_class, presets.load(preset.name)))
        assert preset.about.endswith(".")


def test_a_preset_keeps_what_differs_and_nothing_of_the_machine(tmp_path):
    presets = Presets(tmp_path, TrainLoraConfig)
    folder = tmp_path / "猫 と 犬"
    config = TrainLoraConfig(dataset=folder, learning_rate=3e-5, network_dim=8, runs_dir=Path("elsewhere"))
    file = presets.save("My preset", config)
    text = file.read_text(encoding="utf-8")
    assert "runs_dir" not in text and "max_train_steps" not in text
    loaded = presets.load(file.stem)
    assert (loaded["dataset"], loaded["learning_rate"], loaded["network_dim"]) == (str(folder), "3e-5", "8")


@pytest.mark.parametrize(
    "name", ["../../evil", "..\\evil", "/etc/passwd", "a/b", ".hidden", "con", "x\0y", "a" * 500]
)
def test_a_preset_name_never_leaves_its_folder(name, tmp_path):
    file = Presets(tmp_path, TrainLoraConfig).save(name, TrainLoraConfig())
    assert file.parent == tmp_path / "train-lora"
    assert file.resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", ["", "   ", "...", "///"])
def test_a_name_without_letters_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="letters or digits"):
        Presets(tmp_path, TrainLoraConfig).save(name, TrainLoraConfig())


def test_a_preset_of_ones_own_is_replaced_and_a_described_one_never(tmp_path):
    presets = Presets(tmp_path, TrainLoraConfig)
    for dim in (4, 8):
        file = presets.save("mine", TrainLoraConfig(network_dim=dim))
    assert presets.load("mine")["network_dim"] == "8"
    file.write_text("# What it is for.\n[lora]\nnetwork_dim = 16\n", encoding="utf-8")
    with pytest.raises(UserError, match="Type another name"):
        presets.save("mine", TrainLoraConfig(network_dim=32))
    assert "16" in file.read_text(encoding="utf-8")


def test_presets_are_sorted_as_people_sort_them(tmp_path):
    names = [preset.name for preset in Presets(tmp_path, TrainLoraConfig).list()]
    assert [name for name in names if "GB" in name] == [f"LoRA_on_{gb}_GB" for gb in (6, 8, 12, 16, 24)]


def test_names_in_any_script_are_kept():
    assert clean_name("猫 LoRA 1") == "猫_LoRA_1"


def test_a_broken_or_wrong_preset_is_refused_with_its_reason(tmp_path):
    presets = Presets(tmp_path, TrainLoraConfig)
    presets.own.mkdir()
    (presets.own / "broken.toml").write_text("[lora\n", encoding="utf-8")
    (presets.own / "wrong.toml").write_text("learning_rat = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="not valid TOML"):
        presets.load("broken")
    with pytest.raises(UserError, match="Did you mean learning_rate"):
        presets.load("wrong")
