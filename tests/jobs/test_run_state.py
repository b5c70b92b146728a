"""Judging a run from its folder: a process that is gone is never shown as running."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_engine import command_line, wait_for

from zimage_gui.jobs import launch
from zimage_gui.jobs.folder import RunFolder
from zimage_gui.jobs.processes import host_name, myself
from zimage_gui.jobs.reconcile import reconcile
from zimage_gui.jobs.state import RunList, cause_of_death, judge
from zimage_gui.jobs.status import Status, read_status, write_status


def pretend(run, **changes) -> None:
    """Write the status a process would have left."""
    me = myself()
    base = {"pid": me.pid, "process_created": me.created, "host": me.host, "heartbeat": time.time()}
    write_status(run.folder, run.status.model_copy(update=base | changes))


def test_a_killed_trainer_shows_failed_with_its_last_lines_within_five_seconds(new_run):
    run = new_run(steps=10000, text="last words")
    identity = launch.start(run.folder, command_line(run.folder, ""))
    wait_for(lambda: judge(run.folder).status.step >= 1)
    began = time.monotonic()
    os.kill(identity.pid, 9)
    state = wait_for(lambda: (found := judge(run.folder)).state == "failed" and found)
    assert time.monotonic() - began < 5
    assert "printed: last words" in state.console
    message = wait_for(lambda: "SIGKILL" in (text := judge(run.folder).message) and text)
    assert message == "The process was ended by the signal SIGKILL."


def test_a_process_that_dies_before_its_first_status_shows_failed_with_its_code(new_run):
    run = new_run()
    launch.start(run.folder, [sys.executable, "-c", "print('no module'); raise SystemExit(3)"])
    state = wait_for(
        lambda: (found := judge(run.folder)).state == "failed" and "code 3" in found.message and found
    )
    assert state.console == ("no module",)


def test_a_start_refused_by_the_command_line_shows_what_it_said(new_run):
    run = new_run()
    launch.start(run.folder, [sys.executable, "-c", "print('dit: does not exist'); raise SystemExit(2)"])
    state = wait_for(lambda: (found := judge(run.folder)).error_kind == "user" and found)
    assert (state.state, state.message) == ("failed", "dit: does not exist")


def test_a_recycled_process_number_is_not_the_run(new_run):
    run = new_run()
    pretend(run)
    assert judge(run.folder).state == "running"
    pretend(run, process_created=myself().created - 1000, heartbeat=time.time() - 60)
    assert judge(run.folder).state == "failed"


def test_a_clock_set_during_the_run_does_not_end_it(new_run):
    run = new_run()
    pretend(run, process_created=myself().created - 1000, heartbeat=time.time())
    assert judge(run.folder).state == "running"


def test_a_run_of_another_machine_lives_by_its_heartbeat(new_run):
    run = new_run()
    pretend(run, pid=2**22 + 1, host="elsewhere")
    assert judge(run.folder).state == "running"
    pretend(run, pid=2**22 + 1, host="elsewhere", heartbeat=time.time() - 300)
    assert judge(run.folder).state == "failed"


def test_a_process_that_hangs_is_running_but_silent(new_run):
    run = new_run()
    pretend(run, heartbeat=time.time() - 100)
    state = judge(run.folder)
    assert state.state == "running" and state.silent > 90


def test_a_new_run_is_queued_and_one_never_started_fails(new_run):
    run = new_run()
    assert judge(run.folder).state == "queued"
    write_status(run.folder, run.status.model_copy(update={"created": time.time() - 100}))
    assert (judge(run.folder).state, judge(run.folder).error_kind) == ("failed", "never_started")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff\xfe", b"{" * 100000])
def test_a_damaged_status_is_shown_as_failed_and_breaks_nothing(new_run, content):
    run = new_run()
    (run.folder / "status.json").write_bytes(content)
    state = judge(run.folder)
    assert (state.state, state.error_kind, state.status.command) == ("failed", "damaged", "train-lora")


def test_the_last_event_tells_what_a_full_disk_kept_out_of_the_status(new_run):
    run = new_run()
    pretend(run, pid=2**22 + 1)
    finished = {"kind": "finished", "outcome": "done", "results": ["a"]}
    (run.folder / "events.jsonl").write_text(json.dumps(finished) + '\n{"kind": "st', encoding="utf-8")
    assert judge(run.folder).state == "finished"


def test_a_folder_that_is_no_run_has_no_state(tmp_path):
    assert judge(tmp_path) is None
    assert judge(tmp_path / "missing") is None
    assert RunList(tmp_path / "missing").states() == []


def test_little_free_memory_before_a_kill_is_named_as_the_cause():
    status = Status(heartbeat=time.time(), ram_free_gb=0.4, ram_total_gb=16)
    message, hint = cause_of_death(status, {"returncode": -9})
    assert "memory ran out: 0.4 of 16 GB" in message and "resumed" in hint


def test_a_run_before_the_last_boot_was_cut_by_it():
    message, _ = cause_of_death(Status(heartbeat=1000.0), {})
    assert "restarted or lost power" in message


def test_a_restarted_window_adopts_the_living_and_records_the_dead(new_run, runs):
    alive, dead, waiting = new_run("alive"), new_run("dead"), new_run("waiting")
    pretend(alive)
    pretend(dead, pid=2**22 + 1)
    (waiting.folder / "queue.json").write_text('{"order": 1}', encoding="utf-8")
    for place in (dead.folder, dead.folder / "checkpoints", alive.folder):
        (place / f".cats.safetensors.{2**22 + 1}-00000000.zimage-tmp").write_bytes(b"half")
    found = reconcile(runs)
    assert [state.folder for state in found.alive] == [alive.folder]
    assert [state.folder for state in found.queued] == [waiting.folder]
    assert [state.folder for state in found.died] == [dead.folder]
    assert read_status(dead.folder).outcome == "failed" and read_status(alive.folder).outcome is None
    assert not list(dead.folder.rglob("*.zimage-tmp")) and list(alive.folder.glob("*.zimage-tmp"))
    assert reconcile(runs).died == ()


WINDOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_engine import command_line
from zimage_gui.jobs.queue import Queue
queue = Queue(Path(sys.argv[1]), command_line)
queue.add(next(Path(sys.argv[1]).glob("*_train-lora_*")))
queue.start_next()
time.sleep(600)
"""


