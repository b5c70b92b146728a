"""Continuing a run from a state: which facts must agree, which may change, and where everything goes back to.
Knows states and options; must not know how a state is stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zimage_gui.config.parallel_parts import processes_of
from zimage_gui.engine.finetuning import trains_model
from zimage_gui.engine.loader import DatasetIndex
from zimage_gui.engine.methods import Method, load_parameters
from zimage_gui.engine.state import State, StateError, load_or_previous, restore_random_states
from zimage_gui.engine.trainer import Trainer
from zimage_gui.engine.trainer_state import put_back
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run, Warning
from zimage_gui.events import Resumed as ResumedRun

# The state brings the arguments of optimizer and scheduler class back: other ones would have no effect.
_MUST_AGREE = ("optimizer_type", "optimizer_args", "lr_scheduler_type", "lr_scheduler_args", "seed")
_LORA_MUST_AGREE = ("network_module", "network_dim", "use_rslora", "loraplus_lr_ratio", "network_reg_lrs")
_SHOULD_AGREE = (
    "gradient_accumulation_steps", "timestep_sampling", "discrete_flow_shift", "sigmoid_scale",
    "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "min_timestep", "max_timestep",
    "preserve_distribution_shape", "num_timestep_buckets", "loss_type", "huber_c", "huber_schedule",
    "min_snr_gamma", "noise_offset", "unmasked_weight",
    "mixed_precision", "max_grad_norm", "lr_scheduler", "lr_warmup_steps",
    "max_train_steps", "max_train_epochs", "ema_decay", "early_stop", "early_stop_patience",
)  # fmt: skip
_LORA_SHOULD_AGREE = (
    "network_dropout", "rank_dropout", "module_dropout", "base_weights_multiplier", "base_quant",
    "scale_weight_norms",
)  # fmt: skip
_MODEL_MUST_AGREE = ("full_bf16", "stochastic_rounding")  # the optimizer's averages have their formats
_WARNED = (*_SHOULD_AGREE, *_LORA_SHOULD_AGREE, "processes", "fused_backward_pass", "dit", "base_weights")


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
    names = [*_MUST_AGREE, "learning_rate", *_SHOULD_AGREE]
    names += [*_LORA_MUST_AGREE, *_LORA_SHOULD_AGREE, *_MODEL_MUST_AGREE, "fused_backward_pass"]
    return {name: getattr(config, name) for name in names if hasattr(config, name)} | {
        "what": method.what,
        "dit": Path(config.dit).name,
        "base_weights": tuple(Path(path).name for path in getattr(config, "base_weights", ())),
        "alpha": getattr(config, "alpha", None),
        "output_name": Path(output).stem if output is not None else config.output_name,
        "dataset": index.fingerprint,
        "processes": processes_of(config),
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
    resumed = Resumed(state)
    try:
        progress = state.values["trainer"]["progress"]
        place = f"step {int(progress['step'])}, epoch {int(progress['epoch']) + 1}"
        if not (resumed.name and resumed.requested_name and resumed.seed >= 0 and state.values["weights"]):
            raise ValueError("it names no run")
        if not all(isinstance(tensor, Tensor) for tensor in state.values["weights"].values()):
            raise ValueError("its weights are no tensors")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(state.folder, error) from error
    run.emit(Note(text=f"resuming from {state.folder.name}: {place}"))
    if earlier := resumed.facts.get("run_folder"):  # older states do not say
        run.emit(ResumedRun(run=str(earlier), step=int(progress["step"])))
    return resumed


def _unusable(folder: Path, error: Exception) -> UserError:
    rule = f"cannot be resumed: it is damaged ({type(error).__name__}: {error})"
    return UserError.one("resume", folder, rule, "Choose another state")


def _differs(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both know `name` (older states have fewer facts) and disagree; case means nothing in a name."""
    if name not in before or name not in now:
        return False
    one, other = (
        list(value)
        if isinstance(value, list | tuple)
        else value.casefold()
        if isinstance(value, str)
        else value
        for value in (before[name], now[name])
    )
    return bool(one != other)


