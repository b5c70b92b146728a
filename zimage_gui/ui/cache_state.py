"""How much of a dataset's caches is ready, missing or stale, found without torch.

Knows the scan and the verdicts of `engine.cache_files`. Changes nothing.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.config.variant_parts import CAPTION_VARIANTS
from zimage_gui.engine.cache_files import (
    CacheItem,
    Kind,
    Maker,
    State,
    Verdict,
    cache_items,
    judge_latent,
    judge_text,
    model_identity,
    with_captions,
    with_flips,
)
from zimage_gui.engine.dataset.scan import ScanReport, scan
from zimage_gui.engine.dataset.sources import check_or_raise, sources_of
from zimage_gui.engine.model_files import find_part
from zimage_gui.errors import UserError
from zimage_gui.ui.html import badge, escape, facts, notice, plural

NAMED = 6
TONES = {
    State.READY: "good",
    State.UNVERIFIED: "warn",
    State.MISSING: "plain",
    State.STALE: "warn",
    State.CORRUPT: "bad",
}


@dataclass(frozen=True)
class CacheState:
    """Both caches of one dataset: its files and a verdict for each."""

    report: ScanReport
    items: dict[Kind, list[CacheItem]]
    verdicts: dict[Kind, list[Verdict]]

    def to_do(self, kind: Kind) -> int:
        return sum(not verdict.state.usable for verdict in self.verdicts[kind])


def look(config: CacheLatentsConfig, captions: CacheTextConfig | None = None) -> CacheState:
    """Judge every cache file; reads and hashes the pictures, so it takes about as long as copying them.

    The text encoder is not compared here (its identity includes the tokenizer, which only the command knows).
    captions: whose options say which captions a plain folder's pictures have. Raises UserError for a dataset
    that is not there.
    """
    sources = sources_of(config)
    if captions is not None and config.dataset_config is None:
        chosen = {name: getattr(captions, name) for name in CAPTION_VARIANTS}
        sources = tuple(replace(source, **chosen) for source in sources)
    check_or_raise(sources)
    report = scan(sources)
    plain = cache_items(report.pictures)
    items = {Kind.LATENT: with_flips(plain), Kind.TEXT: with_captions(plain)}
    latent, text = Maker(_vae_identity(config)), Maker(None)
    with ThreadPoolExecutor(max_workers=4) as pool:
        latents = list(pool.map(lambda item: judge_latent(item, latent), items[Kind.LATENT]))
        texts = list(pool.map(lambda item: judge_text(item, text), items[Kind.TEXT]))
    return CacheState(report, items, {Kind.LATENT: latents, Kind.TEXT: texts})


def _vae_identity(config: CacheLatentsConfig) -> str | None:
    try:
        path = config.vae or (find_part(config.model_dir, "vae") if config.model_dir else None)
        return model_identity(path, "vae") if path else None
    except UserError:
        return None  # the command will refuse it in its own words; here the cache is judged without it


def as_html(state: CacheState) -> str:
    """Two cards, one per cache, with counts and the reasons of what is stale."""
    cards = _card("Latents (pictures)", state, Kind.LATENT) + _card("Text (captions)", state, Kind.TEXT)
    left_out = state.report.refused
    if left_out:
        names = ", ".join(entry.sentence() for entry in left_out[:NAMED])
        more = " …" if len(left_out) > NAMED else ""
        cards += notice(
            f"{plural(len(left_out), 'picture is', 'pictures are')} left out: {names}{more}", "warn"
        )
    return cards


def _card(title: str, state: CacheState, kind: Kind) -> str:
    verdicts = state.verdicts[kind]
    counts = Counter(verdict.state for verdict in verdicts)
    to_do = state.to_do(kind)
    word = badge("up to date", "good") if not to_do else badge(f"{to_do:,} to do", "warn")
    numbers = facts(
        [(one.value.capitalize(), f"{counts[one]:,}") for one in State if counts[one] or one is State.READY]
    )
    reasons = [
        f"{item.picture.path.name}: {verdict.reason or verdict.state.value}"
        for item, verdict in zip(state.items[kind], verdicts, strict=True)
        if verdict.state in (State.STALE, State.CORRUPT)
    ]
    shown = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[:NAMED])
    rest = f"<li>and {len(reasons) - NAMED:,} more</li>" if len(reasons) > NAMED else ""
    listed = f"<ul>{shown}{rest}</ul>" if reasons else ""
    tone = "good" if not to_do else "warn"
    return notice(
        f"<div class='zg-chips'><b>{escape(title)}</b>{word}</div>{numbers}{listed}", tone, raw=True
    )
