"""What a user may say about pictures: the dataset TOML of the first seed, and the `dataset` command.

This module knows the keys and their rules; it must not open pictures, nor fill in defaults (the engine does,
in the order entry, `[general]`, option of the command, default).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

from zimage_gui.config.build import absolute, field_problems
from zimage_gui.config.common import FOLDER, PictureFolder, check_resolution, square
from zimage_gui.config.schema import Options, When, like, option, options_of, show
from zimage_gui.config.toml_io import parse, read_text
from zimage_gui.config.variant_parts import CaptionVariants, PixelVariants
from zimage_gui.errors import Problem, UserError

_VIDEO_KEYS = frozenset(
    {
        "video_directory",
        "video_jsonl_file",
        "target_frames",
        "frame_extraction",
        "frame_stride",
        "frame_sample",
        "max_frames",
        "source_fps",
    }
)
RENAMED_KEYS = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}
REFUSED_KEYS = dict.fromkeys(sorted(_VIDEO_KEYS), "belongs to videos, and Z-Image makes pictures") | {
    "multiple_target": "belongs to layered models"
}
INERT_KEYS = {
    "control_directory": "Z-Image has no control pictures",
    "no_resize_control": "Z-Image has no control pictures",
    "control_resolution": "Z-Image has no control pictures",
    "fp_latent_window_size": "it belongs to FramePack",
    "fp_1f_clean_indices": "it belongs to FramePack",
    "fp_1f_target_index": "it belongs to FramePack",
    "fp_1f_no_post": "it belongs to FramePack",
}


def _own(cls: type[PictureFolder], name: str) -> Any:
    """A folder's option as a key of a dataset file: not given unless it is there."""
    return like(cls, name, None, matters=None, aliases=(), advanced=False)


class GeneralTable(Options):
    """Keys of `[general]`, which hold for every entry that does not say otherwise. None: not given."""

    command: ClassVar[str] = "[general]"

    resolution: tuple[int, int] | None = option(
        None,
        section="dataset",
        label="Resolution",
        help="Training size: one number for a square, or [width, height]. With buckets it sets the area.",
        unit="px",
    )
    enable_bucket: bool | None = option(
        None,
        section="dataset",
        label="Buckets",
        help="Sort pictures into sizes of equal area and similar shape instead of cropping all to one shape.",
    )
    bucket_no_upscale: bool | None = option(
        None,
        section="dataset",
        label="Never enlarge",
        help="Pictures smaller than the resolution keep their own size (rounded down to 16 px).",
    )
    caption_extension: str | None = option(
        None, section="dataset", label="Caption file ending", help="Ending of the caption files, e.g. .txt."
    )
    batch_size: int | None = option(
        None, section="dataset", label="Batch size", help="Pictures per training step.", ge=1, le=4096
    )
    num_repeats: int | None = option(
        None,
        section="dataset",
        label="Repeats",
        help="How often each picture is seen in one epoch.",
        ge=1,
        le=100_000,
    )
    caption_prefix: str | None = _own(CaptionVariants, "caption_prefix")
    caption_dropout_rate: float | None = _own(CaptionVariants, "caption_dropout_rate")
    caption_lines: bool | None = _own(CaptionVariants, "caption_lines")
    shuffle_caption: bool | None = _own(CaptionVariants, "shuffle_caption")
    keep_tokens: int | None = _own(CaptionVariants, "keep_tokens")
    shuffle_variants: int | None = _own(CaptionVariants, "shuffle_variants")
    flip_aug: bool | None = _own(PixelVariants, "flip_aug")
    alpha_mask: bool | None = _own(PixelVariants, "alpha_mask")
    mask_directory: Path | None = _own(PixelVariants, "mask_directory")

    _square = field_validator("resolution", mode="before")(square)
    _size = field_validator("resolution")(check_resolution)


class DatasetEntry(GeneralTable):
    """One `[[datasets]]` table: a folder of pictures, or a JSONL file that names them."""

    command: ClassVar[str] = "[[datasets]]"

    image_directory: Path | None = option(
        None,
        section="dataset",
        label="Picture folder",
        help="Folder of pictures with caption files.",
        path="folder",
    )
    image_jsonl_file: Path | None = option(
        None,
        section="dataset",
        label="JSONL file",
        help='Text file with one {"image_path": …, "caption": …} per line.',
        path="file",
    )
    cache_directory: Path | None = option(
        None,
        section="dataset",
        label="Cache folder",
        help="Where the encoded pictures and captions are kept; left out: the picture folder.",
        path="out_folder",
    )

    def problems(self) -> list[Problem]:
        given = [name for name in ("image_directory", "image_jsonl_file") if getattr(self, name) is not None]
        if len(given) == 1:
            return []
        rule = "excludes image_jsonl_file" if given else "is missing: the entry names no pictures"
        value = show(self.image_directory)
        return [Problem("image_directory", value, rule, "Give image_directory or image_jsonl_file")]


