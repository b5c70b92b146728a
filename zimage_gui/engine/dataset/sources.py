"""The dataset entries of a run, with every default filled in: from a dataset TOML or from one plain folder.

Knows the dataset schema and paths. Must not open pictures. The lookup order of each value is that of
musubi-tuner: the entry itself, then `[general]`, then the option of the same name, then the default.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from zimage_gui.config.dataset import DatasetEntry, DatasetFile, GeneralTable, load_dataset
from zimage_gui.config.variant_parts import CAPTION_VARIANTS, PIXEL_VARIANTS
from zimage_gui.engine.dataset.buckets import STEP, Size
from zimage_gui.engine.dataset.discover import holds_picture
from zimage_gui.errors import Problem, UserError

DEFAULT_RESOLUTION: Size = (960, 544)
"""The first seed's default for a TOML without `resolution`."""

DEFAULT_CAPTION_EXTENSION = ".txt"

VARIANTS = (*CAPTION_VARIANTS, *PIXEL_VARIANTS)


@dataclass(frozen=True)
class Source:
    """One dataset entry. Exactly one of image_directory and image_jsonl_file is set; all paths are
    resolved. option: what the user calls the picture folder; notes: what of it has no effect.
    """

    name: str
    image_directory: Path | None
    image_jsonl_file: Path | None
    cache_directory: Path
    resolution: Size
    enable_bucket: bool = True
    bucket_no_upscale: bool = False
    caption_extension: str = DEFAULT_CAPTION_EXTENSION
    batch_size: int = 1
    num_repeats: int = 1
    caption_prefix: str = ""
    caption_dropout_rate: float = 0.0
    caption_lines: bool = False
    shuffle_caption: bool = False
    keep_tokens: int = 0
    shuffle_variants: int = 4
    flip_aug: bool = False
    alpha_mask: bool = False
    mask_directory: Path | None = None
    notes: tuple[str, ...] = ()
    option: str = "image_directory"

    @property
    def folder(self) -> Path:
        """The folder of the pictures, or of the JSONL file."""
        if self.image_directory is not None:
            return self.image_directory
        assert self.image_jsonl_file is not None
        return self.image_jsonl_file.parent


def folder_source(
    folder: Path,
    *,
    resolution: Size = (1024, 1024),
    batch_size: int = 1,
    num_repeats: int = 1,
    bucket_no_upscale: bool = False,
    enable_bucket: bool = True,
    caption_extension: str = DEFAULT_CAPTION_EXTENSION,
    cache_directory: Path | None = None,
    **variants: Any,
) -> Source:
    """A plain folder of pictures with same-stem caption files; its caches lie in the same folder by
    default. variants: options of `config.variant_parts`.
    """
    folder = folder.absolute()
    return Source(
        name=folder.name,
        image_directory=folder,
        image_jsonl_file=None,
        cache_directory=cache_directory.absolute() if cache_directory else folder,
        resolution=resolution,
        enable_bucket=enable_bucket,
        bucket_no_upscale=bucket_no_upscale and enable_bucket,
        caption_extension=with_dot(caption_extension),
        batch_size=batch_size,
        num_repeats=num_repeats,
        option="dataset",
        **variants,
    )


def file_sources(file: DatasetFile) -> tuple[Source, ...]:
    """The entries of a dataset file, each value from the entry, else from [general], else musubi's
    default.
    """
    return tuple(
        _entry_source(entry, file.general, number) for number, entry in enumerate(file.datasets, start=1)
    )


def _entry_source(entry: DatasetEntry, general: GeneralTable, number: int) -> Source:
    def value(name: str, default: Any) -> Any:
        own, shared = getattr(entry, name), getattr(general, name)
        return own if own is not None else shared if shared is not None else default

    named = entry.image_directory or entry.image_jsonl_file
    assert named is not None  # DatasetEntry.problems has seen to it
    home = entry.image_directory or named.parent
    enable_bucket = bool(value("enable_bucket", False))
    never_enlarge = bool(value("bucket_no_upscale", False))
    general_alone = entry.bucket_no_upscale is None and entry.enable_bucket is not None
    idle = "bucket_no_upscale = true: has no effect here. Matters when enable_bucket is true."
    defaults = {field.name: field.default for field in fields(Source) if field.name in VARIANTS}
    return Source(
        name=f"{number}: {named.name}",
        image_directory=entry.image_directory,
        image_jsonl_file=entry.image_jsonl_file,
        cache_directory=entry.cache_directory or home,
        resolution=value("resolution", DEFAULT_RESOLUTION),
        enable_bucket=enable_bucket,
        bucket_no_upscale=enable_bucket and never_enlarge,
        caption_extension=with_dot(value("caption_extension", DEFAULT_CAPTION_EXTENSION)),
        batch_size=value("batch_size", 1),
        num_repeats=value("num_repeats", 1),
        notes=(f"datasets {number}: {idle}",)
        if never_enlarge and not (enable_bucket or general_alone)
        else (),
        **{name: value(name, default) for name, default in defaults.items()},
    )


def with_dot(extension: str) -> str:
    return extension if extension.startswith(".") else f".{extension}"


