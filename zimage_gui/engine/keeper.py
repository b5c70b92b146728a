"""What happens between updates: checkpoints, states, previews, in the order that loses least. Knows when and
under which names; must not know how a file is written (the method and `state` do) or how an update is made.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from zimage_gui.engine.checkpoints import Mark, OutputNames, Retention, drop
from zimage_gui.engine.methods import Method
from zimage_gui.engine.state import random_states, save_state
from zimage_gui.engine.trainer import Progress, Trainer
from zimage_gui.engine.trainer_state import state_of
from zimage_gui.engine.validation import Validation, ValidationTimes
from zimage_gui.events import Checkpoint, Note, Run, Stage
from zimage_gui.events import Validation as ValidationEvent
from zimage_gui.files import atomic_write


class PreviewMaker(Protocol):
    """Makes the pictures of one moment; never raises for a picture that fails."""

    def make(self, step: int, epoch: int | None) -> None: ...


@dataclass(frozen=True)
class PreviewTimes:
    """When previews are due; the options' names."""

    sample_every_n_steps: int | None = None
    sample_every_n_epochs: int | None = None
    sample_at_first: bool = False


@dataclass
class RunKeeper:
    """Keeps one run's results; of several processes only the first one's does. `describe(step, epoch)` gives
    a file's metadata, `facts` what a resume compares."""

    run: Run
    names: OutputNames
    method: Method
    trainer: Trainer
    retention: Retention
    save_states: bool
    describe: Callable[[int, int], dict[str, str]]
    facts: dict[str, Any]
    previews: PreviewMaker | None = None
    preview_times: PreviewTimes = PreviewTimes()
    sidecar: bytes | None = None
    validation: Validation | None = None
    validation_times: ValidationTimes = field(default_factory=ValidationTimes)
    results: list[Path] = field(default_factory=list)
    _newest: tuple[Mark, bool] | None = None
    _begun_at: int = 0
    _saving: bool = False
    _validated: int | None = None

    def at_start(self, progress: Progress) -> None:
        self._begun_at = progress.step
        if progress.step == 0:
            self._validate(progress)
            if self.preview_times.sample_at_first:
                self._preview(0, None)
        else:
            self._finish_dropping(progress)

    def after_step(self, progress: Progress) -> None:
        step, times = progress.step, self.preview_times
        if self.retention.due_after_step(step) and step < self.trainer.settings.total_steps:
            self.save(Mark(step=step), progress, self.save_states)
        if times.sample_every_n_steps and step % times.sample_every_n_steps == 0:
            self._preview(step, None)
        if (every := self.validation_times.validate_every_n_steps) and step % every == 0:
            self._validate(progress)

    def after_epoch(self, progress: Progress) -> None:
        """`progress.epoch` counts finished epochs here."""
        epoch, times = progress.epoch, self.preview_times
        if progress.step < self.trainer.settings.total_steps and self.retention.due_after_epoch(epoch):
            self.save(Mark(epoch=epoch), progress, self.save_states)
        if times.sample_every_n_epochs and epoch % times.sample_every_n_epochs == 0:
            self._preview(progress.step, epoch)
        if (every := self.validation_times.validate_every_n_epochs) and epoch % every == 0:
            self._validate(progress)

    def _preview(self, step: int, epoch: int | None) -> None:
        if self.previews is None and self.trainer.shards is None:
            return
        self.trainer.flush()
        previews = self.previews
        with self.trainer.averaged():
            self._first(lambda: None if previews is None else previews.make(step, epoch))

    def _first(self, work: Callable[[], object]) -> None:
        """Done by the first process, which the others help where they share out the weights."""
        processes, shards = self.trainer.processes, self.trainer.shards

        def done() -> None:
            work()

        if shards is not None:
            processes.once(done, shards.answer)
        elif processes.first:
            work()

    def _validate(self, progress: Progress) -> None:
        """Measure the held-out pictures, once at each step."""
        if self.validation is None or self._validated == progress.step:
            return
        self.trainer.flush()
        self._validated = step = progress.step
        validation, trainer = self.validation, self.trainer
        if trainer.shards is not None:  # every process runs the model, to the same end
            measured = trainer.validation_loss(validation)
            loss = trainer.processes.once(lambda: measured)
        else:
            loss = trainer.processes.once(lambda: trainer.validation_loss(validation))
        epoch = progress.epoch + (progress.position > 0)
        pictures = len(self.validation.items)
        self.run.emit(ValidationEvent(step=step, epoch=epoch, loss=loss, pictures=pictures))
        patience = self.trainer.patience
        if patience is not None and not self.trainer.patience_watches_loss:
            patience.look(step, loss)

    def at_stop(self, progress: Progress) -> None:
        """Everything a resume needs, and the result so far."""
        self.run.emit(Stage(name="stopping", text=f"Stopping after step {progress.step}: saving"))
        self._save_step(progress)

    def at_failure(self, progress: Progress) -> None:
        """The same before a run ends because of something else; what then fails too is not what to tell."""
        if self._saving or progress.step == self._begun_at or not self.trainer.processes.first:
            return
        text = f"The run cannot go on: saving what was trained until step {progress.step}"
        self.run.emit(Stage(name="stopping", text=text))
        with suppress(Exception):
            self._save_step(progress)

    def _save_step(self, progress: Progress) -> None:
        mark = Mark(step=progress.step)
        if self._newest != (mark, True):  # this very step may just have been saved, state and all
            self.save(mark, progress, True)

    def at_end(self, progress: Progress, with_state: bool) -> None:
        """The final file, and the state when it was asked for."""
        self._validate(progress)
        patience = self.trainer.patience
        if patience is not None and patience.over and progress.step < self.trainer.settings.total_steps:
            self.run.emit(Note(text=f"ended early at step {progress.step}: {patience.sentence()}"))
        self.run.emit(Stage(name="save", text="Saving the result"))
        self.save(Mark(), progress, with_state)
        if self.retention.due_after_step(progress.step):  # the final file takes the place of this step's
            self._drop_outdated(Mark(step=progress.step))

    def save(self, mark: Mark, progress: Progress, with_state: bool) -> None:
        """Write the weights, then the state, then drop what is outdated. Raises `NonFiniteLoss` instead of
        saving bad weights."""
        self._saving = True
        self.trainer.flush()
        epoch = progress.epoch + (progress.position > 0)
        if self.trainer.processes.first or self.trainer.shards is not None:
            with self.trainer.averaged():
                self._first(lambda: self._save_weights(mark, progress.step, epoch))
        if with_state:
            self._first(lambda: self._save_state(mark, progress, epoch))
        self._newest = (mark, with_state)
        self._drop_outdated(mark)
        self._saving = False

    def _save_weights(self, mark: Mark, step: int, epoch: int) -> None:
        path = self.names.weights(mark)
        count = self.method.export(path, self.describe(step, epoch))
        if self.sidecar is not None:
            atomic_write(self.names.sidecar(mark), self.sidecar)
        unit = "modules" if self.method.what == "lora" else "tensors"
        self.run.emit(Note(text=f"saved {path.name}; read back: {count} of {count} {unit} match"))
        self._tell(path, step, epoch, self.method.what)

    def _finish_dropping(self, progress: Progress) -> None:
        """A run that was killed between a save and the dropping of an older one left that one behind."""
        if self.retention.due_after_step(progress.step):
            self._drop_outdated(Mark(step=progress.step))
        if progress.position == 0 and self.retention.due_after_epoch(progress.epoch):
            self._drop_outdated(Mark(epoch=progress.epoch))

    def _drop_outdated(self, mark: Mark) -> None:
        if not self.trainer.processes.first:
            return
        for state in (False, True):
            if outdated := self.retention.outdated(mark, state):
                self._forget(drop(self.names, outdated, state))

    def _save_state(self, mark: Mark, progress: Progress, epoch: int) -> None:
        weights: dict[str, Tensor] = dict(self.method.named_parameters())
        if (shards := self.trainer.shards) is not None:
            weights = {name: shards.first_weight(name) for name in weights}
        values = {
            "weights": weights,
            "trainer": state_of(self.trainer),
            "random": random_states(),
            "run": self.facts
            | {"name": self.names.name, "saved_at": time.time(), "run_folder": self.run.folder.name},
        }
        folder = save_state(self.names.state(mark), values, self.names.pointer)
        self._tell(folder, progress.step, epoch, "state")

    def _tell(self, path: Path, step: int, epoch: int, what: Any) -> None:
        self.run.emit(Checkpoint(path=str(path), step=step, epoch=epoch, what=what))
        if path not in self.results:
            self.results.append(path)

    def _forget(self, path: Path | None) -> None:
        if path in self.results:
            self.results.remove(path)
