"""`train-lora`, `train` and `finetune`: from options to a verified file. Knows the order of a run's stages;
each stage's work is elsewhere.
"""

import random
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zimage_gui.config.parallel_parts import Place, launched_place, shards_weights
from zimage_gui.engine import finetuning, preflight
from zimage_gui.engine.averages import WeightAverage
from zimage_gui.engine.caches import ensure_caches
from zimage_gui.engine.checkpoints import OutputNames, Retention, prepare_folder
from zimage_gui.engine.dataset.report import count_of
from zimage_gui.engine.dataset.sources import sources_of
from zimage_gui.engine.devices import pick_device, release_memory
from zimage_gui.engine.feed import LoaderFeed
from zimage_gui.engine.hub import fetch_state, uploads_of
from zimage_gui.engine.keeper import PreviewTimes, RunKeeper
from zimage_gui.engine.kernels import compile_blocks, compiler_of, set_cuda_switches
from zimage_gui.engine.loader import DatasetIndex, Loader
from zimage_gui.engine.memory_steps import recomputed_blocks
from zimage_gui.engine.memory_watch import MemoryWatch
from zimage_gui.engine.metadata import RunFacts, metadata_of, sidecar
from zimage_gui.engine.methods import FullMethod, Method
from zimage_gui.engine.model_files import plain_turbo
from zimage_gui.engine.networks import NormLimit, parameter_groups
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizer_extras import rate_warning
from zimage_gui.engine.optimizers import OptimizerError, build_optimizer, describe
from zimage_gui.engine.preview import Previews, encode_previews
from zimage_gui.engine.processes import Processes, device_of, joined
from zimage_gui.engine.resume import Resumed, facts_of, load_resumed, restore
from zimage_gui.engine.schedules import build_schedule
from zimage_gui.engine.shards import Shards
from zimage_gui.engine.show_timesteps import show as show_timesteps
from zimage_gui.engine.together import Together
from zimage_gui.engine.trackers import TrackedRun, trackers_of
from zimage_gui.engine.trained_model import method_of
from zimage_gui.engine.trainer import LoopSettings, NonFiniteLoss, Trainer
from zimage_gui.engine.validation import Patience, Validation, ValidationTimes
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.model.attention import use_backend
from zimage_gui.model.rows import kept


def check(config: Any) -> list[Problem]:
    """Everything that would stop the run, found without reading weights."""
    return preflight.check(config)


def run(config: Any, run: Run) -> list[Path]:
    """Train as `config` says; returns the paths of the results. Raises `UserError` for the user's mistakes,
    `Interrupted` when stopped while caching, and `NonFiniteLoss`."""
    run.emit(Stage(name="check", text="Checking the settings"))
    raise_if_any(preflight.check(config))
    place = launched_place() or Place(0, 1, 0)
    if config.show_timesteps is not None:
        shown, seed = config.show_timesteps, config.seed or 0
        return [] if place.rank else show_timesteps(_objective(config), seed, _sizes(config), shown, run)
    if place.count > 1:
        device = device_of(config.device, place.local, config.gpu_numbers, must=bool(config.gpus))
        config = config.model_copy(update={"device": str(device)})
    with ExitStack() as stack:
        device = pick_device(config.device)
        processes = stack.enter_context(joined(place.rank, place.count, device, config.ddp_timeout))
        if processes.first:
            logs = stack.enter_context(trackers_of(config, run, config.output_name))
            uploads = stack.enter_context(uploads_of(config, run))
            run = TrackedRun(run, logs | uploads)
        return _run(config, run, processes)


def _run(config: Any, run: Run, processes: Processes) -> list[Path]:
    config, _ = preflight.with_models(config)
    if config.huggingface_resume:
        config = config.model_copy(update={"resume": processes.once(lambda: fetch_state(config, run))})
    if words := plain_turbo(config, config.dit):
        run.emit(Warning(text=words))
    resumed = load_resumed(config, run) if config.resume is not None else None
    config = config.model_copy(update={"seed": processes.once(lambda: _seed(config, resumed))})
    run.emit(Note(text=f"seed {config.seed}"))
    names = processes.once(lambda: _names(config, run, resumed))
    watch = MemoryWatch(config, run, pick_device(config.device), names.folder)
    if processes.first:
        run = TrackedRun(run, watch.listeners())
    with watch.explaining():
        results = _work(config, run, names, resumed, watch, processes)
    watch.compare()
    return results


