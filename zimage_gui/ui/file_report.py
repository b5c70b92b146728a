"""What a file or folder is, as HTML: the report of `inspect`, for the Convert and the Models tab.

Knows reports and HTML; every text out of a file is escaped here. Finding out is the engine's.
"""

from __future__ import annotations

from zimage_gui.engine import header_picture
from zimage_gui.engine.inspect_report import FileReport, LoraSummary, Verdict
from zimage_gui.engine.inspect_text import plain
from zimage_gui.ui.html import badge, escape, facts, file_size, notice, tag

MOST_TENSORS = 200
MOST_METADATA = 60
LONGEST_VALUE = 2000
USABLE_KINDS = ("transformer", "vae", "text_encoder", "all_in_one", "lora", "model_folder", "comfyui_folder")
_TONES = {"yes": "good", "partly": "warn", "no": "bad"}


def report_html(found: FileReport) -> str:
    """The whole report."""
    here = next((one.answer for one in found.verdicts if one.program == "here"), "")
    good = found.kind in USABLE_KINDS and here != "no"
    tone = "good" if good else "warn"
    kind = badge(found.kind.replace("_", " "), tone)
    head = notice(f"<b>{escape(plain(found.path.name))}</b>: {escape(found.sentence)} {kind}", tone, raw=True)
    return (
        head
        + _picture(found)
        + verdict_table(found.verdicts)
        + _numbers(found)
        + _facts(found)
        + _parts(found)
        + _metadata(found)
        + _tensors(found)
    )


def _picture(found: FileReport) -> str:
    shown = header_picture.of_header(found.metadata)
    return f'<img class="zg-header-picture" src="{shown}" alt="The picture in its header">' if shown else ""


def verdict_table(verdicts: tuple[Verdict, ...]) -> str:
    """Which programs read it, one a line with the reason."""
    rows = "".join(
        f"<tr><td>{escape(one.program)}</td><td>{badge(one.answer, _TONES[one.answer])}</td>"
        f"<td>{escape(one.because)}</td></tr>"
        for one in verdicts
    )
    return f'<table class="zg-table zg-verdicts"><caption>Loads in</caption>{rows}</table>' if rows else ""


def verdict_badges(verdicts: tuple[Verdict, ...]) -> str:
    """The same in one line; the reasons are shown when pointed at."""
    badges = []
    for one in verdicts:
        label = badge(f"{one.program}: {one.answer}", _TONES[one.answer])
        badges.append(tag("span", label, title=one.sentence()))
    return " ".join(badges)


def _numbers(found: FileReport) -> str:
    if not found.tensors:
        return facts([("Size", file_size(found.bytes))]) if found.bytes else ""
    values = found.parameters
    dtypes = list(found.dtypes.items())[:4]
    pairs = [
        ("Size", file_size(found.bytes)),
        ("Files", f"{found.files:,}"),
        ("Tensors", f"{len(found.tensors):,}"),
        ("Parameters", f"{values / 1e9:.2f} B" if values >= 1e9 else f"{values / 1e6:.2f} M"),
        ("Number format", ", ".join(f"{name} ({count:,})" for name, count in dtypes)),
    ]
    if found.lora is not None and found.lora.modules:
        pairs += _lora_pairs(found.lora)
    return facts(pairs)


def _lora_pairs(lora: LoraSummary) -> list[tuple[str, str]]:
    """What decides how strong a LoRA is and where it acts."""
    alphas = ", ".join(f"{value:g}" for value in lora.alphas[:4])
    return [
        ("Rank", ", ".join(map(str, lora.ranks[:4])) or "full"),
        ("Alpha", alphas or "not stored"),
        ("Layers", f"{lora.modules:,}"),
    ]


def _facts(found: FileReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(plain(name, 80))}</td><td>{escape(plain(value, 600))}</td></tr>"
        for name, value in found.facts
    )
    return f'<table class="zg-table">{rows}</table>' if rows else ""


def _parts(found: FileReport) -> str:
    rows = "".join(
        f"<tr><td><b>{escape(plain(part.path.relative_to(found.path).as_posix()))}</b></td>"
        f"<td>{escape(part.sentence)}<br>{verdict_badges(part.verdicts)}</td></tr>"
        for part in found.parts
    )
    return f'<div class="zg-scroll"><table class="zg-table">{rows}</table></div>' if rows else ""


def _metadata(found: FileReport) -> str:
    if not found.metadata:
        return '<p class="zg-muted">No metadata in the file.</p>' if found.tensors else ""
    rows = "".join(
        f"<tr><td>{escape(plain(key, 120))}</td><td>{escape(plain(value, LONGEST_VALUE))}</td></tr>"
        for key, value in sorted(found.metadata.items())[:MOST_METADATA]
    )
    hidden = len(found.metadata) - MOST_METADATA
    more = f'<p class="zg-muted">and {hidden:,} more</p>' if hidden > 0 else ""
    return (
        f'<details><summary>Metadata ({len(found.metadata):,})</summary><div class="zg-scroll">'
        f'<table class="zg-table">{rows}</table></div>{more}</details>'
    )


def _tensors(found: FileReport) -> str:
    if not found.tensors:
        return ""
    rows = "".join(
        f'<tr><td class="zg-code">{escape(plain(name, 300))}</td>'
        f"<td>{' x '.join(map(str, info.shape))}</td><td>{escape(info.dtype)}</td></tr>"
        for name, info in list(found.tensors.items())[:MOST_TENSORS]
    )
    hidden = len(found.tensors) - MOST_TENSORS
    more = f'<p class="zg-muted">and {hidden:,} more</p>' if hidden > 0 else ""
    return (
        f'<details><summary>Tensors ({len(found.tensors):,})</summary><div class="zg-scroll">'
        f'<table class="zg-table">{rows}</table></div>{more}</details>'
    )