def test_killing_the_window_leaves_its_run_alive_and_the_next_window_shows_it_to_its_end(new_run, runs):
    run = new_run(steps=10000)
    here = os.path.dirname(sys.modules["fake_engine"].__file__)
    window = subprocess.Popen([sys.executable, "-c", WINDOW, str(runs), here], start_new_session=True)
    wait_for(lambda: judge(run.folder).status.step >= 1)
    os.killpg(window.pid, signal.SIGKILL)
    window.wait()
    (adopted,) = reconcile(runs).alive
    assert adopted.folder == run.folder
    step = adopted.status.step
    wait_for(lambda: judge(run.folder).status.step > step)
    launch.ask_to_stop(run.folder)
    assert wait_for(lambda: judge(run.folder).state == "stopped")
    assert not list(run.folder.glob("exit.json"))


def test_what_has_ended_is_read_once(new_run, runs):
    run = new_run()
    write_status(run.folder, run.status.model_copy(update={"outcome": "done"}))
    listing = RunList(runs)
    assert [state.state for state in listing.states()] == ["finished"]
    (run.folder / "status.json").write_bytes(b"overwritten by a test")
    assert [state.state for state in listing.states()] == ["finished"]


def test_the_host_tells_containers_apart():
    assert host_name() == myself().host != ""


def test_a_run_opened_again_after_its_process_died_may_go_on(new_run):
    run = new_run()
    pretend(run, pid=2**22 + 1)
    assert RunFolder.open(run.folder).folder == run.folder
