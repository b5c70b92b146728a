"""What a training sends elsewhere: TensorBoard, Weights & Biases, Hugging Face. No network is used."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_helpers import equal, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_project import lora_config

from zimage_gui.config.sharing_parts import hub_place
from zimage_gui.engine.trackers import secret_text
from zimage_gui.engine.train import check
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Step, Validation, Warning

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_tensorboard_gets_every_loss_and_the_pictures(project: Path) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text("a red picture --w 32 --h 32 --s 1\n", encoding="utf-8")
    options = {"logging_dir": project / "logs", "log_prefix": "mine-", "log_config": True}
    options |= {"sample_prompts": prompts, "sample_every_n_steps": 2, "validation_split": 0.3}
    settings = project / "tracker.toml"
    settings.write_text('[tensorboard]\nfilename_suffix = ".cats"\n', encoding="utf-8")
    options["log_tracker_config"] = settings
    reporter, _ = train(lora_config(project, **options))
    (folder,) = (project / "logs").glob("mine-20*/zimage")
    assert [path.suffix for path in folder.iterdir()] == [".cats"]
    written = EventAccumulator(str(folder)).Reload()
    steps = reporter.of(Step)
    found = [(one.step, one.value) for one in written.Scalars("loss/current")]
    assert found == [(step.step, pytest.approx(step.loss)) for step in steps]
    held_out = [(event.step, pytest.approx(event.loss)) for event in reporter.of(Validation)]
    assert held_out and [(one.step, one.value) for one in written.Scalars("loss/validation")] == held_out
    assert {one.step for one in written.Images("sample/0")} == {2, 4}
    shown = written.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "network_dim = 2" in shown and str(project) not in shown


class FakeWandb:
    """Records what the library is asked to do."""

    def __init__(self) -> None:
        self.began: dict[str, object] = {}
        self.logged: list[tuple[int, dict[str, object]]] = []
        self.finished = 0

    def init(self, **arguments: object) -> "FakeWandb":
        self.began = arguments
        return self

    def log(self, values: dict[str, object], step: int) -> None:
        if step == 3:
            raise ConnectionError("the network is gone")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(project: Path, monkeypatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("zimage_gui.engine.trackers.find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (project / "key.txt").write_text("hunter2hunter2\n", encoding="utf-8")
    settings = project / "tracker.toml"
    settings.write_text('[wandb]\ntags = ["cats"]\n', encoding="utf-8")
    config = lora_config(
        project, log_with="wandb", log_tracker_name="cats", wandb_run_name="first", log_config=True,
        log_tracker_config=settings, wandb_api_key=str(project / "key.txt"),
    )  # fmt: skip
    reporter, results = train(config)
    assert results and [step for step, _ in fake.logged] == [1, 2] and fake.finished == 1
    assert (fake.began["project"], fake.began["name"], fake.began["tags"]) == ("cats", "first", ["cats"])
    assert "hunter2" not in repr(fake.began) and "dit" not in fake.began["config"]  # type: ignore[operator]
    warned = [event.text for event in reporter.of(Warning) if "network is gone" in event.text]
    assert len(warned) == 1 and "hunter2" not in "".join(map(str, reporter.events))


class FakeHub:
    """A repository that is a folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: list[tuple[str, bool]] = []

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok and repo_type == "model"
        self.made.append((name, private))

    def upload_file(self, *, path_or_fileobj: str, repo_id: str, path_in_repo: str, **_: object) -> None:
        if "step" in path_in_repo:
            raise ConnectionError("the network is slow")
        self._place(repo_id, path_in_repo).write_bytes(Path(path_or_fileobj).read_bytes())

    def upload_folder(self, *, folder_path: str, repo_id: str, path_in_repo: str, **_: object) -> None:
        shutil.copytree(folder_path, self._place(repo_id, path_in_repo))

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str], local_dir: Path, **_: object
    ) -> str:
        (folder,) = [pattern.removesuffix("/*") for pattern in allow_patterns]
        if (self.home / repo_id / folder).is_dir():
            shutil.copytree(self.home / repo_id / folder, local_dir / folder, dirs_exist_ok=True)
        return str(local_dir)

    def _place(self, repo_id: str, path: str) -> Path:
        target = self.home / repo_id / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("zimage_gui.engine.hub.api_of", lambda config: fake)
    return fake


