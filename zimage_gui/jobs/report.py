"""Knows how to pack a run for a bug report: settings, story, log and machine, without secrets or weights.

Reads the run folder only; sends nothing anywhere.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import zimage_gui
from zimage_gui.errors import UserError
from zimage_gui.files import atomic_write
from zimage_gui.jobs.console import CONSOLE_FILE
from zimage_gui.jobs.folder import CONFIG_FILE, EVENTS_FILE
from zimage_gui.jobs.readings import Meter
from zimage_gui.jobs.redact import redact
from zimage_gui.jobs.state import EXIT_FILE, LAUNCH_FILE, judge
from zimage_gui.jobs.status import STATUS_FILE

PACKAGES = (
    "torch",
    "gradio",
    "safetensors",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "pydantic",
    "pillow",
)
# The end of a log tells what went wrong, its beginning what was asked for.
_FROM_EACH_END = 500_000


def write_report(folder: Path, target: Path) -> Path:
    """Write a zip of a run's small text files to `target`, whole or not at all; returns `target`.

    Values of secret environment variables, tokens and the name of the home folder are replaced. Pictures,
    captions files and weights are left out; prompts stand in the settings. Raises UserError when `folder`
    is no run folder, OSError when `target` cannot be written.
    """
    state = judge(folder)
    if state is None:
        raise UserError.one("run_folder", folder, "must be a run folder", "Choose one from the runs folder")
    machine = {"state": state.state, "message": state.message, **_machine(folder)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("machine.json", _clean(json.dumps(machine, indent=1, ensure_ascii=False)))
        for name in (CONFIG_FILE, STATUS_FILE, LAUNCH_FILE, EXIT_FILE, EVENTS_FILE, CONSOLE_FILE):
            text = _both_ends(folder / name)
            if text is not None:
                archive.writestr(name, _clean(text))
    return atomic_write(target, content.getvalue())


def _machine(folder: Path) -> dict[str, object]:
    packages = {"zimage-gui": zimage_gui.__version__}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "readings": asdict(Meter(folder).read()),
    }


def _both_ends(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size <= 2 * _FROM_EACH_END:
                return file.read().decode("utf-8", "replace")
            start = file.read(_FROM_EACH_END).decode("utf-8", "replace")
            file.seek(-_FROM_EACH_END, 2)
            end = file.read(_FROM_EACH_END).decode("utf-8", "replace")
    except OSError:
        return None
    return f"{start}\n[{size - 2 * _FROM_EACH_END} bytes left out]\n{end}"


def _clean(text: str) -> str:
    text = redact(text)
    home = str(Path.home())
    # In JSON and TOML a Windows path has its backslashes doubled.
    for spelling in (home, home.replace("\\", "\\\\")) if len(home) > 1 else ():
        text = text.replace(spelling, "~")
    return text
