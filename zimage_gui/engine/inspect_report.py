"""What `inspect` found, as values, as text for a terminal and as JSON.

Knows how a file's kind, tensors, numbers and verdicts are told. It must not know how they were found out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zimage_gui.engine.inspect_text import columns, padded, plain, shortened, size, table, wrapped
from zimage_gui.errors import visible
from zimage_gui.files import TensorInfo
from zimage_gui.model.fp8_names import fp8_parts

_SHOWN_METADATA = 100
_SEED_NAME_WIDTH = 80
"""To which the second seed's `inspect` pads names."""

Answer = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Verdict:
    """Whether a program reads the file; `because` is the rest of a sentence, may be empty after yes."""

    program: str
    answer: Answer
    because: str = ""

    def sentence(self) -> str:
        return f"{self.answer}, {self.because}" if self.because else self.answer


@dataclass(frozen=True)
class LoraSummary:
    """What a LoRA's names, shapes and header say.

    targets: modules by kind; unknown: names of no module; halves: modules of which a factor is missing;
    mismatches: sentences about factors that do not fit each other; width: of the model it is made for, 0 when
    it cannot be read off; triggers: the words it was trained on, from the header.
    """

    dialect: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    modules: int
    targets: dict[str, int]
    unknown: tuple[str, ...]
    halves: int = 0
    mismatches: tuple[str, ...] = ()
    width: int = 0
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileReport:
    """Everything said about one file, one model of several files, or a folder with its `parts`.

    facts: further (label, text) pairs in the order of their weight.
    """

    path: Path
    kind: str
    layout: str
    format: str
    sentence: str
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: int = 1
    bytes: int = 0
    lora: LoraSummary | None = None
    verdicts: tuple[Verdict, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    parts: tuple[FileReport, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype."""
        return dict(Counter(info.dtype for info in self.tensors.values()).most_common())

    @property
    def parameters(self) -> int:
        """Numbers in all tensors that are weights: the scales of fp8 belong to how these are stored."""
        try:
            names: Iterable[str] = fp8_parts(self.tensors).plain
        except ValueError:
            names = self.tensors
        return sum(math.prod(self.tensors[name].shape) for name in names)

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        report: dict[str, Any] = {
            "path": str(self.path),
            "kind": self.kind,
            "layout": self.layout,
            "format": self.format,
            "sentence": self.sentence,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "files": self.files,
            "dtypes": self.dtypes,
            "verdicts": {one.program: {"loads": one.answer, "because": one.because} for one in self.verdicts},
            "facts": dict(self.facts),
            "metadata": dict(self.metadata),
            "tensors": [
                {"name": name, "dtype": info.dtype, "shape": list(info.shape)}
                for name, info in sorted(self.tensors.items())
            ],
        }
        if self.lora is not None:
            report["lora"] = vars(self.lora)
        if self.hashes:
            report["hashes"] = dict(self.hashes)
        if self.parts:
            report["parts"] = {
                part.path.relative_to(self.path).as_posix(): part.as_dict() for part in self.parts
            }
        return report

    def text(self, limit: int = 20, width: int | None = None) -> str:
        """The report for a terminal of `width` columns (None: no wrapping), with at most `limit` tensors (0:
        all)."""
        lines = [f"Inspecting: {visible(str(self.path))}"]
        lines += wrapped(f"This is {visible(self.sentence)}.", width)
        lines += _section("", _fact_rows(self), width)
        lines += _section(
            "Loads in", [(one.program, visible(one.sentence())) for one in self.verdicts], width
        )
        if self.parts:
            lines += _part_lines(self, width)
        if self.tensors:
            set_of = f" in {self.files} files" if self.files > 1 else ""
            lines += ["", f"Total tensors: {len(self.tensors)}{set_of}", ""]
            lines += _tensor_lines(self.tensors, limit, width)
            lines += ["", "--- Dtype Summary ---"]
            lines += [f"  {dtype}: {count} tensors" for dtype, count in self.dtypes.items()]
        if self.metadata:
            lines += ["", "--- Metadata ---", *_metadata_lines(self.metadata, width)]
        return "\n".join(lines)


def _section(title: str, rows: list[tuple[str, str]], width: int | None) -> list[str]:
    return ["", *([title] if title else []), *table(rows, width)] if rows else []


def _fact_rows(report: FileReport) -> list[tuple[str, str]]:
    rows = []
    if report.bytes:
        several = f" in {report.files} files" if report.files > 1 else ""
        rows.append(("Size", size(report.bytes) + several))
    if report.tensors:
        rows.append(("Parameters", f"{report.parameters:,}"))
    rows += report.facts
    rows += _target_rows(report.lora) if report.lora else []
    rows += report.hashes.items()
    return [(label, plain(text, 1000)) for label, text in rows]


def _target_rows(lora: LoraSummary) -> list[tuple[str, str]]:
    """One row per part of the network: `layers   attention.to_q ×30, …`."""
    by_part: dict[str, list[str]] = {}
    for name, count in lora.targets.items():
        part, _, inner = name.partition(" ")
        by_part.setdefault(part if inner else "outside the blocks", []).append(f"{inner or name} ×{count}")
    rows = [(part, ", ".join(names)) for part, names in by_part.items()]
    if lora.unknown:
        shown = ", ".join(plain(name, 80) for name in lora.unknown[:6])
        rows.append(("unknown", shown + (" …" if len(lora.unknown) > 6 else "")))
    if lora.mismatches:
        rows.append(("does not fit", "; ".join(plain(one, 200) for one in lora.mismatches[:6])))
    return rows


def _part_lines(report: FileReport, width: int | None) -> list[str]:
    lines = []
    for part in report.parts:
        name = visible(part.path.relative_to(report.path).as_posix())
        lines += ["", *wrapped(f"{name}: {visible(part.sentence)}.", width, 4)]
        rows = [("Size", size(part.bytes))] if part.bytes else []
        short = ", ".join(f"{one.program} {one.answer}" for one in part.verdicts)
        lines += table(rows + ([("Loads in", short)] if short else []), width)
    return lines


def _tensor_lines(tensors: Mapping[str, TensorInfo], limit: int, width: int | None) -> list[str]:
    shown = [(visible(name), info) for name, info in sorted(tensors.items())[: limit or None]]
    shapes = [str(list(info.shape)) for _, info in shown]
    name_width, shape_width = _SEED_NAME_WIDTH, 0
    if width is not None:
        shape_width = min(max((len(shape) for shape in shapes), default=0), 30)
        longest = max((columns(name) for name, _ in shown), default=0)
        name_width = max(20, min(longest, width - shape_width - 20))
        shown = [(shortened(name, name_width), info) for name, info in shown]
    lines = [
        f"  [{index:4d}] {padded(name, name_width)} {shape:<{shape_width}}  {info.dtype}"
        for index, ((name, info), shape) in enumerate(zip(shown, shapes, strict=True))
    ]
    hidden = len(tensors) - len(shown)
    return lines + ([f"  ... ({hidden} more tensors, use --limit 0 to show all)"] if hidden else [])


def _metadata_lines(metadata: Mapping[str, str], width: int | None) -> list[str]:
    shown = sorted(metadata.items())[:_SHOWN_METADATA]
    lines: list[str] = []
    for name, value in shown:
        lines += wrapped(f"{plain(name, 80)}: {plain(value)}", width, 6, "  ")
    hidden = len(metadata) - len(shown)
    return lines + ([f"  ... ({hidden} more entries, --json shows all)"] if hidden else [])
