"""The queue: one GPU job at a time, whoever asks, in an order that survives the window."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_engine import command_line, wait_for

from zimage_gui.errors import UserError
from zimage_gui.jobs import launch
from zimage_gui.jobs.lock import Busy, exclusive
from zimage_gui.jobs.queue import Queue, QueueRunner
from zimage_gui.jobs.state import RunList, judge
from zimage_gui.jobs.status import read_json, read_status

RACER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_engine import command_line
from zimage_gui.jobs.queue import Queue
queue = Queue(Path(sys.argv[1]), command_line)
while queue.waiting() or queue.running():
    queue.start_next()
"""


def test_jobs_run_one_after_the_other_in_their_order_and_a_moved_one_first(new_run, runs):
    queue = Queue(runs, command_line)
    names = ["one", "two", "three"]
    folders = {name: new_run(name, steps=2).folder for name in names}
    for name in names:
        queue.add(folders[name])
    queue.move(folders["three"], 0)
    assert queue.waiting() == [folders["three"], folders["one"], folders["two"]]
    runner = QueueRunner(queue)
    runner.start()
    try:
        wait_for(lambda: all(judge(folder).state == "finished" for folder in folders.values()), 40)
    finally:
        runner.close()
    assert spans_in_order([folders["three"], folders["one"], folders["two"]])


def test_two_processes_that_race_start_every_job_once_and_never_two_at_a_time(new_run, runs):
    queue = Queue(runs, command_line)
    folders = [new_run(f"job{number}", steps=2).folder for number in range(3)]
    for folder in folders:
        queue.add(folder)
    here = str(sys.modules["fake_engine"].__file__.rpartition("/")[0])
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(runs), here]) for _ in range(2)]
    try:
        assert [racer.wait(60) for racer in racers] == [0, 0]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert [judge(folder).state for folder in folders] == ["finished"] * 3
    assert spans_in_order(folders)
    assert all(
        (folder / "console.log").read_text(encoding="utf-8").count("printed:") == 1 for folder in folders
    )


def spans_in_order(folders) -> bool:
    """Each run began after the one before had ended."""
    began = [read_json(folder / "launch.json")["time"] for folder in folders]
    ended = [read_status(folder).ended for folder in folders]
    return all(end <= begin for end, begin in zip(ended, began[1:], strict=False))


def test_a_run_started_in_a_terminal_is_waited_for(new_run, runs):
    queue = Queue(runs, command_line)
    terminal = new_run("terminal", steps=10000)
    process = launch.spawn(command_line(terminal.folder, ""), terminal.folder / "console.log")
    wait_for(lambda: judge(terminal.folder).state == "running")
    queued = new_run("queued", steps=1)
    queue.add(queued.folder)
    assert queue.start_next() is None
    launch.ask_to_stop(terminal.folder)
    process.wait(30)
    assert queue.start_next() == queued.folder
    wait_for(lambda: judge(queued.folder).ended)


def test_a_job_that_needs_no_gpu_holds_nothing_up(new_run, runs):
    queue = Queue(runs, command_line)
    light = new_run("light", gpu=False, steps=10000)
    process = launch.spawn(command_line(light.folder, ""), light.folder / "console.log")
    wait_for(lambda: judge(light.folder).state == "running")
    assert queue.running() == []
    launch.kill(light.folder)
    process.wait(30)


def test_a_removed_job_is_never_started(new_run, runs):
    queue = Queue(runs, command_line)
    run = new_run()
    queue.add(run.folder)
    assert queue.remove(run.folder)
    assert not queue.remove(run.folder)
    assert queue.start_next() is None
    assert (judge(run.folder).state, judge(run.folder).message) == ("stopped", "Removed from the queue.")


def test_stop_on_a_waiting_job_keeps_it_from_starting(new_run, runs):
    queue = Queue(runs, command_line)
    run = new_run()
    queue.add(run.folder)
    launch.ask_to_stop(run.folder)
    assert queue.start_next() is None
    assert judge(run.folder).state == "stopped"


def test_a_starter_that_dies_between_taking_and_starting_leaves_a_failed_run_not_a_second_start(
    new_run, runs
):
    run = new_run()
    (run.folder / "launch.json").write_text(f'{{"time": {time.time() - 100}}}', encoding="utf-8")
    assert Queue(runs, command_line).start_next() is None
    assert judge(run.folder).error_kind == "never_started"


def test_only_new_runs_of_this_folder_can_be_queued(new_run, runs, tmp_path):
    with pytest.raises(UserError, match="must be a new run"):
        Queue(tmp_path / "other", command_line).add(new_run().folder)
    with pytest.raises(UserError, match="must be a new run"):
        Queue(runs, command_line).add(tmp_path)


def test_a_queue_file_of_rubbish_is_last_in_line(new_run, runs):
    queue = Queue(runs, command_line)
    good, bad = new_run("good"), new_run("bad")
    (bad.folder / "queue.json").write_bytes(b"\xff{")
    queue.add(good.folder)
    assert queue.waiting() == [good.folder, bad.folder]


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    code = "import sys,time\nfrom pathlib import Path\nfrom zimage_gui.jobs.lock import exclusive\nwith exclusive(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)"
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline().strip() == b"held"
    with pytest.raises(Busy), exclusive(path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with exclusive(path, wait=2):
        pass


def test_a_lock_file_of_rubbish_is_named(tmp_path):
    (tmp_path / "lock").write_bytes(b"no database at all" * 100)
    with pytest.raises(OSError, match="delete it"), exclusive(tmp_path / "lock"):
        pass


def test_a_folder_that_may_not_be_read_hides_no_run(new_run, runs, monkeypatch):
    """A disk's lost+found, as anyone but root sees it."""
    closed, stat = runs / "lost+found", os.stat
    closed.mkdir()

    def refused(path, *arguments, **more):
        if Path(os.fsdecode(path)).parent == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **more)

    queue, run = Queue(runs, command_line), new_run().folder
    queue.add(run)
    monkeypatch.setattr(os, "stat", refused)
    assert queue.waiting() == [run]
    assert [state.folder for state in RunList(runs).states()] == [run]