class DatasetFile(BaseModel):
    """A dataset TOML or JSON. All paths are absolute.

    notes: what relative paths became, and keys that were accepted and do nothing here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    general: GeneralTable = GeneralTable()
    datasets: tuple[DatasetEntry, ...] = ()
    notes: tuple[str, ...] = ()


def load_dataset(path: Path, option: str = "dataset_config") -> DatasetFile:
    """Read a dataset file (TOML, or JSON by its ending). Raises UserError with every problem in it."""
    text = read_text(path, option)
    if path.suffix.lower() == ".json":
        try:
            tables = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError.one(option, path, f"is not valid JSON: {error}", "Correct the line") from error
    else:
        tables = parse(text, option, str(path))
    return read_dataset(tables, path.absolute().parent, option, str(path))


def read_dataset(
    tables: object, base: Path | None = None, option: str = "dataset_config", name: str = ""
) -> DatasetFile:
    """The same from nested tables. base: the folder in which relative paths are looked for first."""
    problems: list[Problem] = []
    notes: dict[str, None] = {}
    if not isinstance(tables, dict):
        raise UserError.one(
            option, name, "must be a table with general and datasets", "See the dataset format"
        )
    if strange := [str(key) for key in tables if key not in ("general", "datasets")]:
        rule = f"not part of a dataset file: {', '.join(strange)}; only general and datasets are"
        problems.append(Problem(option, name, rule, "Remove them, or choose another file"))
    general = tables.get("general", {})
    entries = tables.get("datasets", [])
    if (
        not isinstance(general, dict)
        or not isinstance(entries, list)
        or not all(isinstance(e, dict) for e in entries)
    ):
        raise UserError.one(
            option, name, "needs one table [general] and tables [[datasets]]", "See the dataset format"
        )
    if not entries:
        problems.append(Problem("datasets", "", "is missing: there is no [[datasets]] entry", "Add one"))
    read_general = _table(GeneralTable, general, "general", base, problems, notes)
    read_entries = [
        _table(DatasetEntry, entry, f"datasets {number}", base, problems, notes)
        for number, entry in enumerate(entries, start=1)
    ]
    problems += _shared_caches(read_entries)
    if problems:
        raise UserError(problems)
    return DatasetFile(general=read_general, datasets=tuple(read_entries), notes=tuple(notes))


Table = TypeVar("Table", bound=GeneralTable)


def _table(
    cls: type[Table],
    given: dict[str, Any],
    place: str,
    base: Path | None,
    problems: list[Problem],
    notes: dict[str, None],
) -> Table:
    """One table; what is wrong with it is added to `problems` with its place, and the rest is returned."""
    values: dict[str, Any] = {}
    wrong: list[Problem] = []
    for spelled, value in given.items():
        key = RENAMED_KEYS.get(spelled, spelled)
        known = options_of(cls).get(key)
        if key in INERT_KEYS and cls is DatasetEntry:
            notes[f"{spelled} does nothing here: {INERT_KEYS[key]}."] = None
        elif key == "multiple_target" and value is False:
            continue
        elif known is None:
            wrong.append(_refused(cls, spelled, key))
        elif known.kind == "path" and isinstance(value, str) and value:
            values[key] = path = absolute(value, base)
            if "\0" in value:
                wrong.append(Problem(spelled, repr(value), "must not contain the character NUL", "Remove it"))
            elif str(path) != value:
                notes[f"{place}: {key}: {path}"] = None
        else:
            values[key] = value
    found, more = _valid(cls, values)
    problems += [
        Problem(f"{place}: {problem.option}", problem.value, problem.rule, problem.remedy)
        for problem in (*wrong, *more, *([] if _is_video(given) else found.problems()))
    ]
    return found


def _valid(cls: type[Table], values: dict[str, Any]) -> tuple[Table, list[Problem]]:
    from pydantic import ValidationError

    try:
        return cls(**values), []
    except ValidationError as error:
        wrong = field_problems(cls, error)
    refused = {problem.option for problem in wrong}
    return cls(**{key: value for key, value in values.items() if key not in refused}), wrong


def _is_video(given: dict[str, Any]) -> bool:
    return bool(given.keys() & _VIDEO_KEYS)


def _refused(cls: type[Options], spelled: str, key: str) -> Problem:
    if key in _VIDEO_KEYS:
        return Problem(spelled, "", REFUSED_KEYS[key], "Remove the key or the entry")
    if key in REFUSED_KEYS:
        return Problem(spelled, "true", REFUSED_KEYS[key], "Remove it")
    if cls is GeneralTable and key in {*options_of(DatasetEntry), *INERT_KEYS}:
        return Problem(spelled, "", "may not stand in [general]", "Move it into the [[datasets]] entries")
    import difflib

    near = difflib.get_close_matches(key, options_of(DatasetEntry), n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Remove it"
    return Problem(spelled, "", "is not a key of a dataset file", remedy)


def _shared_caches(entries: list[DatasetEntry]) -> list[Problem]:
    """Two entries with one cache folder would overwrite each other's files."""
    seen: dict[Path, int] = {}
    found = []
    for number, entry in enumerate(entries, start=1):
        folder = entry.cache_directory or entry.image_directory
        if folder is None:
            continue
        if (first := seen.setdefault(_one_spelling(folder), number)) != number:
            rule = f"has the same cache folder as entry {first}: {folder}"
            found.append(Problem(f"datasets {number}: cache_directory", "", rule, "Give each entry its own"))
    return found


def _one_spelling(folder: Path) -> Path:
    """The folder itself, whichever way round through `..` and links it was named."""
    try:
        return folder.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL, a ring of links: told elsewhere
        return folder


class DatasetConfig(CaptionVariants, PixelVariants):
    """Look over a dataset: pictures, captions, buckets and what is wrong; write its TOML."""

    command: ClassVar[str] = "dataset"
    positionals: ClassVar[tuple[str, ...]] = ("dataset",)

    batch_size: int = option(
        1,
        section="dataset",
        label="Batch size",
        help="Pictures per training step, written into the dataset file.",
        unit="pictures",
        matters=FOLDER,
        ge=1,
        le=4096,
    )
    write_toml: Path | None = option(
        None,
        section="output",
        label="Write dataset file",
        help="Write the dataset TOML that describes these pictures to this path.",
        path="out_file",
        aliases=("output",),
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Replace the dataset file if it exists.",
        matters=When("write_toml is set", lambda c: c.write_toml is not None),
        advanced=True,
    )

    def problems(self) -> list[Problem]:
        return self._dataset_problems()
