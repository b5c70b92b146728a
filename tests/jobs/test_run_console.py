"""console.log as the panel shows it, and readings of the machine."""

import errno
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.jobs.console import Tee, recorded, tail, visible
from zimage_gui.jobs.hints import DISK_FULL, OUT_OF_RAM, OUT_OF_VRAM, explain
from zimage_gui.jobs.readings import Gpu, Meter, disk_free_gb


def test_progress_bars_colours_and_control_characters_are_shown_as_a_terminal_shows_them():
    assert visible("10%\r50%\r100%") == "100%"
    assert visible("done\r") == "done"
    assert visible("\x1b[31mred\x1b[0m \x1b]0;title\x07text\x08") == "red text"


def test_the_tail_of_a_long_log_is_its_end_without_broken_characters(tmp_path):
    path = tmp_path / "console.log"
    path.write_bytes(("猫\n" * 5000 + "1%\r2%\nlast\r\n").encode())
    assert tail(path, 3, limit=1000) == ["猫", "2%", "last"]
    assert len(tail(path, 10_000, limit=1001)) < 300
    assert tail(tmp_path / "missing") == []


@given(st.binary(max_size=300), st.integers(1, 100))
def test_any_bytes_can_be_a_log(content, limit):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "console.log"
        path.write_bytes(content)
        assert all(line.isprintable() or "\t" in line for line in tail(path, 50, limit) if line.isascii())


def test_a_progress_line_is_kept_once_not_a_thousand_times(tmp_path):
    import io

    screen, log = io.StringIO(), io.StringIO()
    tee = Tee(screen, log)
    for number in range(1000):
        tee.write(f"\r{number}%")
    tee.write("\nend")
    tee.finish()
    assert log.getvalue() == "999%\nend\n"
    assert screen.getvalue().count("%") == 1000


def test_what_is_printed_in_a_terminal_stands_in_the_log_too(tmp_path, capsys):
    with recorded(tmp_path, "heading"):
        print("on both")
    assert capsys.readouterr().out == "on both\n"
    assert (tmp_path / "console.log").read_text(encoding="utf-8") == "heading\non both\n"


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", OUT_OF_VRAM),
        (MemoryError(), "out_of_memory", OUT_OF_RAM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", OUT_OF_RAM),
        (OSError(28, "No space left on device"), "disk_full", DISK_FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full", DISK_FULL),
    ],
)
def test_full_memory_and_full_disks_are_recognised(error, kind, hint):
    failed = explain(error)
    assert (failed.error_kind, failed.hint) == (kind, hint)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    try:
        __import__("no_such_package_of_ours")
    except ImportError as error:
        assert "pip install no_such_package_of_ours" in explain(error).hint


def test_a_disk_that_refuses_is_no_defect_of_ours():
    hint = explain(OSError(errno.EROFS, "Read-only file system", "/media/x")).hint
    assert "/media/x" in hint and "report" not in hint
    gone = explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "/media/x")).hint
    assert "/media/x" in gone and "drive" in gone


def test_an_unknown_error_says_that_it_is_a_defect_of_ours():
    failed = explain(KeyError("x"))
    assert failed.error_kind == "KeyError" and "report" in failed.hint


def test_readings_are_there_without_a_graphics_card_and_taken_once_a_second(tmp_path):
    meter = Meter(tmp_path)
    first = meter.read()
    assert 0 < first.ram_used_gb < first.ram_total_gb
    assert first.disk_free_gb is not None and first.disk_free_gb > 0
    assert meter.read() is first
    assert all(card.total_gb > 0 for card in first.gpus)


class Driver:
    """NVIDIA's library: one card whose driver gives no temperature, and one that has fallen off the bus."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        if index == 1:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=2 * 2**30, total=24 * 2**30)

    def nvmlDeviceGetName(self, handle):
        return b"Card of the test"

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        raise self.NVMLError("Not supported")


def test_a_card_that_gives_only_some_readings_is_shown_with_those(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    assert Meter(tmp_path).read().gpus == (Gpu(0, "Card of the test", 2.0, 24.0, 97, None),)


def test_a_missing_driver_means_no_card(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(tmp_path).read().gpus == ()


def test_a_driver_that_is_updated_under_us_is_opened_anew(tmp_path, monkeypatch):
    driver = Driver()
    driver.nvmlDeviceGetCount = lambda: driver.nvmlDeviceGetHandleByIndex(1)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    meter = Meter(tmp_path)
    assert meter.read().gpus == ()
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    time.sleep(1.05)
    assert len(meter.read().gpus) == 1


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert disk_free_gb(tmp_path / "a" / "b") == pytest.approx(disk_free_gb(tmp_path), rel=0.5)


def test_the_room_never_imports_torch():
    code = (
        "import importlib, pkgutil, sys, zimage_gui.jobs as room\n"
        "for module in pkgutil.iter_modules(room.__path__): importlib.import_module('zimage_gui.jobs.' + module.name)\n"
        "assert not {'torch', 'transformers', 'gradio', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