def check(sources: tuple[Source, ...]) -> list[Problem]:
    """Everything that must be put right before pictures are looked at."""
    problems = []
    for source in sources:
        problems += _check_paths(source)
        problems += _check_variants(source)
        if not source.enable_bucket and any(side % STEP for side in source.resolution):
            problems.append(_odd_resolution(source))
        if min(source.resolution) < STEP:
            problems.append(
                Problem(
                    "resolution",
                    _text(source.resolution),
                    f"must be at least {STEP}",
                    "Use for example 512 or 1024",
                )
            )
    folders = [source.image_directory for source in sources if source.image_directory is not None]
    if folders and len(folders) == len(sources) and not any(map(holds_picture, folders)):
        rule = "holds no picture (png, jpg, jpeg, webp, bmp or avif)"
        remedy = "Choose another folder; folders inside it are not searched"
        problems.append(Problem(sources[0].option, ", ".join(map(str, folders)), rule, remedy))
    if not sources:
        problems.append(
            Problem(
                "datasets", "", "the dataset file has no [[datasets]] entry", "Add one with image_directory"
            )
        )
    return problems


def check_or_raise(sources: tuple[Source, ...]) -> None:
    problems = check(sources)
    if problems:
        raise UserError(problems)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _odd_resolution(source: Source) -> Problem:
    return Problem(
        "resolution",
        _text(source.resolution),
        f"without buckets both sides must be multiples of {STEP}",
        "Round it, or set enable_bucket = true",
    )


def _check_paths(source: Source) -> list[Problem]:
    problems = []
    if source.image_directory is not None and not source.image_directory.is_dir():
        remedy = (
            "Check the path; relative paths count from the TOML's folder, then from the working directory"
        )
        problems.append(Problem(source.option, str(source.image_directory), "is not a folder", remedy))
    if source.image_jsonl_file is not None and not source.image_jsonl_file.is_file():
        problems.append(
            Problem("image_jsonl_file", str(source.image_jsonl_file), "is not a file", "Check the path")
        )
    if source.cache_directory.exists() and not source.cache_directory.is_dir():
        problems.append(
            Problem(
                "cache_directory",
                str(source.cache_directory),
                "is a file, not a folder",
                "Choose another folder",
            )
        )
    return problems


def _check_variants(source: Source) -> list[Problem]:
    problems = []
    if not source.shuffle_caption:
        given = {"keep_tokens": 0, "shuffle_variants": 4}
        problems = [
            Problem(name, str(getattr(source, name)), "needs shuffle_caption", "Set it, or leave this out")
            for name, default in given.items()
            if getattr(source, name) != default
        ]
    if (masks := source.mask_directory) is not None:
        if source.alpha_mask:
            rule = "excludes alpha_mask: a picture has one mask"
            problems.append(Problem("mask_directory", str(masks), rule, "Leave one of the two out"))
        if not masks.is_dir():
            problems.append(Problem("mask_directory", str(masks), "is not a folder", "Check the path"))
        elif source.image_directory is not None and masks.samefile(source.image_directory):
            rule = "is the folder of the pictures, which would be their own masks"
            problems.append(Problem("mask_directory", str(masks), rule, "Keep the masks in another folder"))
    return problems


class PictureOptions(Protocol):
    """Options that name pictures; `config.common.PictureFolder` is one."""

    @property
    def dataset_config(self) -> Path | None: ...
    @property
    def dataset(self) -> Path | None: ...
    @property
    def resolution(self) -> Size: ...
    @property
    def enable_bucket(self) -> bool: ...
    @property
    def bucket_no_upscale(self) -> bool: ...
    @property
    def num_repeats(self) -> int: ...
    @property
    def caption_extension(self) -> str: ...
    @property
    def cache_directory(self) -> Path | None: ...


class ValidationOptions(PictureOptions, Protocol):
    """Options of a training; `config.training.TrainingConfig` is one."""

    @property
    def validation_dataset(self) -> Path | None: ...


def validation_sources(config: ValidationOptions) -> tuple[Source, ...]:
    """The entries of `validation_dataset`. A plain folder is taken like the first entry that is trained, each
    picture in its plain way. Raises UserError for a folder that is trained too.
    """
    path, trained = config.validation_dataset, sources_of(config)
    if path is None:
        return ()
    if path.suffix.lower() in (".toml", ".json"):
        found = file_sources(load_dataset(path, "validation_dataset"))
    else:
        folder = path.absolute()
        plain: dict[str, Any] = {f.name: f.default for f in fields(Source) if f.name in VARIANTS}
        plain |= {"caption_prefix": trained[0].caption_prefix, "num_repeats": 1, "notes": ()}
        plain |= {"name": folder.name, "option": "validation_dataset"}
        found = (
            replace(
                trained[0], image_directory=folder, image_jsonl_file=None, cache_directory=folder, **plain
            ),
        )
    taken = {source.cache_directory.resolve() for source in trained}
    if any(source.cache_directory.resolve() in taken for source in found):
        rule = "is trained too, or has the cache folder of what is trained"
        remedy = "Choose another folder, or hold out a share with validation_split"
        raise UserError.one("validation_dataset", path, rule, remedy)
    return found


def sources_of(config: PictureOptions, batch_size: int = 1) -> tuple[Source, ...]:
    """The dataset entries that a command's options name. batch_size: of a plain folder; a TOML sets its own.

    Raises UserError for a dataset file that is missing or wrong, or when neither is named.
    """
    if config.dataset_config is not None:
        return file_sources(load_dataset(config.dataset_config))
    if config.dataset is None:
        raise UserError.one(
            "dataset", "", "is missing: pictures are needed", "Give dataset or dataset_config"
        )
    source = folder_source(
        config.dataset,
        resolution=config.resolution,
        batch_size=batch_size,
        num_repeats=config.num_repeats,
        enable_bucket=config.enable_bucket,
        bucket_no_upscale=config.bucket_no_upscale,
        caption_extension=config.caption_extension,
        cache_directory=config.cache_directory,
        **{name: getattr(config, name) for name in VARIANTS if hasattr(config, name)},
    )
    return (source,)
