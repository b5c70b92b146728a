"""The `dataset` command: what training would see of every picture, in words, and the dataset file that says
so.

Knows scans and the dataset file's keys. Must not know caches or torch.
"""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from zimage_gui.config.dataset import DatasetConfig
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.dataset.scan import Picture, ScanReport, scan, shown_name
from zimage_gui.engine.dataset.sources import VARIANTS, Source, check_or_raise, sources_of
from zimage_gui.engine.dataset.sources import check as check_sources
from zimage_gui.errors import Interrupted, Problem, UserError
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.files import atomic_write, free_name, unwritten

_CAPTION_SHOWN = 60
_NAMED = 5
"""So many pictures are named in one message; the rest are counted."""

TROUBLES = {
    "missing_caption": ("picture", "without a caption file, left out"),
    "caption": ("caption", "that cannot be read, left out with its picture"),
    "picture": ("picture", "that cannot be used, left out"),
    "entry": ("dataset line", "that cannot be used"),
}
"""What is wrong with what a scan refused, by `Refused.kind`: a countable noun, and the rest."""


def check(config: DatasetConfig) -> list[Problem]:
    """Everything wrong with the options and the folders they name."""
    try:
        return [*config.problems(), *check_sources(sources_of(config, config.batch_size))]
    except UserError as error:
        return [*config.problems(), *error.problems]


def run(config: DatasetConfig, run: Run) -> list[Path]:
    """Decode every picture, tell what training would see, and write the dataset file when asked to."""
    sources = sources_of(config, config.batch_size)
    check_or_raise(sources)
    report = scan_and_tell(sources, run, decode=True)
    run.emit(Note(text="\n".join(picture_lines(report))))
    run.emit(Note(text="\n".join(bucket_lines(report))))
    if config.write_toml is None:
        return []
    wanted = config.write_toml.absolute()
    path = wanted if config.overwrite else free_name(wanted)
    if path != wanted:
        run.emit(Warning(text=f"{wanted.name} exists and stays; written as {path.name}"))
    try:
        return [atomic_write(path, dataset_toml(sources, path.parent).encode("utf-8"))]
    except OSError as error:
        raise unwritten(error, path, "write_toml") from error


def scan_and_tell(sources: tuple[Source, ...], run: Run, *, decode: bool, workers: int = 4) -> ScanReport:
    """Scan with progress events, then one line about what was found and a warning for each kind of
    trouble.
    """
    for note in (note for source in sources for note in source.notes):
        run.emit(Warning(text=note))
    run.emit(Stage(name="scan", text="Looking at the pictures"))
    meter: list[Meter] = []

    def told(done: int, total: int) -> None:
        if not meter:
            meter.append(Meter(run, total, "pictures"))
        meter[0].at(done)
        if run.stop_requested():
            raise Interrupted("stopped while looking at the pictures; nothing was changed")

    report = scan(sources, decode=decode, workers=workers, told=told)
    tell(report, run)
    return report


def tell(report: ScanReport, run: Run) -> None:
    """The counts of a scan as one note, and a warning for each kind of trouble that names the first
    pictures.
    """
    samples = count_of(report.samples_per_epoch, "sample")
    run.emit(Note(text=f"{count_of(len(report.pictures), 'picture')}, {samples} per epoch"))
    for kind, (noun, text) in TROUBLES.items():
        refused = [entry.sentence() for entry in report.refused if entry.kind == kind]
        if refused:
            run.emit(Warning(text=f"{count_of(len(refused), noun)} {text}: {listing(refused)}"))
    empty = [shown_name(picture.path) for picture in report.empty_captions]
    if empty:
        run.emit(Warning(text=f"{count_of(len(empty), 'empty caption')}, trained as it is: {listing(empty)}"))


def listing(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def picture_lines(report: ScanReport) -> list[str]:
    """One line for each picture: size, bucket, scale, crop, what was done to it, caption."""
    rows: list[tuple[str, ...]] = [("picture", "size", "bucket", "scale", "crop", "caption")]
    rows += [_row(picture) for picture in report.pictures]
    rows += [
        (shown_name(entry.path), "-", "-", "-", "-", f"LEFT OUT: {entry.reason}") for entry in report.refused
    ]
    return _aligned(rows)


def _row(picture: Picture) -> tuple[str, ...]:
    fit = picture.fit
    left, top, right, bottom = (round(side) for side in fit.crop_box)
    crop = (
        "whole" if fit.lost_share < 1e-9 else f"{left},{top} to {right},{bottom} ({fit.lost_share:.0%} lost)"
    )
    scale = f"{fit.scale:.2f}{' enlarged' if fit.upscaled else ''}"
    caption = " ".join(picture.caption.split())
    if others := len(picture.captions) - 1:
        caption = f"{caption} (and {others} more)"
    shown = caption if len(caption) <= _CAPTION_SHOWN else caption[: _CAPTION_SHOWN - 1] + "…"
    notes = f" [{', '.join(picture.notes)}]" if picture.notes else ""
    size, bucket = (f"{width}x{height}" for width, height in (picture.original, picture.bucket))
    return shown_name(picture.path), size, bucket, scale, crop, f"{shown or '(empty)'}{notes}"


def bucket_lines(report: ScanReport) -> list[str]:
    """The bucket table: how many pictures have which training size."""
    rows: list[tuple[str, ...]] = [("bucket", "aspect", "pictures", "samples per epoch")]
    for bucket, pictures, samples in report.buckets():
        rows.append((f"{bucket[0]}x{bucket[1]}", f"{bucket[0] / bucket[1]:.2f}", str(pictures), str(samples)))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def dataset_toml(sources: tuple[Source, ...], folder: Path) -> str:
    """A dataset file for `sources` that will lie in `folder`; paths below that folder become relative."""
    import tomlkit

    document = tomlkit.document()
    tables = tomlkit.aot()
    for source in sources:
        table = tomlkit.table()
        if source.image_directory is not None:
            table.add("image_directory", _short(source.image_directory, folder))
        else:
            table.add("image_jsonl_file", _short(source.image_jsonl_file or source.folder, folder))
        table.add("cache_directory", _short(source.cache_directory, folder))
        table.add("resolution", list(source.resolution))
        table.add("enable_bucket", source.enable_bucket)
        table.add("bucket_no_upscale", source.bucket_no_upscale)
        table.add("caption_extension", source.caption_extension)
        table.add("batch_size", source.batch_size)
        table.add("num_repeats", source.num_repeats)
        for field in fields(Source):
            if field.name in VARIANTS and (value := getattr(source, field.name)) != field.default:
                table.add(field.name, _short(value, folder) if isinstance(value, Path) else value)
        tables.append(table)
    document.add("datasets", tables)
    return tomlkit.dumps(document)


def _short(path: Path, folder: Path) -> str:
    """Relative when it lies below the file's folder and exists there: only then is it found from there
    again.
    """
    inside = path.absolute().is_relative_to(folder.absolute()) and os.path.lexists(path)
    return path.absolute().relative_to(folder.absolute()).as_posix() if inside else str(path.absolute())
