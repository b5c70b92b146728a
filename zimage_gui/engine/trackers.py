"""A run that tells TensorBoard and Weights & Biases what it tells the window. Knows events and the trackers'
libraries; must not know what is trained.

A tracker that fails is left out from then on, with one warning: it never costs a run.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from zimage_gui.config.toml_io import read_text
from zimage_gui.errors import Problem, UserError
from zimage_gui.events import Event, Note, Run, Sample, Step, Validation, Warning

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
_NAME = "zimage"


class Tracker(Protocol):
    """Somewhere numbers and pictures go."""

    name: str

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class TrackedRun:
    """A run whose events go to trackers too, and to whoever else listens."""

    def __init__(self, run: Run, listeners: Mapping[str, Callable[[Event], None]]) -> None:
        self._run = run
        self._listeners = dict(listeners)

    @property
    def folder(self) -> Path:
        return self._run.folder

    def stop_requested(self) -> bool:
        return self._run.stop_requested()

    def emit(self, event: Event) -> None:
        self._run.emit(event)
        for name, listener in list(self._listeners.items()):
            try:
                listener(event)
            except Exception as error:  # a foreign library may raise anything
                del self._listeners[name]
                self._run.emit(Warning(text=f"{name} failed and gets nothing more of this run: {error}"))


def listener_of(tracker: Tracker) -> Callable[[Event], None]:
    """Hands the tracker what it can show."""

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            tracker.numbers(event.step, numbers_of(event))
        elif isinstance(event, Validation):
            tracker.numbers(event.step, {"loss/validation": event.loss})
        elif isinstance(event, Sample):
            tracker.picture(event.step, f"sample/{event.index}", Path(event.path))

    return listen


def numbers_of(event: Step) -> dict[str, float]:
    """The numbers of an update under the names that other trainers' charts have too."""
    values = {
        "loss/current": event.loss,
        "loss/average": event.loss_average,
        "lr/transformer": event.lr,
        "norm/gradient": event.grad_norm,
        "norm/layers_held": event.layers_held,
        "speed/samples_per_second": event.samples_per_second,
        "memory/vram_gb": event.vram_gb,
        "memory/ram_gb": event.ram_gb,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


class TensorBoard:
    """Event files that `tensorboard --logdir` shows."""

    name = "TensorBoard"

    def __init__(self, folder: Path, options: str, more: Mapping[str, Any]) -> None:
        # its writer alone: the rest of the package would import TensorFlow where it is installed
        writer = import_module("torch.utils.tensorboard.writer").SummaryWriter
        self._writer = writer(str(folder), **more)
        if options:
            self._writer.add_text("options", f"```\n{options}\n```")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        np = import_module("numpy")
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run in Weights & Biases."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, project: str, run_name: str, config: dict[str, Any], more: Any) -> None:
        self._library = import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {"project": project, "name": run_name, "dir": str(folder), "config": config}
        self._run = self._library.init(**(arguments | dict(more)))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._library.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


def tracking_problems(config: Any) -> list[Problem]:
    """Missing packages and a settings file that cannot be used."""
    found = []
    for tracker in config.trackers:
        package = _PACKAGES[tracker]
        if find_spec(package) is None:
            rule = f"needs the package {package}, which is not installed"
            found.append(Problem("log_with", tracker, rule, f"Install it (pip install {package})"))
    if config.trackers and config.log_tracker_config is not None and config.log_tracker_config.is_file():
        _settings(config)
    return found


def _settings(config: Any) -> dict[str, dict[str, Any]]:
    """Tables of `log_tracker_config` by tracker; none without it. Raises UserError when no tracker of the run
    has one."""
    if (path := config.log_tracker_config) is None:
        return {}
    names = " or ".join(f"[{kind}]" for kind in config.trackers)
    remedy = f"Write arguments of wandb.init or of TensorBoard's SummaryWriter below a line {names}"
    try:
        tables = tomllib.loads(read_text(path, "log_tracker_config"))
    except tomllib.TOMLDecodeError as error:
        raise UserError.one("log_tracker_config", path, f"is no TOML: {error}", remedy) from error
    found = {kind: tables[kind] for kind in config.trackers if isinstance(tables.get(kind), dict)}
    if not found:
        raise UserError.one("log_tracker_config", path, f"has no table {names}", remedy)
    return found


@contextmanager
def trackers_of(config: Any, run: Run, name: str) -> Iterator[dict[str, Callable[[Event], None]]]:
    """Listeners for the trackers that the options ask for; closed at the end, whatever it was."""
    folder = run.folder / "logs"
    if config.logging_dir is not None:
        folder = Path(config.logging_dir) / f"{config.log_prefix}{time.strftime('%Y%m%d%H%M%S')}"
    options = _shown_options(config) if config.log_config else {}
    found: dict[str, Callable[[Event], None]] = {}
    with ExitStack() as stack:
        for kind in config.trackers:
            try:
                tracker = _made(kind, config, folder, name, options)
            except Exception as error:
                run.emit(Warning(text=f"{kind} cannot be started and gets nothing of this run: {error}"))
                continue
            stack.callback(_closed, tracker, run)
            found[tracker.name] = listener_of(tracker)
            run.emit(Note(text=f"logging to {tracker.name} in {folder}"))
        yield found


def _made(kind: str, config: Any, folder: Path, name: str, options: dict[str, Any]) -> Tracker:
    project = config.log_tracker_name or _NAME
    more = _settings(config).get(kind, {})
    if kind == "tensorboard":
        shown = "\n".join(f"{key} = {value}" for key, value in options.items())
        return TensorBoard(folder / project, shown, more)
    if config.wandb_api_key:
        os.environ["WANDB_API_KEY"] = secret_text(config.wandb_api_key)
    return WandB(folder, project, config.wandb_run_name or name, options, more)


def _closed(tracker: Tracker, run: Run) -> None:
    try:
        tracker.close()
    except Exception as error:
        run.emit(Warning(text=f"{tracker.name} could not be closed properly: {error}"))


def secret_text(value: str) -> str:
    """A secret itself, or the first line of the file that holds it."""
    path = Path(value)
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0].strip() if path.is_file() else value
    except (OSError, ValueError):  # the secret itself is no path, or a file holds no text
        return value


def _shown_options(config: Any) -> dict[str, Any]:
    """The options without secrets (which a dump never has) and without paths, which tell of a machine."""
    values: dict[str, Any] = config.model_dump(mode="json")
    paths = {name for name, value in config if isinstance(value, Path) or _holds_paths(value)}
    return {
        name: value for name, value in values.items() if name not in paths and value not in (None, [], "")
    }


def _holds_paths(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Path) for item in value)