def _work(
    config: Any,
    run: Run,
    names: OutputNames,
    resumed: Resumed | None,
    watch: MemoryWatch,
    processes: Processes,
) -> list[Path]:
    """Cache what is missing, load, train."""
    index = processes.once(lambda: ensure_caches(config, run))
    device = pick_device(config.device)
    use_backend(config.attn_mode)
    set_cuda_switches(config)
    shows = config.sample_prompts and processes.first
    previews = encode_previews(config, run, names, index, device) if shows else None
    release_memory()
    _seed_everything(config.seed)
    method = method_of(config, run, device, processes)
    if compiler := compiler_of(config):
        compile_blocks(method.model, compiler)
        run.emit(Note(text="the blocks are compiled at the first step, which takes longer"))
    loader = Loader(
        index, config.seed, workers=config.max_data_loader_n_workers, persistent=True,
        pin=device.type == "cuda",
    )  # fmt: skip
    with loader:
        accumulation = config.gradient_accumulation_steps
        feed = LoaderFeed(loader, accumulation, processes.rank, processes.count)
        config = config.model_copy(update=watch.settled())
        return _train(config, run, names, method, feed, previews, resumed, processes)


def _train(
    config: Any,
    run: Run,
    names: OutputNames,
    method: Method,
    feed: LoaderFeed,
    previews: Previews | None,
    resumed: Resumed | None,
    processes: Processes,
) -> list[Path]:
    settings = _settings(config, feed, len(method.model.layers))
    trainer = _trainer(config, run, method, settings, processes)
    index = feed.loader.index
    if resumed is not None:
        restore(resumed, config, method, trainer, index, run)
    if trainer.shards is None:
        processes.share(method.parameters())
    if previews is not None:
        together = method.model if trainer.shards is None else Together(method.model, processes)
        previews.attach(together, method.autocast_dtype)
    keeper = _keeper(config, run, names, trainer, feed.loader, previews)
    _tell_plan(run, settings, method, index, trainer)
    try:
        if trainer.run(feed, keeper):
            keeper.at_end(trainer.progress, config.save_state or config.save_state_on_train_end)
    except NonFiniteLoss as error:
        raise _explained(error, keeper, config) from error
    return keeper.results


def _trainer(config: Any, run: Run, method: Method, settings: LoopSettings, processes: Processes) -> Trainer:
    """The loop with its optimizer, as before the first step."""
    network = getattr(method, "network", None)
    shards = _shards(config, method, processes)
    trained = method.parameters() if shards is None else shards.stand_ins
    groups = parameter_groups(config, network, trained)
    optimizer = build_optimizer(config.optimizer_type, config.optimizer_args, config.learning_rate, groups)
    if warning := rate_warning(optimizer):
        run.emit(Warning(text=warning))
    try:
        schedule = build_schedule(preflight.schedule_spec(config), optimizer, settings.total_steps)
    except OptimizerError as error:  # the length of a run in epochs is known only now
        raise UserError.one(
            "lr_scheduler_args", " ".join(config.lr_scheduler_args), str(error), "Fit it to the run"
        ) from error
    updates = finetuning.updates_of(config, optimizer)
    if shards is not None and updates is not None:
        shards.updating_with(optimizer, updates)
        updates = None
    objective = _objective(config)
    trainer = Trainer(method, optimizer, schedule, objective, settings, run, updates, processes, shards)
    if network is not None and config.scale_weight_norms is not None:
        trainer.limit = NormLimit(network, config.scale_weight_norms)
    trainer.swap = getattr(method, "swap", None)
    _watch(config, method, trainer)
    return trainer


def _keeper(
    config: Any, run: Run, names: OutputNames, trainer: Trainer, loader: Loader, previews: Previews | None
) -> RunKeeper:
    method, settings = trainer.method, trainer.settings
    network = getattr(method, "network", None)
    facts = RunFacts(
        names.name, config.seed, settings.total_steps, settings.total_epochs, time.time(),
        describe(trainer.optimizer, config.optimizer_args), loader.index, network,
    )  # fmt: skip
    beside = sidecar(config, network) if network is not None and names.naming == "dotted" else None
    return RunKeeper(
        run,
        names,
        method,
        trainer,
        retention=_from(Retention, config),
        save_states=config.save_state,
        describe=lambda step, epoch: metadata_of(config, facts, step, epoch),
        facts=facts_of(config, method, loader.index),
        previews=previews,
        preview_times=_from(PreviewTimes, config),
        sidecar=beside,
        validation=_validation(config, loader),
        validation_times=_from(ValidationTimes, config),
    )


def _shards(config: Any, method: Method, processes: Processes) -> Shards | None:
    if not shards_weights(config):
        return None
    shards = Shards(method, processes)
    if isinstance(method, FullMethod):
        method.whole = shards.first_weight
    return shards


