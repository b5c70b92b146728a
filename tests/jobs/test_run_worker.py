"""The resident worker: the second picture does not load again, and nothing it does can hang the window."""

import os
import sys
import time
from pathlib import Path

import pytest
from fake_engine import Config, Spec, kinds, wait_for

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.errors import UserError
from zimage_gui.events import follow
from zimage_gui.jobs import launch
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.here import run_here
from zimage_gui.jobs.resident import ResidentWorker, pending
from zimage_gui.jobs.state import judge


@pytest.fixture
def worker(runs, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(sys.modules["fake_engine"].__file__))
    resident = ResidentWorker(runs, extra_arguments=["--maker", "fake_engine:Maker"])
    yield resident
    resident.release()
    wait_for(lambda: not resident.state().alive)


def picture(prompt="a cat", steps=2) -> GenerateConfig:
    return GenerateConfig(prompt=prompt, model_dir="models", infer_steps=steps)


def ended(folder):
    return wait_for(lambda: (state := judge(folder)).ended and state)


def events_of(folder):
    return follow(folder / "events.jsonl")[0]


def test_the_second_picture_does_not_load_again_and_the_worker_idles_cheaply(worker):
    first = worker.submit(picture())
    assert ended(first).state == "finished"
    pid = judge(first).pid
    second = worker.submit(picture())
    assert ended(second).state == "finished" and judge(second).pid == pid
    loads = [sum(getattr(event, "name", "") == "load" for event in events_of(run)) for run in (first, second)]
    assert loads == [1, 0]
    assert judge(second).status.results == (str(second / "samples" / "picture.png"),)
    wait_for(lambda: (now := worker.state()).loaded and not now.busy)
    import psutil

    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1)
    assert sum(process.cpu_times()[:2]) - before < 0.1


def test_a_picture_is_cancelled_within_a_step_and_a_waiting_one_before_it_begins(worker):
    long = worker.submit(picture(steps=1000))
    waiting = worker.submit(picture())
    wait_for(lambda: "note" in kinds(events_of(long)))
    worker.cancel(waiting)
    assert ended(waiting).message == "Cancelled before it began."
    began = time.monotonic()
    worker.cancel(long)
    assert ended(long).state == "stopped" and time.monotonic() - began < 3
    assert ended(worker.submit(picture())).state == "finished"


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSEGV"])
def test_a_killed_worker_is_shown_as_failed_and_the_next_request_gets_a_fresh_one(worker, way):
    killed = worker.submit(picture(way))
    assert ended(killed).state == "failed"
    assert any("Segmentation fault" in line for line in ended(killed).console) == (way == "SIGSEGV")
    fresh = worker.submit(picture())
    assert ended(fresh).state == "finished" and judge(fresh).pid != judge(killed).pid


def test_a_crashed_picture_is_explained_and_what_waits_is_done_by_a_fresh_process(worker):
    crashed = worker.submit(picture("crash"))
    waiting = worker.submit(picture())
    assert "driver" in ended(crashed).hint
    wait_for(lambda: worker.tend() or judge(waiting).ended)
    assert judge(waiting).state == "finished" and judge(waiting).pid != judge(crashed).pid


def test_a_training_run_gets_the_gpu_back_and_pictures_wait_for_it(worker, runs, new_run):
    assert ended(worker.submit(picture())).state == "finished"
    pid = worker.state().pid
    assert pid is not None
    training = new_run()
    spec = Spec()
    spec.gpu = True
    seen = []

    def refused(event):
        seen.append(event)
        if event.kind == "note":
            with pytest.raises(UserError, match="one after the other"):
                worker.submit(picture())

    assert run_here(spec, Config(steps=1), runs, listeners=[refused], run_folder=training.folder) == 0
    assert kinds(seen)[:2] == ["started", "stage"] and seen[1].name == "waiting"
    assert not worker.state().alive
    assert ended(worker.submit(picture())).state == "finished"


def test_the_real_engine_serves_a_second_picture_from_the_loaded_model(runs):
    hub = Path(__file__).parents[1] / "data" / "reference" / "hub"
    config = GenerateConfig(
        model_dir=hub,
        prompt="a red circle",
        image_size=(48, 64),
        infer_steps=2,
        seed=7,
        mixed_precision="no",
        device="cpu",
    )
    resident = ResidentWorker(runs)
    first, second = resident.submit(config), resident.submit(config)
    try:
        assert (
            wait_for(lambda: judge(second).ended, 60)
            and judge(first).state == judge(second).state == "finished"
        )
        assert kinds(events_of(first)).count("sample") == 1
        names = [getattr(event, "name", "") for event in events_of(second)]
        assert "generate" in names and "load" not in names
        pictures = [Path(judge(run).status.results[0]) for run in (first, second)]
        assert pictures[0] != pictures[1] and all(path.is_file() for path in pictures)
    finally:
        resident.release()
        wait_for(lambda: not resident.state().alive)


def test_an_idle_worker_leaves_by_itself(runs, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(sys.modules["fake_engine"].__file__))
    resident = ResidentWorker(runs, idle_seconds=0.3, extra_arguments=["--maker", "fake_engine:Maker"])
    assert ended(resident.submit(picture())).state == "finished"
    wait_for(lambda: not resident.state().alive)
    assert pending(runs) == []


def test_a_request_of_a_window_that_died_is_done_when_the_next_one_looks(worker, runs):
    run = RunFolder.create(runs, "generate", "", picture(), gpu=True)
    (run.folder / "request.json").write_text('{"time": 1}', encoding="utf-8")
    assert judge(run.folder).state == "queued"
    ResidentWorker(runs, extra_arguments=["--maker", "fake_engine:Maker"]).tend()
    assert ended(run.folder).state == "finished"


def test_a_hung_picture_can_be_killed(worker):
    hung = worker.submit(picture(steps=1000))
    wait_for(lambda: judge(hung).state == "running")
    assert launch.kill(hung)
    assert ended(hung).state == "stopped"
