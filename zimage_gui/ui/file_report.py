"""What a model, LoRA or cache file is, as HTML, from its header alone.

Knows headers and HTML. Reads no tensor, so a 12 GB file answers as fast as a LoRA; corrupt files are refused
with a sentence.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from zimage_gui.files import Header, expand_shards
from zimage_gui.model.checkpoint import header_of
from zimage_gui.model.recognise import recognise
from zimage_gui.ui.html import badge, escape, facts, file_size, notice

MOST_TENSORS = 200
MOST_METADATA = 60
LONGEST_VALUE = 2000
USABLE_KINDS = ("transformer", "vae", "text_encoder", "all_in_one", "lora")


def report(path: Path) -> str:
    """The whole report. Raises UserError for a file that is missing, cut off or malformed."""
    found = recognise(path)
    tone = "good" if found.kind in USABLE_KINDS else "warn"
    head = notice(
        f"<b>{escape(path.name)}</b>: {escape(found.sentence)} {badge(found.kind.replace('_', ' '), tone)}",
        tone,
        raw=True,
    )
    files = _headers(path)
    if not files:
        return head
    return head + _numbers(files) + _lora(files) + _metadata(files) + _tensors(files)


def _headers(path: Path) -> list[tuple[Path, Header]]:
    if path.suffix.lower() not in (".safetensors", ".bpk") and not path.is_dir():
        return []
    return [(file, header_of(file)) for file in expand_shards(path)]


def _numbers(files: list[tuple[Path, Header]]) -> str:
    tensors = [info for _, header in files for info in header.tensors.values()]
    dtypes = Counter(info.dtype for info in tensors)
    values = sum(_count(info.shape) for info in tensors)
    size = sum(file.stat().st_size for file, _ in files)
    pairs = [
        ("Size", file_size(size)),
        ("Files", f"{len(files):,}"),
        ("Tensors", f"{len(tensors):,}"),
        ("Parameters", f"{values / 1e9:.2f} B" if values >= 1e9 else f"{values / 1e6:.2f} M"),
        ("Number format", ", ".join(f"{name} ({count:,})" for name, count in dtypes.most_common(4))),
    ]
    return facts(pairs)


def _lora(files: list[tuple[Path, Header]]) -> str:
    """Rank and names of a LoRA: what decides whether another program reads it."""
    shapes = {name: info.shape for _, header in files for name, info in header.tensors.items()}
    down = [
        shape
        for name, shape in shapes.items()
        if name.endswith((".lora_down.weight", ".lora_A.weight")) and len(shape) == 2
    ]
    if not down:
        return ""
    ranks = Counter(min(shape) for shape in down)
    first = next(name for name in shapes if ".lora_" in name)
    form = (
        "lora_unet_ names (musubi, sd-scripts)"
        if first.startswith("lora_unet_")
        else f"{first.split('.')[0]}. names"
    )
    pairs = [
        (
            "Rank",
            ", ".join(
                f"{rank} ({count}x)" if len(ranks) > 1 else str(rank) for rank, count in ranks.most_common(4)
            ),
        ),
        ("Layers", f"{len(down):,}"),
        ("Names", form),
        (
            "Alpha",
            "stored" if any(name.endswith(".alpha") for name in shapes) else "not stored: equals the rank",
        ),
    ]
    return facts(pairs)


def _metadata(files: list[tuple[Path, Header]]) -> str:
    entries = {key: value for _, header in files for key, value in header.metadata.items()}
    if not entries:
        return '<p class="zg-muted">No metadata in the file.</p>'
    rows = "".join(
        (
            f"<tr><td>{escape(key)}</td><td>{escape(value[:LONGEST_VALUE])}"
            f"{'…' if len(value) > LONGEST_VALUE else ''}</td></tr>"
        )
        for key, value in sorted(entries.items())[:MOST_METADATA]
    )
    return (
        f'<details open><summary>Metadata</summary><div class="zg-scroll"><table '
        f'class="zg-table">{rows}</table></div></details>'
    )


def _tensors(files: list[tuple[Path, Header]]) -> str:
    named = [(name, info) for _, header in files for name, info in header.tensors.items()]
    rows = "".join(
        (
            f'<tr><td class="zg-code">{escape(name)}</td><td>'
            f"{' x '.join(map(str, info.shape))}</td><td>{escape(info.dtype)}</td></tr>"
        )
        for name, info in named[:MOST_TENSORS]
    )
    more = (
        f'<p class="zg-muted">and {len(named) - MOST_TENSORS:,} more</p>' if len(named) > MOST_TENSORS else ""
    )
    return (
        f'<details><summary>Tensors ({len(named):,})</summary><div class="zg-scroll">'
        f'<table class="zg-table">{rows}</table></div>{more}</details>'
    )


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for edge in shape:
        product *= edge
    return product
