"""What can be said before a training starts, without torch: what is wrong, how many pictures, how long it is.

Knows the schema, headers of model files and the dataset scan. Reads no weights. The trainer checks everything
once more before it loads anything; this is only the earlier, quicker answer.
"""

from __future__ import annotations

from zimage_gui.config.schema import options_of
from zimage_gui.config.training import TrainingConfig
from zimage_gui.engine.cache_files import Kind
from zimage_gui.engine.cache_run import folder_problems
from zimage_gui.engine.dataset.scan import ScanReport, scan
from zimage_gui.engine.dataset.sources import check, sources_of
from zimage_gui.engine.memory_plan import free_now, plan, shortages, table, updates_per_epoch
from zimage_gui.engine.model_files import ModelFiles, find_models, plain_turbo
from zimage_gui.engine.pace import key_of, known_pace, time_line
from zimage_gui.errors import Problem, UserError
from zimage_gui.jobs.readings import Readings
from zimage_gui.model.recognise import recognise
from zimage_gui.ui.html import bullet_list, escape, facts, notice, plural

KINDS = {"dit": "transformer", "vae": "vae", "text_encoder": "text_encoder"}


def model_rows(files: ModelFiles) -> tuple[list[tuple[str, str, bool]], list[Problem]]:
    """(option, what the file is, whether it is right) of each named model, and the problems among them."""
    rows: list[tuple[str, str, bool]] = []
    problems: list[Problem] = []
    for option, kind in KINDS.items():
        path = getattr(files, option)
        if path is None:
            continue
        try:
            found = recognise(path, option, None)
        except UserError as error:
            rows.append((option, str(error), False))
            problems += error.problems
            continue
        right = found.kind in (kind, "all_in_one")
        rows.append((option, found.sentence, right))
        if not right:
            problems.append(
                Problem(
                    option,
                    str(path),
                    f"is not a {kind.replace('_', ' ')}: {found.sentence}",
                    "Choose another file",
                )
            )
    return rows, problems


def quick_problems(config: TrainingConfig) -> list[Problem]:
    """Wrong paths, wrong files and an unusable dataset; milliseconds, because only headers are read."""
    if config.show_timesteps is not None:  # nothing is read
        return []
    needed = ("transformer", "vae", "text_encoder") if config.model_dir is not None else ("transformer",)
    files, problems = find_models(config, *needed)
    problems += model_rows(files)[1]
    try:
        sources = sources_of(config)
        problems += [*check(sources), *folder_problems(sources, Kind.LATENT, Kind.TEXT)]
    except UserError as error:
        problems += error.problems
    if config.sample_prompts is not None and not config.sample_prompts.is_file():
        problems.append(
            Problem("sample_prompts", str(config.sample_prompts), "is not a file", "Check the path")
        )
    if config.resume is not None and not config.resume.is_dir():
        problems.append(Problem("resume", str(config.resume), "is not a folder", "Choose a state folder"))
    return problems


def before_training(config: TrainingConfig, readings: Readings | None = None) -> str:
    """The card above the run: models, pictures, length, memory. Raises UserError for what must be put
    right."""
    if problems := quick_problems(config):
        raise UserError(problems)
    report = scan(sources_of(config))
    files, _ = find_models(config)
    known = options_of(type(config))
    models = [f"{known[option].label}: {sentence}" for option, sentence, _right in model_rows(files)[0]]
    words = f"{bullet_list(models)}{dataset_words(report)}{length_words(config, report)}"
    paths = {"dit": files.dit, "vae": files.vae, "text_encoder": files.text_encoder}
    memory = memory_words(config.model_copy(update=paths), report, readings)
    warned = plain_turbo(config, files.dit)
    memory += notice(warned, "warn") if warned else ""
    return notice(f"<b>Ready to train.</b>{words}{memory}", "good", raw=True)


def memory_words(config: TrainingConfig, report: ScanReport, readings: Readings | None) -> str:
    """The estimate as a table, and what does not fit; empty when there is nothing to estimate."""
    gpus = () if readings is None or config.device == "cpu" else readings.gpus
    number = int(config.device.partition(":")[2] or 0)
    gpu = next((gpu for gpu in gpus if gpu.index == number), None)
    planned = plan(config, report, "cpu" if gpu is None else "cuda")
    if planned is None:
        return ""
    free = free_now(None if gpu is None else gpu.free_gb * 2**30, config.output_dir or config.runs_dir)
    found = planned.estimate()
    short = [f"{words}; it may end for lack of it" for words in shortages(found, free)]
    warned = notice(bullet_list(short), "bad", raw=True) if short else ""
    key = key_of(planned.config, found.batch.words, "cpu" if gpu is None else gpu.name)
    time = time_line(known_pace(config.runs_dir, key), planned.updates)
    return f"<pre>{escape(table(found, free))}\n{escape(time)}</pre>{warned}"


def dataset_words(report: ScanReport) -> str:
    """Counts of usable pictures and of everything that is left out, as tiles."""
    pairs = [
        ("Pictures", f"{len(report.pictures):,}"),
        ("Samples per epoch", f"{report.samples_per_epoch:,}"),
        ("Buckets", f"{len(report.buckets()):,}"),
        ("Without caption", f"{len(report.missing_captions):,}"),
        ("Left out", f"{len(report.refused):,}"),
        ("Enlarged", f"{len(report.upscaled):,}"),
    ]
    return facts(pairs)


def length_words(config: TrainingConfig, report: ScanReport) -> str:
    """Steps in epochs, or epochs in steps: people think in either."""
    per_epoch = updates_per_epoch(config, report)
    if config.max_train_epochs is not None:
        steps = config.max_train_epochs * per_epoch
        words = f"{plural(config.max_train_epochs, 'epoch')} are about {plural(steps, 'step')}"
    else:
        epochs = config.max_train_steps / per_epoch
        words = f"{plural(config.max_train_steps, 'step')} are about {epochs:.1f} passes over the pictures"
    resumed = f"<p>Goes on from {escape(str(config.resume))}.</p>" if config.resume is not None else ""
    return f"<p>{escape(words)} ({plural(per_epoch, 'step')} per epoch).</p>{resumed}"
