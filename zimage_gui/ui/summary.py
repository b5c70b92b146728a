"""What can be said before a training starts, without torch: what is wrong, how many pictures, how long it is.

Knows the schema, headers of model files and the dataset scan. Reads no weights. The trainer checks everything
once more before it loads anything; this is only the earlier, quicker answer.
"""

from __future__ import annotations

import math

from zimage_gui.config.training import TrainingConfig
from zimage_gui.engine.dataset.scan import ScanReport, scan
from zimage_gui.engine.dataset.sources import check, sources_of
from zimage_gui.engine.model_files import ModelFiles, find_models
from zimage_gui.errors import Problem, UserError
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
        problems += check(sources_of(config))
    except UserError as error:
        problems += error.problems
    if config.sample_prompts is not None and not config.sample_prompts.is_file():
        problems.append(
            Problem("sample_prompts", str(config.sample_prompts), "is not a file", "Check the path")
        )
    if config.resume is not None and not config.resume.is_dir():
        problems.append(Problem("resume", str(config.resume), "is not a folder", "Choose a state folder"))
    return problems


def before_training(config: TrainingConfig) -> str:
    """The card above the run: models, pictures, length. Raises UserError for what must be put right."""
    if problems := quick_problems(config):
        raise UserError(problems)
    report = scan(sources_of(config))
    files, _ = find_models(config)
    models = [f"{option}: {sentence}" for option, sentence, _right in model_rows(files)[0]]
    return notice(
        f"<b>Ready to train.</b>{bullet_list(models)}{dataset_words(report)}{length_words(config, report)}",
        "good",
        raw=True,
    )


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


def updates_per_epoch(config: TrainingConfig, report: ScanReport) -> int:
    """Optimizer updates in one pass; batches never mix buckets, so each bucket rounds up for itself."""
    batches = 0
    for source in report.sources:
        size = source.batch_size if config.dataset_config is not None else config.batch_size
        counts: dict[tuple[int, int], int] = {}
        for picture in report.pictures:
            if picture.source == source:
                counts[picture.bucket] = counts.get(picture.bucket, 0) + source.num_repeats
        trained = 1 - config.validation_split
        batches += sum(math.ceil(count * trained / size) for count in counts.values())
    return max(1, math.ceil(batches / config.gradient_accumulation_steps))


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
