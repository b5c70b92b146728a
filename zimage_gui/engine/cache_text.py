"""`cache-text`: every caption of a dataset through the text encoder once, kept in the format of musubi-tuner.

Knows the text encoder, captions and cache files. Must not know pictures, the transformer or training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.config.cache import CacheTextConfig
from zimage_gui.engine.cache_files import (
    TEXT_KEY,
    CacheItem,
    Kind,
    Maker,
    judge_text,
    model_identity,
    text_metadata,
    with_captions,
    write_cache,
)
from zimage_gui.engine.cache_run import (
    CacheCommand,
    Encoding,
    Prepared,
    Work,
    judge_all,
    stop_if_asked,
)
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.dataset.report import count_of, listing
from zimage_gui.engine.dataset.scan import shown_name
from zimage_gui.engine.devices import DTYPES, pick_device
from zimage_gui.errors import Problem
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.model.text_encoder import Qwen3TextEncoder, encode_prompts
from zimage_gui.model.tokenizer import Tokenizer, load_tokenizer
from zimage_gui.model.weights import load_text_encoder, model_problems, text_encoder_config_of


def check(config: CacheTextConfig) -> list[Problem]:
    """Everything that would stop the command, found without reading a picture or a weight."""
    return _command().check(config)


def run(config: CacheTextConfig, run: Run) -> list[Path]:
    """Bring the text cache of `config`'s dataset up to date; returns the cache folders."""
    return _command().run(config, run)


def _command() -> CacheCommand:
    return CacheCommand(
        Kind.TEXT,
        "text_encoder",
        "caption",
        lambda path: model_problems(text_encoder=path),
        text_work,
        encode_texts,
    )


def text_work(prepared: Prepared, encoding: Encoding, run: Run) -> Work:
    """Find out which text features are missing, stale or damaged; no weights are loaded."""
    tools = _Tools.of(encoding)
    todo = judge_all(
        with_captions(prepared.items),
        lambda item: judge_text(item, tools.maker(item.caption, encoding), trust=encoding.trust),
        Kind.TEXT,
        run,
        encoding.workers,
    )
    rule = f"is needed: {count_of(len(todo), 'caption')} must be encoded"
    remedy = "Set text_encoder to qwen_3_4b.safetensors or to its hub folder"
    return Work(prepared, todo, encoding, Problem("text_encoder", "", rule, remedy))


def encode_texts(work: Work, run: Run) -> list[CacheItem]:
    """Do the work; returns the items whose text features can now be used, in order.

    The encoder is loaded only when there is something to do, and freed before this returns. Raises
    Interrupted when a stop was asked for (finished files stay).
    """
    encoding = work.encoding
    if not work.todo or encoding.model is None:
        return work.without(work.todo)
    device = pick_device(encoding.device)
    run.emit(Stage(name="load_text_encoder", text="Loading the text encoder"))
    dtype = DTYPES[encoding.precision]
    encoder = load_text_encoder(encoding.model, device, dtype, quant="fp8" if encoding.fp8 else "none")
    return work.without(_encode_all(list(work.todo), encoder, _Tools.of(encoding), encoding, run))


@dataclass(frozen=True)
class _Tools:
    """What decides the features of a caption: the encoder's weights and the caption's token ids. Both None
    when no encoder is named."""

    weights: str | None
    tokenizer: Tokenizer | None

    @classmethod
    def of(cls, encoding: Encoding) -> "_Tools":
        if encoding.model is None:
            return cls(None, None)
        vocabulary = text_encoder_config_of(encoding.model).vocab_size
        tokenizer = load_tokenizer(encoding.tokenizer, encoding.model, vocabulary)
        return cls(model_identity(encoding.model, "text_encoder"), tokenizer)

    def maker(self, caption: str, encoding: Encoding, *, writes: bool = False) -> Maker:
        precision = encoding.numbers if writes or encoding.compare_precision else None
        if self.tokenizer is None:
            return Maker(None, precision)
        ids = self.tokenizer.encode_prompt(caption).ids
        digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
        return Maker(f"{self.weights}-{digest}", precision)


def _encode_all(
    todo: list[CacheItem],
    encoder: Qwen3TextEncoder,
    tools: _Tools,
    encoding: Encoding,
    run: Run,
) -> set[CacheItem]:
    """Encode every different caption once and write it for each of its pictures; returns the items that
    failed.
    """
    tokenizer = tools.tokenizer
    assert tokenizer is not None
    run.emit(Stage(name="encode_text", text=f"Encoding {count_of(len(todo), 'caption')}"))
    by_caption: dict[str, list[CacheItem]] = {}
    for item in todo:
        by_caption.setdefault(item.caption, []).append(item)
    _tell_lost_words(tokenizer, by_caption, run)
    # Captions of like length share a batch, so that little is computed for padding.
    captions = sorted(by_caption, key=lambda caption: (-len(caption), caption))
    size = encoding.batch or 8
    failed: set[CacheItem] = set()
    meter, done = Meter(run, len(todo), "captions"), 0
    for start in range(0, len(captions), size):
        batch = captions[start : start + size]
        for caption, features in zip(batch, encode_prompts(encoder, tokenizer, batch), strict=True):
            maker = tools.maker(caption, encoding, writes=True)
            failed |= _write(by_caption[caption], features.to("cpu", torch.bfloat16), maker)
            done += len(by_caption[caption])
        meter.at(done)
        stop_if_asked(run, done, len(todo), "captions")
    if failed:
        names = listing(sorted(shown_name(item.picture.path) for item in failed))
        run.emit(
            Warning(
                text=f"{len(failed)} captions gave infinite or undefined numbers and are left out: {names}"
            )
        )
    run.emit(Note(text=f"encoded {count_of(len(todo) - len(failed), 'caption')}"))
    return failed


def _tell_lost_words(tokenizer: Tokenizer, by_caption: dict[str, list[CacheItem]], run: Run) -> None:
    for caption, items in by_caption.items():
        warning = tokenizer.encode_prompt(caption).warning
        if warning is not None:
            run.emit(Warning(text=f"{shown_name(items[0].picture.path)}: {warning}"))


def _write(items: list[CacheItem], features: Tensor, maker: Maker) -> set[CacheItem]:
    if not bool(torch.isfinite(features).all()):
        return set(items)
    data = features.contiguous().view(torch.uint8).numpy().tobytes()
    for item in items:
        write_cache(item.text_path, TEXT_KEY, "BF16", tuple(features.shape), data, text_metadata(item, maker))
    return set()
