"""Everything that can be found wrong with a training run before a byte of weights is read. Knows options and
headers; must not know how training is done.
"""

from pathlib import Path
from typing import Any

import torch

from zimage_gui.config.parallel_parts import launched_place, processes_of
from zimage_gui.config.paths import output_problem
from zimage_gui.engine import finetuning
from zimage_gui.engine.cache_files import Kind
from zimage_gui.engine.cache_run import folder_problems
from zimage_gui.engine.dataset.sources import check as check_sources
from zimage_gui.engine.dataset.sources import sources_of, validation_sources
from zimage_gui.engine.devices import pick_device
from zimage_gui.engine.kernels import compile_problems
from zimage_gui.engine.model_files import find_models
from zimage_gui.engine.networks import network_problems, rate_problems
from zimage_gui.engine.optimizers import check_optimizer
from zimage_gui.engine.processes import device_of
from zimage_gui.engine.prompt_lines import read_prompt_file
from zimage_gui.engine.resume import disagreements
from zimage_gui.engine.schedules import ScheduleSpec, check_schedule
from zimage_gui.engine.state import FOREIGN, StateError, of_accelerate, read_manifest, states_in, unpack
from zimage_gui.engine.trackers import tracking_problems
from zimage_gui.errors import Problem, UserError
from zimage_gui.model.attention import use_backend
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import model_problems, transformer_config_of

_SCHEDULE_OPTIONS = (
    "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power",
    "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio", "lr_scheduler_type", "lr_scheduler_args",
)  # fmt: skip


def schedule_spec(config: Any) -> ScheduleSpec:
    """The learning-rate schedule that the options describe."""
    return ScheduleSpec(**{name: getattr(config, name) for name in _SCHEDULE_OPTIONS})


def with_models(config: Any) -> tuple[Any, list[Problem]]:
    """The same options with the model paths that `model_dir` stands for filled in."""
    needed = ["transformer", "vae", "text_encoder"] if config.model_dir is not None else ["transformer"]
    files, problems = find_models(config, *needed)
    paths = {
        "dit": files.dit,
        "vae": files.vae,
        "text_encoder": files.text_encoder,
    }
    return config.model_copy(update=paths), problems


def check(config: Any) -> list[Problem]:
    """All problems of a run at once; reads headers, captions' folders and prompt files, no weights."""
    if config.show_timesteps is not None:
        problems: list[Problem] = config.problems()
        return problems
    config, missing = with_models(config)
    problems = [*config.problems(), *missing]
    found = [
        *_of(lambda: check_sources((*sources_of(config), *validation_sources(config)))),
        *_of(lambda: _cache_problems(config)),
        *_of(lambda: mask_problems(config)),
        *_of(lambda: model_problems(config.dit, config.vae, config.text_encoder)),
        *_optimizer_problems(config),
        *_of(lambda: compile_problems(config, pick_device(config.device))),
        *_of(lambda: _backend_problems(config.attn_mode)),
        *_of(lambda: _nothing(_devices(config))),
        *_of(lambda: tracking_problems(config)),
        *_preview_problems(config),
        *_resume_problems(config),
        *_folder_problems(config),
    ]
    if (
        hasattr(config, "network_dim")
        and config.dit is not None
        and not any(p.option == "dit" for p in found)
    ):
        found += _of(lambda: _lora_problems(config))
    if finetuning.trains_model(config):
        names = {problem.option for problem in found}
        found += _of(lambda: finetuning.check(config, "optimizer_type" not in names, "dit" not in names))
        if config.blocks_to_swap and config.dit is not None and "dit" not in names:
            found += _of(lambda: swap_problems(config, transformer_config_of(config.dit).n_layers))
    known = set(problems)
    return problems + [problem for problem in found if problem not in known]


def _devices(config: Any) -> list[torch.device]:
    """Of the processes that this check speaks for. Raises UserError for a GPU that is not there."""
    place, count = launched_place(), processes_of(config)
    if count < 2:
        return []
    numbers = [place.local] if place is not None else range(count)
    must = bool(config.gpus)
    return [device_of(config.device, number, config.gpu_numbers, must=must) for number in numbers]


def _optimizer_problems(config: Any) -> list[Problem]:
    optimizer, problems = check_optimizer(
        config.optimizer_type, list(config.optimizer_args), config.learning_rate,
        vectors=not hasattr(config, "network_dim"),
    )  # fmt: skip
    stand_in = optimizer or torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = config.max_train_steps if config.max_train_epochs is None else 1
    problems += rate_problems(config, optimizer) + _paging_problems(config, optimizer)
    return problems + check_schedule(schedule_spec(config), stand_in, steps)


