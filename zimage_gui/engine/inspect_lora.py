"""A LoRA told from its names, shapes and header: rank, alpha, targets, what is wrong, and which programs read
it.

Knows the measured answers of the programs (ComfyUI of January 2026, diffusers 0.36 to 0.42.1, musubi-tuner
0.3.4, z-image-burn). Reads the alphas, which are single numbers, and nothing else; it must not know torch.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from zimage_gui.engine.inspect_report import LoraSummary
from zimage_gui.engine.inspect_training import trigger_words
from zimage_gui.files import TensorInfo
from zimage_gui.model.checkpoint import Checkpoint
from zimage_gui.model.families import adapter_family
from zimage_gui.model.lora_alphas import HEADER_KEY, StrengthError, from_header
from zimage_gui.model.lora_dialects import Key, describe_dialect, parse_key

REAL_WIDTH, LUMINA_WIDTH = 3840, 2304
_MOST_ALPHAS = 20_000
_ALPHA_FORMS = {
    "F32": "<f", "F64": "<d", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B",
}  # fmt: skip
_PAIRS = (
    ("down", "up"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
_PRODUCTS = (("up", "down"), *_PAIRS[1:])
_INNER = {"down": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0}
_FUSED = re.compile(r"attention[._](qkv|out)$|^(x_embedder|final_layer)([._]|$)")
_BLOCK = re.compile(r"^((?:layers|noise_refiner|context_refiner)[._])\d+")
_SPLIT = re.compile(r"attention[._]to_(q|k|v|out[._]0)$|^all_(x_embedder|final_layer)[._]")


@dataclass(frozen=True)
class Module:
    """One adapted layer as the file spells it. spelling: "split" or "fused" where ComfyUI's names differ from
    those of diffusers, else "both" (or "odd", where only the second seed writes it so)."""

    name: str
    prefix: str
    targets: tuple[str, ...]
    parts: dict[str, TensorInfo]
    suffixes: frozenset[str]

    @property
    def spelling(self) -> str:
        if _FUSED.search(self.name):
            return "fused"
        if _SPLIT.search(self.name):
            return "split"
        return "odd" if self.name.endswith("attention.to_out") else "both"

    @property
    def half(self) -> bool:
        return any((one in self.parts) != (other in self.parts) for one, other in _PAIRS)

    def fault(self) -> str | None:
        """Factors that cannot be multiplied with each other, or rows that are no q, k and v."""
        for outer, inner in _PRODUCTS:
            if outer in self.parts and inner in self.parts:
                left, right = self.parts[outer].shape, self.parts[inner].shape
                if len(left) != 2 or len(right) != 2 or not left[1] == right[0] > 0:
                    return f"{self.name}: factors {list(right)} and {list(left)} share no rank"
        rows = self.rows
        if len(self.targets) == 3 and rows % 3:
            return f"{self.name}: {rows} rows cannot be split in q, k and v"
        return None

    @property
    def rows(self) -> int:
        """Of the weight that is changed; 1 for each factor that is not there."""
        found = 1
        for names in (("up", "hada_w1_a"), ("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")):
            shapes = [self.parts[name].shape for name in names if name in self.parts]
            found *= shapes[0][0] if shapes and shapes[0] else 1
        return found


@dataclass(frozen=True)
class Anatomy:
    """A LoRA file taken apart by names."""

    kind: str
    modules: tuple[Module, ...]
    summary: LoraSummary
    header_alpha: str | None
    sidecar: bool
    dtypes: frozenset[str]
    strength_fault: str = ""

    @property
    def prefixes(self) -> set[str]:
        return {module.prefix for module in self.modules}

    @property
    def has_alpha(self) -> bool:
        return any("alpha" in module.parts for module in self.modules)

    @property
    def rust(self) -> bool:
        return any(".lora_a" in module.suffixes for module in self.modules)


def anatomy(checkpoint: Checkpoint) -> Anatomy:
    keys = {name: parse_key(name) for name in checkpoint.places}
    parsed = {name: key for name, key in keys.items() if key is not None}
    real = _with_factors(parsed)
    known = {name: key for name, key in parsed.items() if key.targets in real}
    modules = _modules(known, checkpoint)
    dialect = describe_dialect(checkpoint.places, checkpoint.metadata)
    unknown = tuple(sorted(set(keys) - set(known)))
    paths = {target for module in modules for target in module.targets}
    summary = LoraSummary(
        dialect,
        tuple(sorted(_ranks(modules))),
        tuple(sorted(_alphas(known, checkpoint))),
        len(paths),
        dict(sorted(Counter(_kind_of_module(path) for path in paths).items())),
        unknown,
        sum(len(module.targets) for module in modules if module.half),
        tuple(_mismatches(modules)),
        _width(modules),
        trigger_words(checkpoint.metadata),
    )
    sidecar = checkpoint.files[0].with_name(f"{checkpoint.files[0].stem}.lora.json").is_file()
    kind = dialect.partition(",")[0]
    return Anatomy(
        kind, modules, summary, checkpoint.metadata.get(HEADER_KEY), sidecar, checkpoint.dtypes,
        _strength_fault(known, checkpoint),
    )  # fmt: skip


def _with_factors(known: Mapping[str, Key]) -> set[tuple[str, ...]]:
    """Targets that have more than an alpha or a magnitude, which alone change nothing."""
    return {key.targets for key in known.values() if key.part not in ("alpha", "magnitude", "dora_scale")}


def _modules(known: Mapping[str, Key], checkpoint: Checkpoint) -> tuple[Module, ...]:
    found: dict[tuple[str, str], tuple[Key, dict[str, TensorInfo], set[str]]] = {}
    for name, key in known.items():
        stem = name[len(key.prefix) : len(name) - len(key.suffix)]
        _, parts, suffixes = found.setdefault((key.prefix, stem), (key, {}, set()))
        parts[key.part] = checkpoint.places[name].info
        suffixes.add(key.suffix)
    return tuple(
        Module(stem, prefix, key.targets, parts, frozenset(suffixes))
        for (prefix, stem), (key, parts, suffixes) in found.items()
    )


def _ranks(modules: tuple[Module, ...]) -> set[int]:
    return {
        module.parts[part].shape[axis]
        for module in modules
        for part, axis in _INNER.items()
        if part in module.parts and module.parts[part].shape
    }


def _alphas(known: Mapping[str, Key], checkpoint: Checkpoint) -> set[float]:
    values = _alpha_values(known, checkpoint).values()
    return {value for value in values if value is not None and math.isfinite(value)}


def _alpha_values(known: Mapping[str, Key], checkpoint: Checkpoint) -> dict[str, float | None]:
    """What each alpha tensor holds; None where that is not one number of a known type."""
    found: dict[str, float | None] = {}
    names = [name for name, key in known.items() if key.part == "alpha"][:_MOST_ALPHAS]
    for name in names:
        place = checkpoint.places[name]
        found[name] = None
        if math.prod(place.info.shape) == 1:
            with place.file.open("rb") as file:
                file.seek(place.info.start)
                found[name] = _number(file.read(place.info.end - place.info.start), place.info.dtype)
    return found


def _strength_fault(known: Mapping[str, Key], checkpoint: Checkpoint) -> str:
    """Why the file does not say how strong it is, empty when it does or is silent."""
    values = _alpha_values(known, checkpoint)
    for name, value in values.items():
        if math.prod(checkpoint.places[name].info.shape) != 1:
            return f"{name} is not one number"
        if value is not None and not math.isfinite(value):
            return f"{name} is NaN or infinity"
    if values:  # beside alpha tensors the header is not asked
        return ""
    try:
        from_header(checkpoint.path, checkpoint.metadata)
    except StrengthError as error:
        return error.problem.rule
    return ""


def _number(data: bytes, dtype: str) -> float | None:
    if dtype == "BF16":
        data, dtype = b"\0\0" + data, "F32"
    form = _ALPHA_FORMS.get(dtype)
    return round(float(struct.unpack(form, data)[0]), 6) if form else None


def _kind_of_module(module: str) -> str:
    """`layers.3.attention.to_q` -> `layers attention.to_q`: the same place in every block."""
    head, _, rest = module.partition(".")
    number, _, inner = rest.partition(".")
    return f"{head} {inner}" if number.isdigit() else module


def _mismatches(modules: tuple[Module, ...]) -> list[str]:
    """Factors that do not fit each other, or not their like in the other blocks."""
    faults = [fault for module in modules if (fault := module.fault())]
    sizes: dict[tuple[str, str], dict[int, str]] = {}
    for module in modules:
        kind = _BLOCK.sub(r"\1N", module.name)
        for part, axis in (("down", 1), ("up", 0)):
            info = module.parts.get(part)
            if info is not None and len(info.shape) == 2:
                sizes.setdefault((kind, part), {}).setdefault(info.shape[axis], module.name)
    for found in sizes.values():
        if len(found) > 1:
            pairs = ", ".join(f"{name} is made for {size}" for size, name in list(found.items())[:3])
            faults.append(f"blocks differ in size: {pairs}")
    return faults


def _width(modules: tuple[Module, ...]) -> int:
    """Columns of the attention's input weights: the width of the model the LoRA is made for."""
    for module in modules:
        info = module.parts.get("down") or module.parts.get("hada_w1_b")
        if module.targets[0].endswith("attention.to_q") and info is not None and len(info.shape) == 2:
            return info.shape[1]
    return 0


