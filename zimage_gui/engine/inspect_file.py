"""The command `inspect`: what a file is, said from its header. No tensor is read, and torch is not imported.

Knows how a file's kind, tensors, numbers and header are told to a person and as JSON. It must not know how
files are loaded.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zimage_gui.burnpack import is_bpk
from zimage_gui.config.convert import InspectConfig
from zimage_gui.errors import Problem, raise_if_any
from zimage_gui.events import Run
from zimage_gui.files import TensorInfo
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.lora_dialects import Key, describe_dialect, parse_key
from zimage_gui.model.recognise import USABLE, Recognised, recognise

_SHOWN_METADATA = 200
_FORMATS = {"gguf": "gguf", "pickle": "pickle"}
_ALPHA_FORMS = {"F32": "<f", "F64": "<d", "F16": "<e"}
_PAIRS = (
    ("down", "up"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)


@dataclass(frozen=True)
class LoraSummary:
    """What a LoRA's names and shapes say. `targets` counts modules by kind; `unknown` are names of no
    module; `halves` counts modules of which a factor is missing."""

    dialect: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    modules: int
    targets: dict[str, int]
    unknown: tuple[str, ...]
    halves: int = 0


@dataclass(frozen=True)
class FileReport:
    """Everything `inspect` says about one file or one part of a model folder."""

    path: Path
    kind: str
    layout: str
    format: str
    sentence: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: int = 1
    bytes: int = 0
    lora: LoraSummary | None = None

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype."""
        return dict(Counter(info.dtype for info in self.tensors.values()).most_common())

    @property
    def parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self.tensors.values())

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
            "metadata": self.metadata,
            "tensors": [
                {"name": name, "dtype": info.dtype, "shape": list(info.shape)}
                for name, info in sorted(self.tensors.items())
            ],
        }
        if self.lora is not None:
            report["lora"] = vars(self.lora)
        return report

    def text(self, limit: int = 20) -> str:
        """The report for a terminal, with at most `limit` tensors (0: all)."""
        lines = [f"Inspecting: {self.path.name}", f"This is {self.sentence}."]
        lines += _lora_lines(self.lora) if self.lora else []
        if self.tensors:
            set_of = f" in {self.files} files" if self.files > 1 else ""
            lines.append(f"Total tensors: {len(self.tensors)}{set_of}")
            lines.append(f"Parameters: {self.parameters:,} ({_size(self.bytes)})")
            lines += ["", *_tensor_lines(self.tensors, limit)]
            lines += ["", "--- Dtype Summary ---"]
            lines += [f"  {dtype}: {count} tensors" for dtype, count in self.dtypes.items()]
        if self.metadata:
            lines += ["", "--- Metadata ---"]
            lines += [f"  {name}: {_short(value)}" for name, value in sorted(self.metadata.items())]
        return "\n".join(lines)


def run(config: InspectConfig, run: Run) -> list[Path]:
    """Prints the report; it makes no file."""
    raise_if_any(check(config))
    assert config.input is not None  # `check` has seen to it
    reports = inspect(config.input)
    if config.as_json:
        whole = {"kind": "model_folder", "parts": {r.kind: r.as_dict() for r in reports}}
        print(json.dumps(reports[0].as_dict() if len(reports) == 1 else whole, ensure_ascii=False, indent=1))
    else:
        print("\n\n".join(report.text(config.limit) for report in reports))
    return []


def check(config: InspectConfig) -> list[Problem]:
    """Whether there is something to look into; what is wrong inside is what `inspect` itself says."""
    problems = config.problems()
    if config.input is not None and not config.input.exists():
        problems.append(Problem("input", str(config.input), "does not exist", "Check the path"))
    return problems


def inspect(path: Path) -> list[FileReport]:
    """One report, or one per part for a whole model folder. Raises UserError for a file that is cut off or
    malformed."""
    parts = [part for part in USABLE if (path / part).is_dir()]
    if parts and not any(path.glob("*.safetensors")):
        return [_report(path / part, recognise(path / part, "input")) for part in parts]
    return [_report(path, recognise(path, "input"))]


def _report(path: Path, found: Recognised) -> FileReport:
    if found.checkpoint is None:
        size = path.stat().st_size
        return FileReport(
            path, found.kind, found.layout, _FORMATS.get(found.kind, ""), found.sentence, bytes=size
        )
    checkpoint = found.checkpoint
    tensors = {name: place.info for name, place in checkpoint.places.items()}
    lora = lora_summary(checkpoint) if found.kind == "lora" else None
    return FileReport(
        path,
        found.kind,
        found.layout,
        "bpk" if is_bpk(checkpoint.files[0]) else "safetensors",
        _lora_sentence(lora) if lora else found.sentence,
        tensors,
        dict(checkpoint.metadata),
        len(checkpoint.files),
        checkpoint.total_bytes,
        lora,
    )


