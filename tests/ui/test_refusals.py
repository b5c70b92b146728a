"""What a press on a button refuses: everything at once, by the field's own name, before a run is made."""

from pathlib import Path

import pytest

from zimage_gui.config.app import GuiConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.errors import UserError
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.ui.actions import Action
from zimage_gui.ui.convert_actions import ACTIONS
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.drafts import Drafts
from zimage_gui.ui.form import Form
from zimage_gui.ui.live import Live
from zimage_gui.ui.panel import JobPanel
from zimage_gui.ui.tabs.convert import ConvertTab
from zimage_gui.ui.tabs.generate import GenerateTab
from zimage_gui.ui.tabs.training import lora_tab

GOLDEN_LORA = Path(__file__).parents[1] / "data" / "lora_dialects" / "all_kohya_split.safetensors"


def refused(action) -> list[str]:
    with pytest.raises(UserError) as caught:
        action()
    return [problem.option for problem in caught.value.problems]


def test_wrong_values_and_missing_files_are_told_together_by_the_fields_they_stand_in(tmp_path):
    form = Form(TrainLoraConfig, "train-lora", Drafts(tmp_path))
    contents = {"network_dim": "0", "dit": str(tmp_path / "no.safetensors"), "dataset": str(tmp_path / "nö")}
    assert refused(lambda: form.config_of(contents)) == ["network_dim", "dit", "dataset"]


def test_a_missing_file_is_told_when_its_field_is_left(tmp_path):
    form = Form(TrainLoraConfig, "train-lora", Drafts(tmp_path))
    assert "does not exist" in form._left("dit", str(tmp_path / "no.safetensors"), "")
    assert form._left("dit", "", "") == ""


def test_what_is_left_in_a_folders_fields_does_not_count_beside_a_dataset_file(tmp_path):
    file = tmp_path / "set.toml"
    (tmp_path / "a.png").touch()
    file.write_text('[[datasets]]\nimage_directory = "."\n', encoding="utf-8")
    form = Form(TrainLoraConfig, "train-lora", Drafts(tmp_path))
    left = {"dit": str(file), "resolution": "768", "num_repeats": "x", "batch_size": "4"}
    config = form.config_of({**left, "dataset_config": str(file)})
    assert (config.resolution, config.num_repeats, config.batch_size) == ((1024, 1024), 1, 1)
    assert "must be a whole number" in form._left("num_repeats", "x", "")


def test_a_dropped_file_is_called_by_its_name(tmp_path):
    form = Form(TrainLoraConfig, "train-lora", Drafts(tmp_path))
    form.problems = "problems"
    file = tmp_path / ("0a" * 32) / "my settings.toml"
    told = form.complain(UserError.one("config_file", file, "is not UTF-8 text"))["problems"]
    assert "config_file = my settings.toml: is not" in told


def test_a_model_of_the_wrong_kind_makes_no_run(tmp_path):
    desk = Desk(GuiConfig(), tmp_path)
    wrong = tmp_path / "picture.safetensors"
    wrong.write_bytes(b"no header at all")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    config = TrainLoraConfig(dit=wrong, dataset=tmp_path / "pictures", runs_dir=desk.runs_dir)
    assert refused(lambda: lora_tab(desk, Live())._start(config, frozenset())) == ["dit"]
    assert desk.runs.states() == []


def test_converting_onto_a_file_that_exists_is_refused_beside_the_field(tmp_path):
    there = tmp_path / "b.safetensors"
    there.write_bytes(b"x")
    desk = Desk(GuiConfig(), tmp_path)
    tab = ConvertTab(desk, Live())
    tab.file, tab.forms["convert-lora"].fields = "file", {"output": "out"}
    action = next(one for one in ACTIONS if one.key == "convert-lora")
    assert refused(lambda: tab._begin(action, {"file": str(GOLDEN_LORA), "out": str(there)})) == ["output"]
    assert desk.runs.states() == []


def test_an_emptied_file_field_starts_nothing(tmp_path):
    """Its empty text would mean the working folder."""
    desk = Desk(GuiConfig(), tmp_path)
    tab = ConvertTab(desk, Live())
    tab.file, tab.choice, tab.answer = "file", "choice", "answer"
    tab.forms["convert-lora"].fields = {"output": "out"}
    data = {"file": " ", "choice": "convert-lora", "out": str(tmp_path / "b.safetensors")}
    assert "Look into a file" in tab._start(data)["answer"]


def test_the_settings_of_a_run_leave_nothing_of_what_stood_in_the_form(tmp_path):
    desk = Desk(GuiConfig(), tmp_path)
    run = RunFolder.create(desk.runs_dir, "generate", "", GenerateConfig(prompt="a fox"))
    tab = GenerateTab(desk, Live())
    tab.answer, tab.form.files, tab.form.strengths = "answer", [], []
    tab.form.fields = {"prompt": "prompt", "grid_x": "grid"}
    tab.form.keep({"grid_x": "seed=1..4", "mask_path": "mask.png"})
    updates = tab._do({}, Action("settings", {"run": run.folder.name}))
    assert updates["prompt"]["value"] == "a fox" and updates["grid"]["value"] == ""
    assert not desk.drafts.load("generate")["mask_path"]


def test_of_two_runs_put_into_the_queue_together_the_one_that_computes_is_watched(tmp_path):
    desk = Desk(GuiConfig(), tmp_path)
    first = RunFolder.create(desk.runs_dir, "cache-latents", "", "", gpu=True)
    second = RunFolder.create(desk.runs_dir, "cache-text", "", "", gpu=True)
    first.begin()
    runs = JobPanel(desk, ("cache-latents", "cache-text"), (), "")
    seen = []
    for chosen in ("", second.folder.name):
        runs._look(chosen, lambda view: seen.append(view.folder) or runs._status(view))
    first.end("done")
    assert seen == [first.folder, second.folder]