def lora_sentence(found: Anatomy) -> str:
    lora = found.summary
    if not lora.modules:
        family = adapter_family(lora.unknown)
        other = f"an adapter for {family}" if family else "an adapter of another model"
        return f"{other}: none of its {len(lora.unknown)} tensors belongs to Z-Image"
    names = lora.dialect.partition(", ")[2]
    rank = "rank " + " and ".join(map(str, lora.ranks[:8])) if lora.ranks else "full factors"
    alpha = ", alpha " + " and ".join(f"{value:g}" for value in lora.alphas[:8]) if lora.alphas else ""
    halves = f", {lora.halves} of them incomplete: a factor is missing" if lora.halves else ""
    wrong = ", with factors that do not fit together" if lora.mismatches else ""
    unknown = f", but {len(lora.unknown)} tensors belong to no module of Z-Image" if lora.unknown else ""
    model = "Lumina-Image 2.0 (width 2304), not for Z-Image" if lora.width == LUMINA_WIDTH else "Z-Image"
    told = f"a {found.kind} for {model} with {names}: {rank}{alpha}, {lora.modules} modules"
    told += halves + wrong + unknown
    if lora.width in (0, REAL_WIDTH, LUMINA_WIDTH):
        return told
    return f"{told}, made for a model of width {lora.width} (the released ones have {REAL_WIDTH})"


