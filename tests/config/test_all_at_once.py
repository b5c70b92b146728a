"""A person hears of everything that is wrong in one go; an empty prompt is not wrong."""

import re
from pathlib import Path

import pytest

from zimage_gui import cli
from zimage_gui.config.build import RIVALS, build
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.toml_io import dump, loads
from zimage_gui.errors import EXIT_USER, UserError

MODELS = {"dit": "d", "vae": "v", "text_encoder": "t"}


def test_missing_files_are_told_together_with_wrong_values(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--rank", "0", "--dit", "no dit", "--vae", "no vae", "--dataset_config", "no.toml"]
    assert cli.main(["train-lora", *words]) == EXIT_USER
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in told] == ["network_dim", "dit", "vae", "dataset_config"]
    assert not list(tmp_path.iterdir())


def test_what_the_check_refuses_is_no_run_yet(capsys, tmp_path, monkeypatch):
    """A model of the wrong kind is found in its header; nothing is written before."""
    monkeypatch.chdir(tmp_path)
    vae = Path(__file__).parents[1] / "data" / "musubi" / "models" / "vae.safetensors"
    words = ["generate", "--prompt", "", "--steps", "1"]
    words += ["--dit", str(vae), "--vae", str(vae), "--text_encoder", str(vae)]
    assert cli.main(words) == EXIT_USER
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in told] == ["dit", "text_encoder"]
    assert not list(tmp_path.iterdir())


def test_an_empty_prompt_is_a_prompt():
    config = build(GenerateConfig, {**MODELS, "prompt": ""})
    assert config.prompt == ""
    assert loads(GenerateConfig, dump(config)).prompt == ""
    with pytest.raises(UserError, match="prompt: is missing"):
        build(GenerateConfig, MODELS)


def test_an_empty_prompt_field_gives_way_to_a_prompt_file():
    config = build(GenerateConfig, {**MODELS, "prompt": "", "from_file": "lines.txt"})
    assert config.prompt is None and config.from_file == Path("lines.txt").absolute()


def test_an_empty_prompt_on_the_command_line_takes_the_place_of_the_file_of_prompts(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert "from_file" in RIVALS["prompt"]
    Path("run.toml").write_text('from_file = "lines.txt"\ndit = "d"\n', encoding="utf-8")
    assert cli.main(["generate", "run.toml", "--prompt", ""]) == EXIT_USER
    err = capsys.readouterr().err
    assert "prompt:" not in err and "from_file =" not in err and "dit = " in err


def test_a_dataset_file_in_the_place_of_the_options_is_recognised(tmp_path, capsys):
    (tmp_path / "d.toml").write_text('[[datasets]]\nimage_directory = "x"\n', encoding="utf-8")
    assert cli.main(["train-lora", str(tmp_path / "d.toml")]) == EXIT_USER
    assert "is a dataset file, not a file of this command's options" in capsys.readouterr().err


def test_what_only_the_engine_finds_is_told_together_with_wrong_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = Path(__file__).parents[1] / "data" / "musubi" / "models" / "vae.safetensors"
    words = ["--learing_rate", "1", "--rank", "0", "--optimizer_type", "Foo", "--lr_scheduler", "bar"]
    words += ["--dit", str(vae), "--vae", "no", "--dataset", "nowhere", "--device", "abacus"]
    assert cli.main(["train-lora", *words]) == EXIT_USER
    told = [re.split(" = |: ", line)[0] for line in capsys.readouterr().err.splitlines()]
    wrong = {
        "--learing_rate",
        "network_dim",
        "optimizer_type",
        "lr_scheduler",
        "dit",
        "vae",
        "dataset",
        "device",
    }
    assert set(told) == wrong and len(told) == len(wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train-lora", "cache-latents", "dataset"])
def test_a_folder_without_pictures_is_refused_before_anything_runs(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").touch()
    assert cli.main([command, "--dataset", "pictures", "--dry_run"]) == EXIT_USER
    assert "holds no picture" in capsys.readouterr().err


def test_a_settings_file_in_the_place_of_a_dataset_file_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text("[lora]\nrank = 8\n[models]\n[[datasets]]\nimage_directory = 'x'\n", encoding="utf-8")
    assert cli.main(["dataset", "--dataset_config", str(path)]) == EXIT_USER
    err = capsys.readouterr().err
    assert "not part of a dataset file: lora, models;" in err and len(err.splitlines()) == 1
