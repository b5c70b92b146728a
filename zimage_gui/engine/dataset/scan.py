"""What training would see: every picture of a dataset with its bucket, crop and caption, and all that is
wrong.

Knows pictures, captions and buckets. Must not know caches, encoders or torch, nor change any file. One bad
picture never ends a scan: it is listed with a sentence. Used by the `dataset` command, the caches and the
window.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from zimage_gui.engine.dataset.buckets import Fit, Size, choose_bucket, fit
from zimage_gui.engine.dataset.captions import Caption, caption_variants, read_caption
from zimage_gui.engine.dataset.discover import Listed, list_folder, list_jsonl
from zimage_gui.engine.dataset.images import PictureProblem, read_info, read_pixels, seems_whole
from zimage_gui.engine.dataset.sources import Source

MOST_CAPTIONS = 1000
"""Of one picture. Each is a file of some hundred kilobytes with the real text encoder."""

Told = Callable[[int, int], None]
"""Called with (done, total) after each picture."""


@dataclass(frozen=True)
class Picture:
    """A picture that will be trained. Sizes are (width, height) in pixels after the EXIF turn."""

    path: Path
    source: Source
    fit: Fit
    caption: str
    caption_path: Path | None
    notes: tuple[str, ...] = ()
    other_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Every caption it may be trained with: the plain one first, the empty one of dropout last."""
        dropped = ("",) if self.source.caption_dropout_rate else ()
        return tuple(dict.fromkeys((self.caption, *self.other_captions, *dropped)))

    @property
    def original(self) -> Size:
        return self.fit.original

    @property
    def bucket(self) -> Size:
        return self.fit.bucket

    @property
    def upscaled(self) -> bool:
        return self.fit.upscaled


@dataclass(frozen=True)
class Refused:
    """A picture (or JSONL line) that will not be trained. kind: picture, caption, missing_caption or
    entry.
    """

    path: Path
    kind: str
    reason: str

    def sentence(self) -> str:
        return f"{shown_name(self.path)}: {self.reason}"


def shown(path: Path | str) -> str:
    """A path as text that every terminal, log and JSON file takes; Linux allows any bytes in names."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def shown_name(path: Path) -> str:
    """The last part of a path, as `shown`."""
    return shown(path.name)


@dataclass
class ScanReport:
    """The result of a scan, in the order of the dataset entries and of the file names."""

    sources: tuple[Source, ...]
    pictures: list[Picture] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def missing_captions(self) -> list[Refused]:
        return [entry for entry in self.refused if entry.kind == "missing_caption"]

    @property
    def empty_captions(self) -> list[Picture]:
        return [picture for picture in self.pictures if not picture.caption]

    @property
    def upscaled(self) -> list[Picture]:
        return [picture for picture in self.pictures if picture.upscaled]

    @property
    def samples_per_epoch(self) -> int:
        """Pictures counted with their repeats."""
        return sum(picture.source.num_repeats for picture in self.pictures)

    def buckets(self) -> list[tuple[Size, int, int]]:
        """(bucket, pictures, pictures counted with repeats), sorted by size."""
        plain = Counter(picture.bucket for picture in self.pictures)
        repeated: Counter[Size] = Counter()
        for picture in self.pictures:
            repeated[picture.bucket] += picture.source.num_repeats
        return [(bucket, plain[bucket], repeated[bucket]) for bucket in sorted(plain)]


def scan(
    sources: tuple[Source, ...], *, decode: bool = False, workers: int = 4, told: Told | None = None
) -> ScanReport:
    """Look at every picture of every source.

    decode: read the pixels of every picture, which finds all that are damaged; without it only headers are
    read, and the pixels of files that do not end as they should.
    told: called as pictures are done. Raises nothing for bad pictures; missing folders are `sources.check`'s.
    """
    report = ScanReport(sources)
    jobs = []
    for source in sources:
        try:
            jobs += [(source, listed) for listed in _listed(source)]
        except OSError as error:
            report.refused.append(
                Refused(source.folder, "entry", f"cannot be read ({error.strerror or error})")
            )
    if told is not None:
        told(0, len(jobs))
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        looked = pool.map(lambda job: _look(job[0], job[1], decode), jobs)
        for done, result in enumerate(looked, start=1):
            if isinstance(result, Picture):
                report.pictures.append(result)
            else:
                report.refused.append(result)
            if told is not None:
                told(done, len(jobs))
    return report


def _listed(source: Source) -> list[Listed]:
    if source.image_jsonl_file is not None:
        return list_jsonl(source.image_jsonl_file)
    return list_folder(source.folder, source.caption_extension)


def _look(source: Source, listed: Listed, decode: bool) -> Picture | Refused:
    if listed.problem is not None:
        reason = (
            f"line {listed.line} {listed.problem}"
            if listed.path == source.image_jsonl_file
            else listed.problem
        )
        return Refused(listed.path, "entry", reason)
    # The picture comes first: writing a caption for one that cannot be used would be work for nothing.
    try:
        info = read_pixels(listed.path)[0] if decode else read_info(listed.path)
        if not decode and not seems_whole(listed.path):
            read_pixels(listed.path)
        chosen = _fit(info.size, source)
    except PictureProblem as problem:
        return Refused(listed.path, "picture", str(problem))
    caption = _caption(listed)
    if caption is None:
        expected = listed.path.stem + source.caption_extension
        return Refused(listed.path, "missing_caption", f"has no caption file {expected}")
    if caption.problem is not None:
        reason = f"its caption {shown_name(listed.caption_path or listed.path)} {caption.problem}"
        return Refused(listed.path, "caption", reason)
    lines = caption.text.count("\n") + 1 if source.caption_lines else 1
    orders = source.shuffle_variants if source.shuffle_caption else 0
    if (possible := lines * (1 + orders)) > MOST_CAPTIONS:
        reason = f"has {lines} captions, with their orders {possible}; at most {MOST_CAPTIONS} can be kept"
        return Refused(listed.path, "caption", reason)
    plain, *others = caption_variants(
        caption.text,
        prefix=source.caption_prefix,
        lines=source.caption_lines,
        orders=orders,
        keep=source.keep_tokens,
    )
    return Picture(listed.path, source, chosen, plain, listed.caption_path, info.notes, tuple(others))


def _caption(listed: Listed) -> Caption | None:
    if listed.caption is not None:
        return Caption(listed.caption)
    return read_caption(listed.caption_path) if listed.caption_path is not None else None


def _fit(size: Size, source: Source) -> Fit:
    bucket = choose_bucket(
        size, source.resolution, enable_bucket=source.enable_bucket, no_upscale=source.bucket_no_upscale
    )
    if 0 in bucket:
        raise PictureProblem(
            f"is {size[0]}x{size[1]}; with bucket_no_upscale both sides must be at least 16 pixels"
        )
    chosen = fit(size, bucket)
    if chosen.resized[0] * chosen.resized[1] > 25 * bucket[0] * bucket[1]:
        raise PictureProblem(
            f"is {size[0]}x{size[1]}, so long and thin that under 4 % of it would be used: crop it"
        )
    return chosen
