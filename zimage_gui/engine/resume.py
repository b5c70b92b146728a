"""Continuing a run from a state: which facts must agree, which may change, and where everything goes back to.
Knows states and options; must not know how a state is stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_gui.engine.loader import DatasetIndex
from zimage_gui.engine.methods import Method, load_parameters
from zimage_gui.engine.state import State, StateError, load_or_previous, restore_random_states
from zimage_gui.engine.trainer import Trainer
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run, Warning

_MUST_AGREE = ("what", "optimizer_type", "seed", "alpha")
_SHOULD_AGREE = (
    "gradient_accumulation_steps", "timestep_sampling", "discrete_flow_shift", "weighting_scheme",
    "mixed_precision",
    "lr_scheduler", "max_train_steps", "max_train_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A state read from disk."""

    state: State

    @property
    def folder(self) -> Path:
        return self.state.folder

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.state.values["run"]
        return facts

    @property
    def seed(self) -> int:
        return int(self.facts["seed"])

    @property
    def name(self) -> str:
        """The name its files have."""
        return str(self.facts["name"])

    @property
    def requested_name(self) -> str:
        """The name its options asked for, before a free one was chosen."""
        return str(self.facts["output_name"])


def facts_of(config: Any, method: Method, index: DatasetIndex) -> dict[str, Any]:
    """What a state remembers of its run beside weights and numbers."""
    output = getattr(config, "output", None)
    facts = {
        name: getattr(config, name) for name in ("optimizer_type", "seed", "learning_rate", *_SHOULD_AGREE)
    }
    return facts | {
        "what": method.what,
        "alpha": getattr(config, "alpha", None),
        "output_name": Path(output).stem if output is not None else config.output_name,
        "dataset": index.fingerprint,
    }


def load_resumed(config: Any, run: Run) -> Resumed:
    """Read the state `config.resume` names, or the newest whole one before it. Raises `UserError`."""
    try:
        state, passed = load_or_previous(Path(config.resume))
    except StateError as error:
        raise UserError.one(
            "resume", config.resume, f"cannot be resumed: {error}", "Choose another state"
        ) from error
    for sentence in passed:
        run.emit(Warning(text=f"{sentence}; the state before it is used"))
    missing = {"weights", "trainer", "random", "run"} - set(state.values)
    if missing:
        raise UserError.one(
            "resume", state.folder, f"lacks {', '.join(sorted(missing))}", "Choose another state"
        )
    progress = state.values["trainer"]["progress"]
    run.emit(
        Note(
            text=f"resuming from {state.folder.name}: step {progress['step']}, epoch {progress['epoch'] + 1}"
        )
    )
    return Resumed(state)


def restore(
    resumed: Resumed, config: Any, method: Method, trainer: Trainer, index: DatasetIndex, run: Run
) -> None:
    """Put weights, optimizer, schedule, position and random generators back. Raises `UserError` when the run
    is another one."""
    before, now = resumed.facts, facts_of(config, method, index)
    raise_if_any(
        Problem(
            name,
            str(now[name]),
            f"differs from the state's {before.get(name)}",
            "Use the state's, or start anew",
        )
        for name in _MUST_AGREE
        if before.get(name) != now[name]
    )
    if wrong := load_parameters(method, resumed.state.values["weights"]):
        rule = f"does not fit this run: {'; '.join(wrong[:5])}" + (
            f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        )
        raise UserError.one("resume", resumed.folder, rule, "Use the settings of the stopped run")
    trainer.restore(resumed.state.values["trainer"])
    restore_random_states(resumed.state.values["random"])
    changed = [
        f"{name} was {before.get(name)}, is {now[name]}"
        for name in _SHOULD_AGREE
        if before.get(name) != now[name]
    ]
    if changed:
        run.emit(Warning(text=f"the resumed run goes on with other settings: {'; '.join(changed)}"))
    if before.get("dataset") != index.fingerprint:
        run.emit(
            Warning(text="the pictures have changed since this state: the rest of the epoch is another one")
        )
    _apply_new_rate(before.get("learning_rate"), config.learning_rate, trainer, run)


def _apply_new_rate(before: float | None, now: float, trainer: Trainer, run: Run) -> None:
    """A learning rate changed between the runs holds from here on: the state's own is scaled."""
    if not before or before == now:
        return
    ratio = now / before
    for group in trainer.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if group.get(name) is not None:
                group[name] *= ratio
    trainer.schedule.base_lrs = [rate * ratio for rate in trainer.schedule.base_lrs]
    run.emit(Note(text=f"learning_rate changes from {before:g} to {now:g}"))
