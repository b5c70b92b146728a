"""Where the results of a run lie and what they are called. Knows names and the rules for keeping and dropping
old ones; must not know what is inside a file.

Names are the first seed's: `NAME.safetensors`, `NAME-000004.safetensors` (epoch),
`NAME-step00000250.safetensors`, the same with `-state` for state folders. The second seed's `train` writes
`NAME.step250.safetensors` instead.
"""

import contextlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zimage_gui.files import replace_file, sweep_temp_files, temp_path, unwritten

Naming = Literal["kohya", "dotted"]


@dataclass(frozen=True)
class Mark:
    """The moment a save stands for: after an epoch, after a step, or the end of the run (both None)."""

    epoch: int | None = None
    step: int | None = None

    def label(self, naming: Naming = "kohya") -> str:
        if self.epoch is not None:
            return f"-{self.epoch:06d}"
        if self.step is not None:
            return f"-step{self.step:08d}" if naming == "kohya" else f".step{self.step}"
        return ""


@dataclass(frozen=True)
class OutputNames:
    """All result paths of one run."""

    folder: Path
    name: str
    naming: Naming = "kohya"

    def weights(self, mark: Mark) -> Path:
        return self.folder / f"{self.name}{mark.label(self.naming)}.safetensors"

    def sidecar(self, mark: Mark) -> Path:
        """The second seed's `.lora.json` beside a LoRA."""
        return self.weights(mark).with_suffix(".lora.json")

    def state(self, mark: Mark) -> Path:
        return self.folder / f"{self.name}{mark.label()}-state"

    @property
    def pointer(self) -> Path:
        return self.folder / f"{self.name}-latest-state.json"

    @property
    def samples(self) -> Path:
        return self.folder / "sample"

    def taken(self) -> list[Path]:
        """Results that exist under this name already."""
        own = re.compile(
            re.escape(self.name) + r"(-\d{6}|-step\d{8}|\.step\d+)?(\.safetensors|\.lora\.json|-state)"
        )
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if own.fullmatch(path.name))

    def first_free(self) -> "OutputNames":
        """These names, or with `-2`, `-3` … behind the name when another run's results are there."""
        candidate, number = self, 2
        while candidate.taken():
            candidate = replace(self, name=f"{self.name}-{number}")
            number += 1
        return candidate


@dataclass(frozen=True)
class Retention:
    """When to save and how much to keep; the options' names, None for an option left out."""

    save_every_n_epochs: int | None = None
    save_every_n_steps: int | None = None
    save_last_n_epochs: int | None = None
    save_last_n_steps: int | None = None
    save_last_n_epochs_state: int | None = None
    save_last_n_steps_state: int | None = None

    def due_after_step(self, step: int) -> bool:
        return bool(self.save_every_n_steps) and step % (self.save_every_n_steps or 1) == 0

    def due_after_epoch(self, epoch: int) -> bool:
        return bool(self.save_every_n_epochs) and epoch % (self.save_every_n_epochs or 1) == 0

    def outdated(self, mark: Mark, state: bool) -> Mark | None:
        """The earlier save that goes once the one at `mark` is whole, or None. The first seed's rules: epochs
        go by number of saves, steps by distance in steps.
        """
        if mark.epoch is not None and self.save_every_n_epochs:
            last = (self.save_last_n_epochs_state if state else None) or self.save_last_n_epochs
            gone = mark.epoch - self.save_every_n_epochs * last if last else 0
            return Mark(epoch=gone) if gone > 0 else None
        if mark.step is not None and self.save_every_n_steps:
            last = (self.save_last_n_steps_state if state else None) or self.save_last_n_steps
            gone = (mark.step - last - 1) // self.save_every_n_steps * self.save_every_n_steps if last else 0
            return Mark(step=gone) if gone > 0 else None
        return None


def drop(names: OutputNames, mark: Mark, state: bool) -> Path | None:
    """Delete one earlier save of this run; returns what was deleted."""
    path = names.state(mark) if state else names.weights(mark)
    if state and path.is_dir() and not path.is_symlink():
        aside = temp_path(path)  # a kill while deleting must leave no half state under its name
        with contextlib.suppress(OSError):
            replace_file(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            return path
    if not state and path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
            names.sidecar(mark).unlink(missing_ok=True)
            return path
    return None


def prepare_folder(names: OutputNames) -> list[Path]:
    """Make the folder and sweep what killed processes left half done; returns what was swept."""
    try:
        names.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # Windows and network drives tell their rights only now
        raise unwritten(error, names.folder, "output_dir") from error
    return sweep_temp_files(names.folder) + sweep_temp_files(names.samples)
