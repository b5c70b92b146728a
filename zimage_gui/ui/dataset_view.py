"""A scanned dataset as HTML: what is wrong, the buckets, and a page of picture cards with their captions.

Knows the scan report and HTML. Knows nothing of gradio; pictures go through the picture cache, captions get
tokens.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.dataset.captions import read_caption
from zimage_gui.engine.dataset.scan import Picture, Refused, ScanReport
from zimage_gui.ui.captions import CaptionFiles
from zimage_gui.ui.html import button, escape, plural
from zimage_gui.ui.pictures import PictureCache, url

PER_PAGE = 24
MUCH_CROPPED = 0.12  # share of a picture's area that is cut away

Entry = Picture | Refused


@dataclass(frozen=True)
class Filter:
    """One chip above the grid: its words, the entries it shows and how serious they are."""

    key: str
    words: str
    entries: tuple[Entry, ...]
    tone: str


def filters(report: ScanReport) -> list[Filter]:
    """All chips, with counts; those that would show nothing are left out, except the first."""
    everything: tuple[Entry, ...] = tuple(
        sorted((*report.pictures, *report.refused), key=lambda entry: str(entry.path))
    )
    by_kind = {
        kind: tuple(entry for entry in report.refused if entry.kind == kind)
        for kind in ("missing_caption", "picture", "caption", "entry")
    }
    cropped = tuple(picture for picture in report.pictures if picture.fit.lost_share > MUCH_CROPPED)
    turned = tuple(picture for picture in report.pictures if picture.notes)
    found = [
        Filter("all", "pictures", everything, "plain"),
        Filter("missing_caption", "without caption", by_kind["missing_caption"], "bad"),
        Filter("empty", "with empty caption", tuple(report.empty_captions), "warn"),
        Filter("picture", "unreadable", by_kind["picture"], "bad"),
        Filter("caption", "with unreadable caption", by_kind["caption"], "bad"),
        Filter("entry", "wrong entries", by_kind["entry"], "bad"),
        Filter("upscaled", "enlarged", tuple(report.upscaled), "warn"),
        Filter("cropped", f"cropped over {MUCH_CROPPED:.0%}", cropped, "warn"),
        Filter("noted", "converted", turned, "plain"),
    ]
    return [found[0], *(one for one in found[1:] if one.entries)]


def strip(report: ScanReport, chosen: str) -> str:
    """The row of chips."""
    chips = []
    for one in filters(report):
        on = "zg-on" if one.key == chosen else ""
        chips.append(
            f'<button type="button" class="zg-chip zg-{one.tone} {on}" data-action="filter" '
            f'data-key="{one.key}">'
            f"<b>{len(one.entries):,}</b> {escape(one.words)}</button>"
        )
    usable = f'<span class="zg-muted">{plural(len(report.pictures), "picture")} will be trained</span>'
    return f'<div class="zg-chips">{"".join(chips)}{usable}</div>'


def buckets(report: ScanReport) -> str:
    """How many pictures each training size gets."""
    rows = report.buckets()
    most = max((count for _, count, _ in rows), default=1)
    bars = "".join(
        f'<div class="zg-hbar"><span>{width} x {height}</span><i style="width:{100 * count / most:.1f}%"></i>'
        f"<span>{count:,}{f' ({repeated:,} per epoch)' if repeated != count else ''}</span></div>"
        for (width, height), count, repeated in rows
    )
    return bars or '<p class="zg-empty">No usable picture yet.</p>'


def pages(entries: tuple[Entry, ...]) -> int:
    return max(1, -(-len(entries) // PER_PAGE))


def grid(report: ScanReport, chosen: str, page: int, cache: PictureCache, captions: CaptionFiles) -> str:
    """One page of cards with the pager around it."""
    entries = next((one.entries for one in filters(report) if one.key == chosen), ())
    if not entries:
        return '<p class="zg-empty">No picture here.</p>'
    last = pages(entries)
    page = min(max(page, 1), last)
    shown = entries[(page - 1) * PER_PAGE : page * PER_PAGE]
    with ThreadPoolExecutor(max_workers=4) as pool:
        cards = "".join(pool.map(lambda entry: _card(entry, cache, captions), shown))
    return f'{_pager(page, last)}<div class="zg-cards">{cards}</div>{_pager(page, last)}'


def _pager(page: int, last: int) -> str:
    if last == 1:
        return ""
    back = button("‹ Previous", "page", page=str(page - 1)) if page > 1 else ""
    on = button("Next ›", "page", page=str(page + 1)) if page < last else ""
    return (
        f'<div class="zg-chips" style="margin:6px 0">{back}<span class="zg-muted">page '
        f"{page} of {last}</span>{on}</div>"
    )


def _card(entry: Entry, cache: PictureCache, captions: CaptionFiles) -> str:
    small = cache.thumbnail(entry.path)
    whole = cache.published(entry.path) if small is not None else None
    name = escape(entry.path.name)
    picture = '<div class="zg-thumb zg-empty">no picture</div>'
    if small is not None and whole is not None:
        picture = (
            f'<img class="zg-thumb" loading="lazy" src="{url(small)}" '
            f'data-full="{url(whole)}" alt="{name}" title="{name}">'
        )
    wrong = "zg-wrong" if isinstance(entry, Refused) else ""
    head = (
        f'<span class="zg-name" title="{escape(str(entry.path))}">{name}</span><span '
        f'class="zg-sub">{_about(entry)}</span>'
    )
    return f'<div class="zg-card {wrong}">{picture}{head}{_editor(entry, captions)}</div>'


def _about(entry: Entry) -> str:
    if isinstance(entry, Refused):
        return escape(entry.reason)
    (width, height), (across, down) = entry.original, entry.bucket
    parts = [f"{width} x {height} → {across} x {down}"]
    if entry.fit.lost_share > 0.005:
        parts.append(f"{entry.fit.lost_share:.0%} cropped")
    if entry.upscaled:
        parts.append(f"enlarged {entry.fit.scale:.2g}x")
    return escape(" · ".join([*parts, *entry.notes]))


def _editor(entry: Entry, captions: CaptionFiles) -> str:
    """The caption to type in; captions of a JSONL file are only shown, since they have no file of
    their own."""
    file = caption_file(entry)
    if file is None:
        text = entry.caption if isinstance(entry, Picture) else ""
        return f'<span class="zg-sub">{escape(text)}</span>' if text else ""
    text = read_caption(file).text if file.exists() else ""
    token = captions.token(file)
    return (
        f'<textarea spellcheck="true" data-token="{token}" data-before="{escape(text)}" '
        f'aria-label="Caption of '
        f'{escape(entry.path.name)}" placeholder="No caption yet. Type one: it is saved '
        f'when you leave the field.">'
        f'{escape(text)}</textarea><span class="zg-sub" data-part="state"></span>'
    )


def caption_file(entry: Entry) -> Path | None:
    """Where the caption of a picture is kept, or would be; None when it is no file of its own."""
    if isinstance(entry, Picture):
        return entry.caption_path
    return entry.path.with_suffix(".txt") if entry.kind == "missing_caption" else None