def _paging_problems(config: Any, optimizer: torch.optim.Optimizer | None) -> list[Problem]:
    """bitsandbytes' paged optimizers fail at the first large weight without CUDA, not when they are made."""
    if not getattr(optimizer, "is_paged", False) or not str(config.device).startswith(("auto", "cpu")):
        return []
    if (device := pick_device(config.device)).type == "cuda":
        return []
    rule = f"keeps its averages in memory that a GPU pages, and the device is {device}"
    remedy = "Use the optimizer without Paged in its name"
    return [Problem("optimizer_type", config.optimizer_type, rule, remedy)]


def _of(look: Any) -> list[Problem]:
    try:
        problems: list[Problem] = look()
        return problems
    except UserError as error:
        return list(error.problems)


def _backend_problems(name: str) -> list[Problem]:
    use_backend(name)
    return []


def _cache_problems(config: Any) -> list[Problem]:
    sources = (*sources_of(config), *validation_sources(config))
    return folder_problems(sources, Kind.LATENT, Kind.TEXT)


def mask_problems(config: Any) -> list[Problem]:
    """Of the weight outside masks where no folder has any."""
    default = type(config).model_fields["unmasked_weight"].default
    if config.unmasked_weight == default:
        return []
    if any(source.alpha_mask or source.mask_directory is not None for source in sources_of(config)):
        return []
    rule = "has no effect: no picture folder has masks"
    remedy = "Set alpha_mask or mask_directory, or leave it out"
    return [Problem("unmasked_weight", f"{config.unmasked_weight:g}", rule, remedy)]


def _nothing(_: object) -> list[Problem]:
    return []


def swap_problems(config: Any, blocks: int) -> list[Problem]:
    """Of a transformer with so many blocks."""
    if config.blocks_to_swap <= blocks:
        return []
    rule = f"is more than the {blocks} blocks this transformer has"
    return [Problem("blocks_to_swap", str(config.blocks_to_swap), rule, f"Give at most {blocks}")]


def _lora_problems(config: Any) -> list[Problem]:
    with torch.device("meta"):
        model = ZImageTransformer(transformer_config_of(config.dit))
    return swap_problems(config, len(model.layers)) + network_problems(config, model)


def _preview_problems(config: Any) -> list[Problem]:
    if config.sample_prompts is None:
        return []
    problems = _of(lambda: _nothing(read_prompt_file(Path(config.sample_prompts), "sample_prompts")))
    for option, what in (("vae", "decode"), ("text_encoder", "encode the prompts of")):
        if getattr(config, option) is None:
            rule = f"is needed to {what} the pictures of sample_prompts"
            problems.append(Problem(option, "", rule, f"Give {option}, or leave sample_prompts out"))
    return problems


def _resume_problems(config: Any) -> list[Problem]:
    if config.resume is None:
        return []
    folder = Path(config.resume)
    if folder.is_file():
        return []  # said already
    if of_accelerate(folder):
        option = "dit" if finetuning.trains_model(config) else "network_weights"
        remedy = f"Start anew from its weights: {option} {folder / 'model.safetensors'}"
        return [Problem("resume", str(folder), FOREIGN, remedy)]
    try:
        manifest = read_manifest(folder)
    except StateError as error:
        states = states_in(folder)
        if not states and not states_in(folder.parent):
            rule, remedy = f"cannot be resumed: {error}", "Choose a folder whose name ends in -state"
            if not finetuning.trains_model(config):
                remedy += "; a LoRA without its state goes into network_weights"
            return [Problem("resume", str(folder), rule, remedy)]
        return _resume_problems(config.model_copy(update={"resume": states[0]})) if states else []
    try:
        facts = unpack(manifest["values"]["run"], {})
        return [*disagreements(config, folder, facts), *_beside_state(config, folder)]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return []  # the state before this one may do, which reading them tells


def _folder_problems(config: Any) -> list[Problem]:
    given = (
        ("output_dir", config.output_dir, "out_folder"),
        ("output", getattr(config, "output", None), "out_file"),
        ("logging_dir", config.logging_dir, "out_folder"),
    )
    found = [output_problem(name, Path(path), kind) for name, path, kind in given if path is not None]
    return [problem for problem in found if problem is not None]


def _beside_state(config: Any, state: Path) -> list[Problem]:
    """A resumed run that names no output goes on beside its state."""
    if config.names_output or config.huggingface_resume:
        return []
    problem = output_problem("resume", state.absolute().parent, "out_folder")
    remedy = "Set output_dir to another folder"
    return [] if problem is None else [Problem("resume", str(state), problem.rule, remedy)]
