"""Stopping a real process: stop file, Ctrl-C once and twice, terminate, kill."""

import os
import signal
import subprocess

import pytest
from fake_engine import command_line, wait_for

from zimage_gui.jobs import launch
from zimage_gui.jobs.state import judge
from zimage_gui.jobs.status import read_status

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def started(run):
    """The run as a process that has done its first step."""
    process = launch.spawn(command_line(run.folder, ""), run.folder / "console.log")
    wait_for(lambda: (read_status(run.folder).step or 0) >= 1)
    return process


def saved(run) -> bool:
    return (run.folder / "checkpoints" / "cats.safetensors").exists()


def test_a_stop_file_finishes_the_step_saves_and_ends_with_0(new_run):
    run = new_run(steps=10000)
    process = started(run)
    launch.ask_to_stop(run.folder)
    assert judge(run.folder).state in ("stopping", "stopped")
    assert process.wait(30) == 0
    assert judge(run.folder).state == "stopped" and saved(run)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_ends_with_130(new_run, number):
    run = new_run(steps=10000)
    process = started(run)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert judge(run.folder).state == "stopped" and saved(run)


@POSIX
def test_a_second_ctrl_c_leaves_at_once_without_saving(new_run):
    run = new_run(steps=10000, pause=3)  # long enough that the second one comes within the step
    process = started(run)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "the step is finished" in (run.folder / "console.log").read_text(encoding="utf-8"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    state = judge(run.folder)
    assert (state.state, state.error_kind, saved(run)) == ("stopped", "interrupted", False)


@POSIX
def test_terminate_leaves_now_even_in_the_middle_of_a_step(new_run):
    run = new_run(steps=10000, fail="hang")
    process = started(run)
    assert launch.terminate(run.folder)
    assert process.wait(30) == 130
    assert judge(run.folder).state == "stopped"


def test_kill_ends_what_does_not_listen_and_is_shown_as_stopped(new_run):
    run = new_run(steps=10000, fail="hang")
    process = started(run)
    assert launch.kill(run.folder)
    assert process.wait(30) != 0
    state = judge(run.folder)
    assert (state.state, "without saving" in state.message) == ("stopped", True)
    assert not launch.kill(run.folder)


@POSIX
def test_closing_the_terminal_saves_and_ends_even_though_nothing_can_be_printed(new_run):
    run = new_run(steps=10000)
    read, write = os.pipe()
    process = subprocess.Popen(
        command_line(run.folder, ""), stdout=write, stderr=write, env=launch.environment()
    )
    os.close(write)
    wait_for(lambda: (read_status(run.folder).step or 0) >= 1)
    os.close(read)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 130
    assert judge(run.folder).state == "stopped" and saved(run)


@POSIX
def test_the_process_does_not_share_the_windows_session(new_run):
    run = new_run(steps=10000)
    process = started(run)
    assert os.getsid(process.pid) != os.getsid(0)
    launch.kill(run.folder)
    process.wait(30)