def _watch(config: Any, method: Method, trainer: Trainer) -> None:
    """The average of the weights and the early end, before a state is put back into them."""
    shards = trainer.shards
    if config.ema_decay and (trainer.processes.first or shards is not None):
        kept_on = torch.device("cpu") if config.ema_device == "cpu" else None
        own: Mapping[str, torch.Tensor] = method.named_parameters()
        if shards is not None:
            own = {name: kept(value) for name, value in own.items()}
        swap = trainer.swap
        at_home = (lambda: None) if swap is None else swap.home
        average = WeightAverage(own, config.ema_decay, kept_on, at_home)
        trainer.average = average
        if shards is not None:
            shards.give_rows("average", lambda: average.averages)
    if shards is not None:
        shards.answers["pass"] = trainer.passes.accompany
    if config.early_stop != "none":
        trainer.patience = Patience(config.early_stop_patience)
        trainer.patience_watches_loss = config.early_stop == "loss"


def _validation(config: Any, loader: Loader) -> Validation | None:
    items = loader.index.held_out
    return Validation(items, loader.load, config.validation_levels) if items else None


def _seed(config: Any, resumed: Resumed | None) -> int:
    if config.seed is not None:
        return int(config.seed)
    return resumed.seed if resumed is not None else secrets.randbits(31)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def _names(config: Any, run: Run, resumed: Resumed | None) -> OutputNames:
    """Where the results go: a resumed run goes on with its own names, any other gets names nobody has."""
    output = getattr(config, "output", None)
    if output is not None:
        wanted = OutputNames(Path(output).parent, Path(output).stem, "dotted")
    else:
        folder = Path(config.output_dir) if config.output_dir is not None else run.folder / "checkpoints"
        wanted = OutputNames(folder, config.output_name)
    if resumed is not None:
        folder = (
            resumed.folder.parent
            if output is None and config.output_dir is None and not config.huggingface_resume
            else wanted.folder
        )
        name = resumed.name if wanted.name in (resumed.requested_name, resumed.name) else wanted.name
        wanted = replace(wanted, folder=folder, name=name)
    # A state fetched from the hub lies in no folder of results: its run's own may be on another machine.
    own = (
        resumed is not None
        and wanted.name == resumed.name
        and wanted.folder.resolve() == resumed.folder.parent.resolve()
    )
    names = wanted if config.overwrite or own else wanted.first_free()
    if names != wanted:
        text = f"{wanted.folder} holds results named {wanted.name}: these are named {names.name}"
        run.emit(Warning(text=text))
    swept = prepare_folder(names)
    if swept:
        run.emit(Note(text=f"removed {len(swept)} half-written files of a killed run"))
    return names


def _settings(config: Any, feed: LoaderFeed, layers: int) -> LoopSettings:
    """Length of the run."""
    if config.max_train_epochs is not None:
        epochs = config.max_train_epochs
        steps = feed.updates_until(epochs)
    else:
        steps = config.max_train_steps
        epochs = feed.epochs_until(steps)
    return LoopSettings(
        config.seed,
        total_steps=steps,
        total_epochs=epochs,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_cpu_offload=config.gradient_checkpointing_cpu_offload,
        recomputed_blocks=recomputed_blocks(config, layers),
        mixed_precision=config.mixed_precision,
        epoch_samples=feed.loader.index.samples_per_epoch,
    )


def _sizes(config: Any) -> list[tuple[int, int]]:
    """Training sizes, without a look at the pictures."""
    if config.dataset_config is None:
        return [config.resolution]
    return [source.resolution for source in sources_of(config)]


def _objective(config: Any) -> Objective:
    values = {name.name: getattr(config, name.name) for name in fields(Objective)}
    values["min_timestep"] = config.min_timestep or 0
    values["max_timestep"] = 1000 if config.max_timestep is None else config.max_timestep
    return Objective(**values)


def _from(kind: Any, config: Any) -> Any:
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})


def _tell_plan(
    run: Run, settings: LoopSettings, method: Method, index: DatasetIndex, trainer: Trainer
) -> None:
    trained = sum(parameter.numel() for parameter in method.parameters())
    where = f", from step {trainer.progress.step}" if trainer.progress.step else ""
    held_out = f" ({count_of(len(index.held_out), 'picture')} held out)" if index.held_out else ""
    text = (
        f"Training {trained:,} parameters on {count_of(index.samples_per_epoch, 'sample')}{held_out}: "
        f"{count_of(settings.total_steps, 'step')}, {count_of(settings.total_epochs, 'epoch')}{where}"
    )
    run.emit(Stage(name="train", text=text))


def _explained(error: NonFiniteLoss, keeper: RunKeeper, config: Any) -> UserError:
    states = [path for path in keeper.results if path.name.endswith("-state")]
    state = states[-1] if states else config.resume
    last = (
        f"resume from {state}"
        if state is not None
        else "no state was saved before it (set save_every_n_steps and save_state)"
    )
    remedy = f"Lower learning_rate (now {config.learning_rate:g})"
    if config.mixed_precision == "fp16":
        remedy += ", use mixed_precision bf16"
    return UserError.one(
        "learning_rate", f"{config.learning_rate:g}", f"training broke down: {error}", f"{remedy}; {last}"
    )
