"""The command line as a whole, in this process and in its own."""

import io
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from zimage_gui import cli
from zimage_gui.config.registry import COMMANDS
from zimage_gui.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER

HEAVY = ("torch", "gradio", "transformers")


def command(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zimage_gui", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        **options,
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["train-lora", "--help"], ["generate", "--help_all"]])
def test_help_imports_nothing_slow(words):
    code = (
        "import sys\nfrom zimage_gui.cli import main\n"
        f"assert main({words!r}) == 0\n"
        f"assert not set({HEAVY!r}) & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: zimage-gui" in done.stdout


def test_help_answers_at_once():
    """Processor time, best of several: how busy the machine is says nothing about the program."""
    seconds = []
    while len(seconds) < 20 and min(seconds, default=1.0) >= 0.4:  # a core shared with another process slows
        begun = os.times()
        assert command("train-lora", "--help").returncode == EXIT_DONE
        ended = os.times()
        on_processor = (
            ended.children_user + ended.children_system - begun.children_user - begun.children_system
        )
        wall = ended.elapsed - begun.elapsed
        seconds.append(wall if sys.platform == "win32" else min(wall, on_processor))
    assert min(seconds) < 0.4


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name, capsys):
    assert cli.main([name, "--help"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert out.startswith(f"usage: zimage-gui {name} ")
    assert max(map(len, out.splitlines())) <= 120


def test_help_of_a_command_is_the_commands_help(capsys):
    assert cli.main(["help", "merge"]) == cli.main(["merge", "--help"]) == EXIT_DONE
    asked, own = capsys.readouterr().out.split("usage: ")[1:]
    assert asked == own and asked.startswith("zimage-gui merge")


def test_overview_and_version(capsys):
    assert cli.main([]) == EXIT_DONE and cli.main(["--version"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS) and "zimage-gui 0." in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], "trian: is not a command. Did you mean train?"),
        (["xyzzy"], "The commands are gui, demo"),
        (["--verison"], "Did you mean --version?"),
        (["demo", "x" * 300], "cannot be looked at ("),
        (["dataset", "x" * 300], "does not exist. Check the path"),
        (["train-lora", "--dataset", "x" * 300, "--output_dir", "x" * 300], "output_dir = "),
        (["convert"], "input: is missing"),
        (["train-lora", "--rank", "0", "--dit", "no such file"], "network_dim = 0"),
        (["train_lora", "missing.toml"], "config_file = missing.toml: does not exist"),
        (["inspect"], "input: is missing"),
        (["inspect", "no/such/file"], "does not exist"),
        (["cache-latents", "--vea", "x"], "Did you mean vae?"),
    ],
)
def test_the_users_mistakes_end_with_two(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert cli.main(words) == EXIT_USER
    assert text in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


def test_all_mistakes_of_one_line_are_told_together(capsys):
    assert cli.main(["train-lora", "--lr", "x", "--lora", "y", "--num_machines", "2", "--steps"]) == EXIT_USER
    err = capsys.readouterr().err
    for part in (
        "learning_rate = x",
        "--lora: is not an option",
        "num_machines = 2: asks for processes on other machines",
        "--steps: needs a value",
        "dit: is",
    ):
        assert part in err


def test_paths_in_any_language_pass_through_a_pipe(tmp_path):
    name = "Bilder 画像 é"
    done = command("inspect", str(tmp_path / name), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == EXIT_USER and name in done.stderr


def test_a_reader_that_leaves_is_no_crash():
    process = subprocess.Popen(
        [sys.executable, "-m", "zimage_gui", "train-lora", "--help_all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert b"Traceback" not in errors


class Spec:
    """A command whose work is a function of the test."""

    gpu = False
    name = "inspect"

    def __init__(self, work):
        self.work = work

    def load(self):
        return self.work


def failing(error):
    def work(config, run):
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "text"),
    [
        (lambda config, run: [], EXIT_DONE, ""),
        (failing(cli.Interrupted()), EXIT_INTERRUPTED, ""),
        (failing(RuntimeError("the disk melted")), EXIT_FAILED, "the disk melted"),
    ],
)
def test_exit_codes_of_short_commands(work, code, text, capsys):
    assert cli._run_short(Spec(work), COMMANDS["inspect"]()) == code
    assert text in capsys.readouterr().err


def test_several_processes_of_what_runs_in_one_are_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "v.safetensors").touch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = ["cache-latents", "--vae", str(tmp_path / "v.safetensors"), "--dataset", str(tmp_path)]
    assert cli.main(words) == EXIT_USER
    assert "cache-latents runs in one" in capsys.readouterr().err


class Asked(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "words", "agreed"),
    [
        (io.StringIO("y"), [], False),
        (Asked("n\n"), [], False),
        (Asked("y\n"), [], True),
        (io.StringIO(), ["--optimizer", "mischief.Optimizer"], True),
    ],
)
def test_code_that_a_file_names_is_asked_about(stdin, words, agreed, capsys, tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(
        'optimizer_type = "mischief.Optimizer"\ndit = "x"\ndataset = "y"\n', encoding="utf-8"
    )
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli.main(["train-lora", str(tmp_path / "run.toml"), *words]) == EXIT_USER  # the paths do not exist
    assert ("comes from a file" in capsys.readouterr().err) is not agreed


def test_classes_of_torch_are_not_asked_about(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(
        'optimizer_type = "torch.optim.SGD"\ndit = "x"\ndataset = "y"\n', encoding="utf-8"
    )
    assert cli.main(["train-lora", str(tmp_path / "run.toml")]) == EXIT_USER
    assert "comes from a file" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs; Ctrl-C there reaches the test itself")
def test_ctrl_c_ends_with_130(tmp_path):
    """The config is a pipe, so the process surely waits inside `main` when the signal comes."""
    pipe = tmp_path / "run.toml"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "zimage_gui", "train-lora", str(pipe)],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with open(pipe, "w", encoding="utf-8"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED and errors == "Interrupted.\n"


def test_a_dry_run_prints_a_toml_that_means_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bilder").mkdir()
    (tmp_path / "run.toml").write_text("[window]\nport = 8000\nlisten = true\n", encoding="utf-8")
    words = ["gui", "run.toml", "--port", "9000", "--auth", "me:secret", "--runs-dir", "läufe"]
    assert cli.main([*words, "--dry-run"]) == EXIT_DONE
    printed = capsys.readouterr().out
    table = tomllib.loads(printed)
    assert table["window"]["port"] == 9000 and table["window"]["listen"] is True
    assert table["run"]["runs_dir"] == str(tmp_path / "läufe") and "secret" not in printed
    (tmp_path / "again.toml").write_text(printed, encoding="utf-8")
    monkeypatch.setenv("ZIMAGE_GUI_AUTH", "me:secret")
    assert cli.main(["gui", "again.toml", "--dry-run"]) == EXIT_DONE
    assert capsys.readouterr().out == printed


def test_the_name_of_a_run_is_its_result():
    train = COMMANDS["train-lora"]
    assert cli.run_name(train(output_name="cats")) == "cats"
    assert cli.run_name(train(output=Path("x/dogs.safetensors"))) == "dogs"
    assert cli.run_name(COMMANDS["cache-text"](dataset=Path("x/birds"))) == "birds"
    assert cli.run_name(COMMANDS["cache-text"](dataset_config=Path("x/fish.toml"))) == "fish"
    assert cli.run_name(COMMANDS["generate"]()) == ""


def test_a_wrong_dataset_file_is_told_with_everything_else(tmp_path, capsys):
    (tmp_path / "d.toml").write_text(
        '[[datasets]]\nimage_dir = "x"\ncontrol_directory = "y"\n', encoding="utf-8"
    )
    words = [
        "cache-latents",
        "--dataset_config",
        str(tmp_path / "d.toml"),
        "--vae",
        str(tmp_path / "missing.safetensors"),
    ]
    assert cli.main(words) == EXIT_USER
    err = capsys.readouterr().err
    assert "vae = " in err and "Did you mean image_directory?" in err


def test_what_relative_paths_became_is_said(tmp_path, capsys):
    (tmp_path / "bilder").mkdir()
    (tmp_path / "d.toml").write_text(
        '[[datasets]]\nimage_directory = "bilder"\ncontrol_directory = "y"\n', encoding="utf-8"
    )
    (tmp_path / "run.toml").write_text('dataset_config = "d.toml"\nvae = "missing"\n', encoding="utf-8")
    assert cli.main(["cache-latents", str(tmp_path / "run.toml")]) == EXIT_USER
    err = capsys.readouterr().err
    assert f"dataset_config: {tmp_path / 'd.toml'}" in err
    assert f"datasets 1: image_directory: {tmp_path / 'bilder'}" in err
    assert "control_directory does nothing here: Z-Image has no control pictures." in err