def lora_summary(checkpoint: Checkpoint) -> LoraSummary:
    """Ranks, alphas and targets of a LoRA. Reads the alphas, which are single numbers, and nothing else."""
    keys = {name: parse_key(name) for name in checkpoint.places}
    known = {name: key for name, key in keys.items() if key is not None}
    modules = {target for key in known.values() for target in key.targets}
    return LoraSummary(
        describe_dialect(checkpoint.places, checkpoint.metadata),
        tuple(sorted(_ranks(known, checkpoint.shapes))),
        tuple(sorted(_alphas(known, checkpoint))),
        len(modules),
        dict(sorted(Counter(_kind_of_module(module) for module in modules).items())),
        tuple(sorted(name for name, key in keys.items() if key is None)),
        _halves(known),
    )


def _halves(known: Mapping[str, Key]) -> int:
    """Modules of which one factor lacks the other."""
    parts: dict[tuple[str, ...], set[str]] = {}
    for key in known.values():
        parts.setdefault(key.targets, set()).add(key.part)
    return sum(
        len(targets)
        for targets, found in parts.items()
        if any((one in found) != (other in found) for one, other in _PAIRS)
    )


def _ranks(known: Mapping[str, Key], shapes: Mapping[str, tuple[int, ...]]) -> set[int]:
    inner = {"down": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0}
    return {
        shapes[name][inner[key.part]] for name, key in known.items() if key.part in inner and shapes[name]
    }


def _alphas(known: Mapping[str, Key], checkpoint: Checkpoint) -> set[float]:
    found = set()
    for name, key in known.items():
        place = checkpoint.places[name]
        if key.part != "alpha" or math.prod(place.info.shape) != 1:
            continue
        with place.file.open("rb") as file:
            file.seek(place.info.start)
            found.add(_number(file.read(place.info.end - place.info.start), place.info.dtype))
    return {value for value in found if math.isfinite(value)}


def _number(data: bytes, dtype: str) -> float:
    if dtype == "BF16":
        data, dtype = b"\0\0" + data, "F32"
    form = _ALPHA_FORMS.get(dtype)
    return round(float(struct.unpack(form, data)[0]), 6) if form else math.nan


def _kind_of_module(module: str) -> str:
    """`layers.3.attention.to_q` -> `layers attention.to_q`: the same place in every block."""
    head, _, rest = module.partition(".")
    number, _, inner = rest.partition(".")
    return f"{head} {inner}" if number.isdigit() else module


def _lora_sentence(lora: LoraSummary) -> str:
    if not lora.modules:
        return f"an adapter of another model: none of its {len(lora.unknown)} tensors belongs to Z-Image"
    kind, _, names = lora.dialect.partition(", ")
    rank = "rank " + " and ".join(map(str, lora.ranks)) if lora.ranks else "full factors"
    alpha = ", alpha " + " and ".join(f"{value:g}" for value in lora.alphas) if lora.alphas else ""
    halves = f", {lora.halves} of them incomplete: a factor is missing" if lora.halves else ""
    unknown = f", but {len(lora.unknown)} tensors belong to no module of Z-Image" if lora.unknown else ""
    return f"a {kind} for Z-Image with {names}: {rank}{alpha}, {lora.modules} modules{halves}{unknown}"


def _lora_lines(lora: LoraSummary) -> list[str]:
    """One line per part of the network: `layers: attention.to_q ×30, …`."""
    by_part: dict[str, list[str]] = {}
    for name, count in lora.targets.items():
        part, _, inner = name.partition(" ")
        by_part.setdefault(part if inner else "outside the blocks", []).append(f"{inner or name} ×{count}")
    lines = [f"  {part}: {', '.join(names)}" for part, names in by_part.items()]
    if lora.unknown:
        shown = ", ".join(lora.unknown[:6]) + (" …" if len(lora.unknown) > 6 else "")
        lines.append(f"  unknown: {shown}")
    return lines


def _tensor_lines(tensors: Mapping[str, TensorInfo], limit: int) -> list[str]:
    shown = sorted(tensors.items())[: limit or None]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [
        f"  [{index:4d}] {name:<{width}}  {list(info.shape)}  {info.dtype}"
        for index, (name, info) in enumerate(shown)
    ]
    hidden = len(tensors) - len(shown)
    return lines + ([f"  … {hidden} more (--limit 0 shows all)"] if hidden else [])


def _short(value: str) -> str:
    plain = " ".join(value.split())
    visible = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in plain)
    return visible if len(visible) <= _SHOWN_METADATA else visible[:_SHOWN_METADATA] + "…"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