@pytest.mark.parametrize("beside", [False, True])
def test_results_and_states_are_uploaded_and_a_run_goes_on_from_there(
    project: Path, hub: FakeHub, beside: bool
) -> None:
    whole = project / "whole"
    straight = train(lora_config(project, output_dir=whole, max_train_steps=6))[1][-1]
    options = {
        "huggingface_repo_id": "ann/cats", "huggingface_path_in_repo": "loras", "async_upload": beside,
        "save_state_to_huggingface": True, "save_every_n_steps": 2, "max_train_steps": 6, "save_state": True,
    }  # fmt: skip
    reporter, _ = train(lora_config(project, output_name="cats", **options), stop_at=4)
    assert hub.made == [("ann/cats", True)]
    names = {path.name for path in (hub.home / "ann/cats/loras").iterdir()}
    assert names == {"cats-step00000002-state", "cats-step00000004-state"}
    assert any("the network is slow" in event.text for event in reporter.of(Warning))
    shutil.rmtree(project / "out")
    place = "ann/cats/loras/cats-step00000004-state:main"
    resumed, results = train(
        lora_config(project, output_name="cats", huggingface_resume=place, max_train_steps=6)
    )
    assert [step.step for step in resumed.of(Step)] == [5, 6] and equal(results[-1], straight)
    assert results[-1].parent == project / "out"


def test_a_state_from_the_hub_replaces_nobodys_results_unless_asked(project: Path, hub: FakeHub) -> None:
    _, stopped = train(lora_config(project, output_name="cats"), stop_at=2)
    shutil.copytree(stopped[-1], hub.home / "ann/cats/cats-state")
    shutil.rmtree(project / "out")
    _, others = train(lora_config(project, output_name="cats", max_train_steps=1))
    before = others[-1].read_bytes()
    going_on = {"output_name": "cats", "huggingface_resume": "ann/cats/cats-state"}
    reporter, results = train(lora_config(project, **going_on))
    assert results[-1].name == "cats-2.safetensors" and others[-1].read_bytes() == before
    assert any("holds results named cats" in event.text for event in reporter.of(Warning))
    _, results = train(lora_config(project, **going_on, overwrite=True))
    assert results[-1] == others[-1] and others[-1].read_bytes() != before


def test_a_repository_that_cannot_be_made_and_a_state_that_is_not_there_are_told_before_training(
    project: Path, hub: FakeHub, monkeypatch
) -> None:
    with pytest.raises(UserError, match="has no folder nothing"):
        train(lora_config(project, huggingface_resume="ann/cats/nothing"))
    monkeypatch.setattr(hub, "create_repo", lambda *names, **options: json.loads("{"))
    with pytest.raises(UserError, match="huggingface_repo_id"):
        train(lora_config(project, huggingface_repo_id="ann/cats"))


def test_places_on_the_hub_are_read_and_what_leads_outside_is_not() -> None:
    assert hub_place("ann/cats/a/b-state") == ("ann/cats", "a/b-state", "main", "model")
    assert hub_place("ann/cats/s:v2:dataset") == ("ann/cats", "s", "v2", "dataset")
    for wrong in (
        "ann/cats",
        "ann",
        "ann/cats/../x",
        "ann/cats//x",
        "ann/cats/x:a:b:c",
        "ann/cats/x:a:zoo",
        "../a/b",
    ):
        assert hub_place(wrong) is None, wrong


def test_missing_packages_and_settings_are_named_before_training(project: Path, monkeypatch) -> None:
    monkeypatch.setattr("zimage_gui.engine.trackers.find_spec", lambda name: None)
    bad = project / "bad.toml"
    bad.write_text("[other]\n", encoding="utf-8")
    problems = check(lora_config(project, log_with="all"))
    assert [problem.value for problem in problems] == ["tensorboard", "wandb"]
    assert all("pip install" in problem.sentence() for problem in problems)
    monkeypatch.undo()
    (problem,) = check(lora_config(project, log_with="tensorboard", log_tracker_config=bad))
    assert problem.option == "log_tracker_config" and "no table [tensorboard]" in problem.sentence()
    bad.write_text("[tensorboard]\n", encoding="utf-8")
    monkeypatch.setattr("zimage_gui.engine.trackers.find_spec", lambda name: True)
    (problem,) = check(lora_config(project, log_with="wandb", log_tracker_config=bad))
    assert "no table [wandb]" in problem.sentence()
    told = check(lora_config(project, log_prefix="x", async_upload=True))
    assert {problem.option for problem in told} == {"log_prefix", "async_upload"}


def test_uploads_are_noted(project: Path, hub: FakeHub) -> None:
    reporter, _ = train(lora_config(project, huggingface_repo_id="ann/cats", max_train_steps=1))
    assert any("uploaded zimage.safetensors to ann/cats" in event.text for event in reporter.of(Note))


@pytest.mark.parametrize("secret", ["a\0b", "x" * 5000])
def test_a_secret_that_is_no_path_is_itself(secret: str) -> None:
    assert secret_text(secret) == secret


def test_a_file_that_holds_no_text_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff\xfe\x00")
    assert secret_text(str(path)) == str(path)