def lora_facts(found: Anatomy) -> list[tuple[str, str]]:
    """What the header says about alpha where no tensor does, and about the sidecar."""
    facts = []
    if found.rust:
        there = "is beside it" if found.sidecar else "is missing: it holds rank and alpha"
        facts.append(("Sidecar", f".lora.json {there}"))
    elif not found.summary.alphas and found.summary.modules and found.kind in ("LoRA", "DoRA"):
        stated = _header_scales(found)
        facts.append(("Alpha", f"in the header: {stated}" if stated else "not stored: equals the rank"))
    return facts


def _header_scales(found: Anatomy) -> str:
    """`r 4, lora_alpha 2` out of PEFT's header, "" when it says nothing."""
    table = _peft(found.header_alpha)
    pairs = [(name, table.get(name)) for name in ("r", "lora_alpha")]
    return ", ".join(f"{name} {value}" for name, value in pairs if isinstance(value, int | float))


def _peft(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
        return {str(name).removeprefix("transformer."): value for name, value in found.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}


def peft_strength(found: Anatomy) -> float | None:
    """The strength at which a program that ignores PEFT's header does the right thing; None when it differs
    from module to module."""
    table = _peft(found.header_alpha)
    rank, alpha = table.get("r"), table.get("lora_alpha")
    if table.get("alpha_pattern") or table.get("rank_pattern") or table.get("use_rslora"):
        return None
    if not isinstance(rank, int | float) or not isinstance(alpha, int | float) or not rank:
        return 1.0 if not found.header_alpha else None
    return alpha / rank
