"""How many cores a run takes."""

import os

import psutil
import pytest

from zimage_gui.jobs.processes import leave_a_core_free


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (8, "7")])
def test_one_core_is_left_to_the_rest_of_the_machine(cores, threads, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    leave_a_core_free()
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_the_users_own_number_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    leave_a_core_free()
    assert os.environ["OMP_NUM_THREADS"] == "5"
