"""The run folder: its name, its files, and what never gets into them."""

import json
import subprocess
from pathlib import Path

import pytest
from fake_engine import Config, Spec, command_line, kinds, train
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.toml_io import load
from zimage_gui.config.training import FinetuneConfig
from zimage_gui.errors import UserError
from zimage_gui.events import Note, follow
from zimage_gui.jobs.folder import RunFolder, slug
from zimage_gui.jobs.here import run_here
from zimage_gui.jobs.launch import environment
from zimage_gui.jobs.redact import redact, secrets_of
from zimage_gui.jobs.report import write_report
from zimage_gui.jobs.status import read_status


def test_two_runs_of_the_same_second_get_two_folders(new_run):
    first, second = new_run("cats"), new_run("cats")
    assert first.folder != second.folder
    assert first.folder.name.endswith("_train-lora_cats")
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "checkpoints", "config.toml", "samples", "state", "status.json",
    ]  # fmt: skip


def test_names_in_any_script_stay_readable():
    assert slug("my cats (v2)") == "my-cats--v2"
    assert slug("猫の絵") == "猫の絵"
    assert slug("CON") == "CON-"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("...") == ""


@given(st.text(max_size=200))
def test_every_name_is_one_harmless_piece_of_a_path(text):
    piece = slug(text)
    assert Path(piece).name == piece
    assert not piece.startswith(".") and not piece.endswith((".", " "))
    assert len(piece.encode()) <= 130


def test_a_runs_folder_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "runs").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"runs_dir = .*runs: must be a folder"):
        RunFolder.create(tmp_path / "runs", "train-lora", "cats", "")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_tells_its_story_in_events_status_and_results(new_run):
    folder = new_run().folder
    seen = []
    assert run_here(Spec(), Config(steps=2), folder.parent, listeners=[seen.append], run_folder=folder) == 0
    events, _ = follow(folder / "events.jsonl")
    assert (
        kinds(events) == ["started", "stage", "note", "step", "step", "checkpoint", "finished"] == kinds(seen)
    )
    status = read_status(folder)
    assert (status.outcome, status.step, status.total_steps, status.phase_text) == ("done", 2, 2, "Training")
    saved = str((folder / "checkpoints" / "cats.safetensors").absolute())
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == {"results": [saved]}


def test_a_run_begins_with_a_warning_of_what_is_set_and_does_nothing(new_run):
    run = new_run()
    config = FinetuneConfig(stochastic_rounding=False)
    spec = Spec()
    spec.load = lambda: lambda given, run: []
    assert run_here(spec, config, run.folder.parent, run_folder=run.folder) == 0
    (warning,) = [event for event in follow(run.folder / "events.jsonl")[0] if event.kind == "warning"]
    assert warning.text.startswith("stochastic_rounding = false: has no effect here. Matters when")


def test_a_run_without_a_folder_makes_one_with_its_resolved_config(runs):
    config = GenerateConfig(prompt='a "猫" \\ cat', model_dir="models")
    spec = Spec()
    spec.load = lambda: lambda given, run: [run.folder / "samples" / "x.png"]
    assert run_here(spec, config, runs, "cats") == 0
    (folder,) = (path for path in runs.iterdir() if not path.name.startswith("."))
    assert load(GenerateConfig, folder / "config.toml").prompt == config.prompt


@pytest.mark.parametrize(("way", "code", "kind"), [("user", 2, "user"), ("crash", 1, "ZeroDivisionError")])
def test_failures_are_told_apart_and_explained(new_run, way, code, kind):
    folder = new_run().folder
    assert run_here(Spec(), Config(fail=way), folder.parent, run_folder=folder) == code
    last = follow(folder / "events.jsonl")[0][-1]
    assert (last.kind, last.error_kind) == ("failed", kind)
    console = (folder / "console.log").read_text(encoding="utf-8")
    assert ("Traceback" in console) == (way == "crash")
    assert "zimage-gui" in console.splitlines()[0]


def test_a_folder_in_which_a_living_process_works_is_not_entered(new_run):
    run = new_run()
    status = run.status.model_copy(update={"pid": 1, "process_created": _created(1), "host": _host()})
    (run.folder / "status.json").write_bytes(status.model_dump_json().encode())
    with pytest.raises(UserError, match="in use by process 1"):
        RunFolder.open(run.folder)


def test_a_run_that_has_ended_is_not_run_again(new_run):
    folder = new_run().folder
    assert run_here(Spec(), Config(steps=1), folder.parent, run_folder=folder) == 0
    with pytest.raises(UserError, match="has ended"):
        RunFolder.open(folder)


def test_a_folder_that_is_no_run_is_not_entered(tmp_path):
    with pytest.raises(UserError, match="must be a run folder"):
        RunFolder.open(tmp_path)


def test_secrets_of_the_environment_reach_no_file_of_a_run(new_run):
    secret = "s3cret-value-1234567890"
    folder = new_run(steps=1, text=f"my key is {secret}").folder
    (folder / "config.toml").write_text(f"steps = 1\ntext = '{secret}'\n", encoding="utf-8")
    variables = environment() | {"WANDB_API_KEY": secret}
    done = subprocess.run(command_line(folder, ""), env=variables, capture_output=True, check=True)
    (folder / "config.toml").unlink()
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] + [done.stdout, done.stderr]
    assert not any(secret.encode() in content for content in written)
    assert b"***" in (folder / "console.log").read_bytes()


def test_only_secret_values_are_hidden():
    secrets = secrets_of(
        {"HF_TOKEN": "abcdefghijk", "TOKENIZERS_PARALLELISM": "false-false", "MY_API_KEY": "short"}
    )
    assert secrets == ("abcdefghijk",)
    assert secrets_of({"ZIMAGE_GUI_AUTH": "jane:correct horse"}) == ("jane:correct horse", "correct horse")
    assert (
        redact("token abcdefghijk, https://me:pw@host/x, hf_" + "a" * 30, secrets)
        == "token ***, https://***@host/x, ***"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_loses_events_but_not_the_run(new_run, capsys):
    run = new_run()
    (run.folder / "events.jsonl").symlink_to("/dev/full")
    run.begin()
    run.emit(Note(text="lost"))
    assert train(Config(steps=1), run)
    run.end("done")
    assert read_status(run.folder).outcome == "done"
    assert capsys.readouterr().err.count("events are not being recorded") == 1


def _created(pid: int) -> float:
    from zimage_gui.jobs.processes import created_of

    return created_of(pid)


def _host() -> str:
    from zimage_gui.jobs.processes import host_name

    return host_name()


def test_a_bug_report_holds_the_story_but_no_secret_and_no_name_of_the_user(new_run, tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setenv("HOME", "/home/jane.doe")
    monkeypatch.setenv("USERPROFILE", "/home/jane.doe")
    run = new_run()
    text = f"hf_{'a' * 34} in /home/jane.doe/models\n" + "x" * 2_000_000 + "\nthe end"
    (run.folder / "console.log").write_text(text, encoding="utf-8")
    path = write_report(run.folder, tmp_path / "report.zip")
    with zipfile.ZipFile(path) as archive:
        log = archive.read("console.log").decode()
        assert {"config.toml", "status.json", "machine.json"} <= set(archive.namelist())
        assert b'"torch"' in archive.read("machine.json")
    assert log.startswith("*** in ~/models\n") and log.endswith("the end") and "bytes left out" in log


def test_there_is_no_report_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="must be a run folder"):
        write_report(tmp_path, tmp_path / "report.zip")