def _shown(value: object) -> str:
    return (" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)) or "empty"


def disagreements(config: Any, folder: Path, before: dict[str, Any]) -> list[Problem]:
    """Options without which the state in `folder`, of a run with the facts `before`, goes into no run."""
    what = "model" if trains_model(config) else "lora"
    if before.get("what", what) != what:
        kind, command = ("LoRA", "train-lora") if what == "model" else ("finetune", "finetune")
        rule = f"is the state of a {kind}, which this command cannot go on with"
        return [Problem("resume", str(folder), rule, f"Use {command}")]
    names = [*_MUST_AGREE, *_LORA_MUST_AGREE, *_MODEL_MUST_AGREE]
    now = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if config.seed is None:  # the state's then
        del now["seed"]
    found = [_disagreement(name, before[name], now[name]) for name in names if _differs(name, before, now)]
    alpha = getattr(config, "alpha", None)
    if before.get("alpha", alpha) != alpha and not any(problem.option == "network_dim" for problem in found):
        found.append(_disagreement("network_alpha", before["alpha"], alpha))
    return found


def _disagreement(name: str, before: object, now: object) -> Problem:
    rule = f"differs from the state's {_shown(before)}"
    return Problem(name, _shown(now), rule, "Use the state's, or start anew")


def restore(
    resumed: Resumed, config: Any, method: Method, trainer: Trainer, index: DatasetIndex, run: Run
) -> None:
    """Put weights, optimizer, schedule, position and random generators back. Raises `UserError` when the run
    is another one."""
    before, now = resumed.facts, facts_of(config, method, index)
    raise_if_any(disagreements(config, resumed.folder, before))
    if wrong := load_parameters(method, resumed.state.values["weights"]):
        rule = f"does not fit this run: {'; '.join(wrong[:5])}" + (
            f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        )
        raise UserError.one("resume", resumed.folder, rule, "Use the settings of the stopped run")
    try:
        put_back(trainer, resumed.state.values["trainer"])
        restore_random_states(resumed.state.values["random"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unusable(resumed.folder, error) from error
    changed = [
        f"{name} was {_shown(before[name])}, is {_shown(now[name])}"
        for name in _WARNED
        if _differs(name, before, now)
    ]
    if changed:
        run.emit(Warning(text=f"the resumed run goes on with other settings: {'; '.join(changed)}"))
    if before.get("dataset") != index.fingerprint:
        run.emit(
            Warning(
                text="the pictures, captions or batch sizes have changed since this state: "
                "the rest of the epoch is another one"
            )
        )
    if (step := trainer.progress.step) >= (total := trainer.settings.total_steps):
        run.emit(Warning(text=f"the state is at step {step} and the run ends at {total}: nothing is trained"))
    _fit_position(_batches_per_update(before), _batches_per_update(now), trainer, run)
    _apply_new_rate(before.get("learning_rate"), config.learning_rate, trainer, run)


def _batches_per_update(facts: dict[str, Any]) -> int:
    return int(facts.get("gradient_accumulation_steps", 1)) * int(facts.get("processes", 1))


def _fit_position(before: int, now: int, trainer: Trainer, run: Run) -> None:
    """The place within the epoch is kept in updates, which may hold another number of batches now."""
    progress = trainer.progress
    seen = progress.position * before
    progress.position = seen // now
    if again := seen % now:
        text = f"{again} batches of this epoch come again: an update holds {now} instead of {before}"
        run.emit(Note(text=text))


def _apply_new_rate(before: float | None, now: float, trainer: Trainer, run: Run) -> None:
    """A learning rate changed between the runs holds from here on: the state's own is scaled."""
    if before is None or before == now:
        return

    def changed(rate: float) -> float:
        return rate * (now / before) if before else now  # a rate of 0 cannot be scaled

    groups = trainer.optimizer.param_groups
    for group in groups:
        for name in ("lr", "initial_lr"):
            if group.get(name) is not None and not group.get("own_rate"):
                group[name] = changed(group[name])
    trainer.schedule.base_lrs = [
        float(rate) if group.get("own_rate") else changed(float(rate))
        for group, rate in zip(groups, trainer.schedule.base_lrs, strict=True)
    ]
    run.emit(Note(text=f"learning_rate changes from {before:g} to {now:g}"))
