import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from values import configs

from zimage_gui.config import toml_io
from zimage_gui.config.app import GuiConfig
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of
from zimage_gui.config.toml_io import dump, load, save, source
from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.errors import UserError


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_config_comes_back_from_its_toml(command, data):
    config = data.draw(configs(COMMANDS[command]))
    flat = {}
    for table in tomllib.loads(dump(config)).values():
        flat |= table
    assert type(config)(**flat) == config


@pytest.mark.parametrize("comments", [False, True])
def test_a_saved_file_loads_to_the_same_config(tmp_path, comments):
    folder = tmp_path / "ein Ordner 图片"
    folder.mkdir()
    config = TrainLoraConfig(
        dit=folder / "m.safetensors",
        dataset=folder,
        runs_dir=folder / "runs",
        training_comment='\x00\x7f"\\x',
    )
    path = save(config, folder / "run.toml", comments=comments)
    assert load(TrainLoraConfig, path) == config


def test_relative_paths_count_from_the_toml_when_they_exist_there(tmp_path, monkeypatch):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "model.safetensors").touch()
    path = tmp_path / "beside" / "run.toml"
    path.write_text('dit = "model.safetensors"\ndataset = "pictures"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = load(TrainLoraConfig, path)
    assert config.dit == tmp_path / "beside" / "model.safetensors"
    assert config.dataset == tmp_path / "pictures"
    found = source(TrainLoraConfig, path.read_text(encoding="utf-8"), path.parent)
    assert f"dit: {config.dit}" in found.notes


def test_sections_are_only_groups_and_aliases_and_switches_work(tmp_path):
    text = 'sdpa = true\n[anything]\nrank = 8\nlr = "2e-4"\n[models]\ndit = "a"\n[dataset]\ndataset = "b"\n'
    config = toml_io.loads(TrainLoraConfig, text)
    assert (config.network_dim, config.learning_rate, config.attn_mode) == (8, 2e-4, "torch")


def test_a_secret_is_neither_written_nor_read():
    config = GuiConfig(auth="me:very secret")
    assert "secret" not in dump(config)
    with pytest.raises(UserError, match="never stands in a TOML") as error:
        toml_io.loads(GuiConfig, 'auth = "me:very secret"')
    assert "very" not in str(error.value)


def test_a_broken_toml_names_its_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("a = 1\nb = \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.toml.*line 2"):
        load(TrainLoraConfig, path)


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "does not exist"), (b"\xff\xfe\x00", "not UTF-8"), (b"a = 1\n" * 800_000, "far too large")],
)
def test_an_unreadable_file_is_refused_with_a_sentence(tmp_path, content, word):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=word):
        load(TrainLoraConfig, path)


def test_a_table_in_a_table_is_refused():
    with pytest.raises(UserError, match="one level deep"):
        toml_io.loads(TrainLoraConfig, "[lora.deep]\nrank = 8\n")


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes('\ufeffdit = "a"\ndataset = "b"\n'.encode())
    assert load(TrainLoraConfig, path).dit == Path("a").absolute()


def test_comments_name_every_option():
    text = dump(TrainLoraConfig(), comments=True)
    known = options_of(TrainLoraConfig).values()
    assert all(one.name in text for one in known if not one.extra.secret)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('dit = "C:\\models\\z.safetensors"', "single quotes"),
        ('dit = "C:\\users\\z.safetensors"', "single quotes"),
        ("[[lora]]\nrank = 8", r"\[\[lora\]\]: is a list of tables.*Write \[lora\]"),
        ("optimizer_args = {lr = 1}", r"\[optimizer_args\]: is a table; this is an option"),
        ("network_dim = 4\n[lora]\nnetwork_dim = 8", r"network_dim: stands in \[lora\] and.*in the top"),
    ],
)
def test_what_a_toml_cannot_mean_is_refused_with_a_way_out(text, words):
    with pytest.raises(UserError, match=words):
        toml_io.loads(TrainLoraConfig, text)


def test_a_windows_path_in_single_quotes_is_a_path():
    text = "dit = 'C:\\models\\z.safetensors'\r\ndataset = \"C:/data\"\r\n[lora]\r\nrank = 8\r\n"
    config = toml_io.loads(TrainLoraConfig, text)
    assert config.network_dim == 8 and config.dit is not None and config.dit.name.endswith("z.safetensors")
