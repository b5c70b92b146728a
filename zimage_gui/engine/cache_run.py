"""What both cache commands do around their encoder: find the pictures, judge the cache files, report, tidy
up.

Knows datasets, cache files and the run's events. Must not know networks or torch.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.config.paths import output_problem
from zimage_gui.engine.cache_files import (
    CacheItem,
    Kind,
    State,
    Verdict,
    cache_items,
)
from zimage_gui.engine.cache_leftovers import Leftovers, find_leftovers
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.dataset.report import count_of, listing, scan_and_tell
from zimage_gui.engine.dataset.scan import ScanReport, shown, shown_name
from zimage_gui.engine.dataset.sources import Source, check_or_raise, sources_of
from zimage_gui.engine.dataset.sources import check as check_sources
from zimage_gui.engine.model_files import find_part
from zimage_gui.errors import Interrupted, Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.files import sweep_temp_files


@dataclass(frozen=True)
class Encoding:
    """How captions or pictures are to be encoded. model: path of the encoder, None when none was named.

    precision: "no" (fp32), "bf16" or "fp16". compare_precision: redo what was made in another one. batch:
    items encoded at once, None to choose. trust: believe existing files unseen. fp8: the text encoder's
    matrices in fp8.
    """

    model: Path | None
    device: str
    precision: str
    tokenizer: Path | None = None
    batch: int | None = None
    workers: int = 1
    trust: bool = False
    compare_precision: bool = True
    fp8: bool = False

    @property
    def numbers(self) -> str:
        """The precision with everything else that changes the numbers, as cache files remember it."""
        return f"{self.precision}+fp8" if self.fp8 else self.precision


@dataclass(frozen=True)
class Prepared:
    report: ScanReport
    items: list[CacheItem]


def prepare(sources: tuple[Source, ...], run: Run, workers: int) -> Prepared:
    """Scan the pictures of `sources`, tell what is wrong with them, and name the cache files.

    Raises UserError when the dataset is not there or holds no usable picture.
    """
    check_or_raise(sources)
    report = scan_and_tell(sources, run, decode=False, workers=workers)
    if not report.pictures:
        first = report.refused[0].sentence() if report.refused else "no picture was found"
        where = ", ".join(str(source.image_jsonl_file or source.folder) for source in sources)
        raise UserError.one(
            "dataset", where, f"has no picture that can be used ({first})", "Choose another folder"
        )
    for folder in dict.fromkeys(source.cache_directory for source in sources):
        run.emit(Note(text=f"cache folder: {shown(folder)}"))
        sweep_temp_files(folder)
    return Prepared(report, cache_items(report.pictures))


@dataclass(frozen=True)
class Work:
    """What one cache still needs: the items to encode, and how. missing: the problem when no encoder was
    named.
    """

    prepared: Prepared
    todo: tuple[CacheItem, ...]
    encoding: Encoding
    missing: Problem

    def problems(self) -> list[Problem]:
        """What keeps this work from being done: an encoder that is not named, a folder that cannot be
        written.
        """
        if not self.todo:
            return []
        missing = [self.missing] if self.encoding.model is None else []
        folders = dict.fromkeys(item.picture.source.cache_directory for item in self.todo)
        return missing + [problem for folder in folders if (problem := _unwritable(folder)) is not None]

    def without(self, failed: Iterable[CacheItem]) -> list[CacheItem]:
        """The pictures whose cache files, variants included, can be used once the work is done, in order."""
        lacking = {item.plain for item in failed}
        return [item for item in self.prepared.items if item not in lacking]


_NAMES = {Kind.LATENT: "*_zi.safetensors", Kind.TEXT: "*_zi_te.safetensors"}


def folder_problems(sources: Iterable[Source], *kinds: Kind) -> list[Problem]:
    """Cache folders that cannot be written and lack all files of a kind, found without a look at the
    pictures. Where some lie nothing may be missing: that is known when the pictures are."""
    folders = dict.fromkeys(source.cache_directory for source in sources)
    return [
        problem
        for folder in folders
        if any(not any(folder.glob(_NAMES[kind])) for kind in kinds)
        and (problem := _unwritable(folder)) is not None
    ]


def _unwritable(folder: Path) -> Problem | None:
    problem = output_problem("cache_directory", folder, "out_folder")
    remedy = "Set cache_directory to a folder of your own"
    return None if problem is None else Problem(problem.option, shown(folder), problem.rule, remedy)


def model_path(named: Path | None, model_dir: Path | None, part: str) -> Path | None:
    """The encoder to use: the one that is named, else the one in the models folder, else None."""
    return named if named is not None or model_dir is None else find_part(model_dir, part)


def worker_count(asked: int | None) -> int:
    """Threads that read and decode pictures: as asked, else one less than there are cores."""
    return max(1, (os.cpu_count() or 2) - 1 if asked is None else asked)


def judge_all(
    items: list[CacheItem], judge: Callable[[CacheItem], Verdict], kind: Kind, run: Run, workers: int
) -> tuple[CacheItem, ...]:
    """Judge every cache file, tell the result, and return the items to encode; hashing runs in threads."""
    run.emit(Stage(name=f"check_{kind.value}", text=f"Checking the {kind.value} cache"))
    meter = Meter(run, len(items), "files")
    verdicts = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for verdict in pool.map(judge, items):
            verdicts.append(verdict)
            meter.at(len(verdicts))
    tell_verdicts(items, verdicts, kind, run)
    pairs = zip(items, verdicts, strict=True)
    return tuple(item for item, verdict in pairs if not verdict.state.usable)


def tell_verdicts(items: list[CacheItem], verdicts: list[Verdict], kind: Kind, run: Run) -> None:
    counts = Counter(verdict.state for verdict in verdicts)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    run.emit(Note(text=f"{kind.value} cache: {summary or 'nothing to do'}"))
    for state, text in (
        (State.STALE, "no longer hold and are made again"),
        (State.CORRUPT, "are damaged and are made again"),
    ):
        found = [
            f"{shown_name(item.path(kind))} ({verdict.reason})"
            for item, verdict in zip(items, verdicts, strict=True)
            if verdict.state is state
        ]
        if found:
            emit = Warning if state is State.CORRUPT else Note
            run.emit(emit(text=f"{len(found)} {kind.value} cache files {text}: {listing(found)}"))
    if counts[State.UNVERIFIED]:
        run.emit(Note(text=_unverified(items, verdicts, kind)))


def _unverified(items: list[CacheItem], verdicts: list[Verdict], kind: Kind) -> str:
    pairs = [item for item, verdict in zip(items, verdicts, strict=True) if verdict.state is State.UNVERIFIED]
    compared = "picture size and bucket agree" if kind is Kind.LATENT else "the caption agrees"
    text = (
        f"{count_of(len(pairs), f'{kind.value} cache file')} of another program used unverified: {compared}, "
        "but neither the picture's bytes nor the encoder can be compared"
    )
    changed = [shown_name(item.picture.path) for item in pairs if kind is Kind.LATENT and item.picture.notes]
    if changed:
        text += f". These pictures would look different if made here: {listing(changed)}"
    return text


def leftovers_of(prepared: Prepared, kind: Kind) -> Leftovers:
    """Cache files of no current picture; to be looked for before new ones are written beside them."""
    return find_leftovers(prepared.items, (entry.path for entry in prepared.report.refused), kind)


def remove_leftovers(leftovers: Leftovers, kind: Kind, run: Run, *, keep: bool) -> None:
    """Delete cache files of pictures that are gone, unless `keep`; say what was deleted and what was left."""
    removable = count_of(len(leftovers.removable), f"{kind.value} cache file")
    names = listing([shown_name(path) for path in leftovers.removable])
    if leftovers.removable and keep:
        run.emit(Note(text=f"{removable} of pictures that are gone, kept as asked: {names}"))
    elif leftovers.removable:
        try:
            for path in leftovers.removable:
                path.unlink(missing_ok=True)
        except OSError as error:
            text = f"{removable} of pictures that are gone cannot be removed ({error.strerror}): {names}"
            run.emit(Warning(text=text))
        else:
            run.emit(Note(text=f"removed {removable} of pictures that are gone: {names}"))
    if leftovers.kept:
        kept = count_of(len(leftovers.kept), f"{kind.value} cache file")
        names = listing([shown_name(path) for path in leftovers.kept])
        run.emit(Note(text=f"{kept} may belong to another dataset and stay: {names}"))


def stop_if_asked(run: Run, done: int, total: int, unit: str) -> None:
    if run.stop_requested():
        raise Interrupted(f"stopped after {done} of {total} {unit}; what is done is saved")


@dataclass(frozen=True)
class CacheCommand:
    """One of the two cache commands, from check to clean-up.

    part: its encoder, as an option and as a part of a model; noun: what it encodes; look: what is wrong with
    the encoder's file, from its header; plan and encode: what is to be done, and doing it.
    """

    kind: Kind
    part: str
    noun: str
    look: Callable[[Path | None], list[Problem]]
    plan: Callable[[Prepared, Encoding, Run], Work]
    encode: Callable[[Work, Run], list[CacheItem]]

    def check(self, config: CacheLatentsConfig | CacheTextConfig) -> list[Problem]:
        problems = config.problems()
        try:
            problems += self.look(self._model(config))
        except UserError as error:
            problems += error.problems
        try:
            sources = sources_of(config)
            problems += check_sources(sources)
            if getattr(config, "debug_mode", None) is None:  # else nothing is written there
                problems += folder_problems(sources, self.kind)
        except UserError as error:
            problems += error.problems
        return problems

    def run(self, config: CacheLatentsConfig | CacheTextConfig, run: Run) -> list[Path]:
        raise_if_any(self.check(config))
        workers = worker_count(config.num_workers)
        encoding = Encoding(
            model=self._model(config),
            device=config.device,
            precision=config.mixed_precision,
            tokenizer=getattr(config, "tokenizer", None),
            batch=config.batch_size,
            workers=workers,
            trust=config.skip_existing,
            fp8=getattr(config, "fp8_llm", False),
        )
        prepared = prepare(sources_of(config), run, workers)
        leftovers = leftovers_of(prepared, self.kind)
        work = self.plan(prepared, encoding, run)
        raise_if_any(work.problems())
        usable = self.encode(work, run)
        remove_leftovers(leftovers, self.kind, run, keep=config.keep_cache)
        if not usable:
            rule = f"no {self.noun} could be encoded"
            raise UserError.one("dataset", "", rule, "See the warnings above")
        return list(dict.fromkeys(item.picture.source.cache_directory for item in usable))

    def _model(self, config: CacheLatentsConfig | CacheTextConfig) -> Path | None:
        return model_path(getattr(config, self.part), config.model_dir, self.part)
