"""Reading LoRA files of every dialect, and checking them against a model before anything is touched.

Knows how named tensors become adapters of modules (`lora_entries`) and what is wrong with a file. It must not
know how adapters are trained or where a user keeps files. Writing is in `lora_write`, applying in
`lora_merge`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.errors import Problem, UserError
from zimage_gui.files import Header, read_header
from zimage_gui.model.checkpoint import MOST_TENSORS
from zimage_gui.model.lora_alphas import (
    HEADER_KEY,
    Alpha,
    Alphas,
    StrengthError,
    from_header,
    from_peft_config,
    from_sidecar,
)
from zimage_gui.model.lora_dialects import (
    Key,
    chosen,
    describe_dialect,
    looks_like_lora,
    parse_key,
    unusable_part,
)
from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_qkv import split_qkv
from zimage_gui.model.tensor_files import DTYPES, read_tensor

OPTION = "lora_weight"
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_NAMED = 6
# Numbers in a weight; the largest of Z-Image has 59 million. A LoKr of two megabytes can claim a million rows
# and columns.
_LARGEST_WEIGHT = 2**28
_MAGNITUDES = ("magnitude", "dora_scale")
_LORA_PARTS = {"down", "up"}
_LOHA_PARTS = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file taken apart. `problems` is empty for a file that may be used; a file with problems is
    refused as a whole by everything that applies or rewrites it."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    dialect: str
    problems: tuple[Problem, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({entry.rank for entry in self.entries.values()}))

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> "LoraFile":
        """Only the modules that are `chosen`."""
        kept = {path: entry for path, entry in self.entries.items() if chosen(path, include, exclude)}
        return replace(self, entries=kept)


def read_lora(path: Path, option: str = OPTION) -> LoraFile:
    """Reads a LoRA file of any dialect onto the CPU; `option` is what a refusal names.

    Raises UserError when the file cannot be read or is no LoRA at all; anything else that is wrong (unknown
    names, a half missing, two tensors for one place, wrong shapes, NaN) is listed in `problems`.
    """
    header = read_header(path, option)
    if not looks_like_lora(header.tensors):
        raise UserError.one(
            option,
            str(path),
            "is not a LoRA file: it holds no lora_, hada_ or lokr_ tensor",
            "Choose a LoRA .safetensors file; `inspect` says what this file is",
        )
    if len(header.tensors) > MOST_TENSORS:
        rule = f"holds {len(header.tensors)} tensors, more than any LoRA of this model"
        raise UserError.one(option, str(path), rule, "Choose another file")
    return taken_apart(path, load_tensors(path, header, option), header.metadata)


def load_tensors(path: Path, header: Header, option: str = OPTION) -> dict[str, Tensor]:
    """All tensors of a LoRA file; fp8, with which torch cannot calculate, as bf16, which holds it exactly.

    Raises UserError for a dtype torch does not have.
    """
    foreign = [name for name, info in header.tensors.items() if info.dtype not in DTYPES]
    if foreign:
        rule = f"holds tensors of a dtype that cannot be read: {_some(foreign)}"
        raise UserError.one(option, str(path), rule, "Use a LoRA saved in bf16, fp16 or fp32")
    with path.open("rb") as file:
        stored = {name: read_tensor(file, info) for name, info in header.tensors.items()}
    return {name: tensor.bfloat16() if tensor.dtype in _FP8 else tensor for name, tensor in stored.items()}


def taken_apart(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], sidecar: str = ""
) -> LoraFile:
    """The adapters in the tensors of a file; `path` is where a sidecar lies whose text is not given."""
    # newer files of musubi-tuner repeat LoKr's factor, which the shapes say
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".lokr_factor")}
    reader = _Reader(path, tensors, metadata, sidecar)
    entries = reader.read()
    return LoraFile(
        path, entries, dict(metadata), describe_dialect(tensors, metadata), tuple(reader.problems)
    )


def fit_problems(file: LoraFile, shapes: Mapping[str, Sequence[int]], option: str = OPTION) -> list[Problem]:
    """What keeps `file` from being applied to a model whose Linear weights have `shapes` {module path: (out,
    in)}: its own problems, modules the model does not have, sizes that do not fit, or nothing left to
    apply."""
    problems = [replace(problem, option=option) for problem in file.problems]
    absent = [path for path in file.entries if path not in shapes]
    if absent:
        problems.append(
            Problem(
                option,
                str(file.path),
                f"{len(absent)} of {len(file.entries)} modules do not exist in this model: {_some(absent)}",
                "Use a LoRA made for this model, or leave these modules out with exclude_patterns",
            )
        )
    misfits = [
        f"{path} is made for a weight {list(entry.shape)}, the model's is {list(shapes[path])}"
        for path, entry in file.entries.items()
        if path in shapes and tuple(shapes[path]) != entry.shape
    ]
    if misfits:
        count = f"{len(misfits)} of {len(file.entries)} modules do not fit: " if len(misfits) > 1 else ""
        rule = count + _some(misfits, "; ")
        problems.append(Problem(option, str(file.path), rule, "Use a LoRA made for a model of this size"))
    if not file.entries and not problems:
        problems.append(
            Problem(
                option,
                str(file.path),
                "no module is left to apply",
                "Check include_patterns and exclude_patterns",
            )
        )
    return problems


def _some(names: Sequence[str], between: str = ", ") -> str:
    shown = between.join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _without_padding(entry: LowRank) -> LowRank:
    """Without the ranks of zeros that fill a file whose modules must all have one rank."""
    used = entry.down.any(dim=1) | entry.up.any(dim=0)
    return entry.ranks(used) if used.any() and not used.all() else entry


class _Reader:
    """Collects the tensors of one file into entries; everything wrong ends up in `problems`."""

    def __init__(
        self, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], sidecar: str
    ) -> None:
        self.path = path
        self.sidecar = sidecar
        self.tensors = tensors
        self.metadata = metadata
        self.problems: list[Problem] = []

    def read(self) -> dict[str, Entry]:
        groups, unknown = self._grouped()
        if unknown:
            self._say_unknown(unknown, sum(len(parts) for parts in groups.values()))
        self._check_values()
        default_alphas = self._alphas_of_the_file(groups)
        entries: dict[str, Entry] = {}
        for targets, parts in sorted(groups.items()):
            entry = self._entry(targets, parts, default_alphas)
            if entry is not None:
                self._place(targets, entry, entries)
        return entries

    def _say_unknown(self, unknown: Sequence[str], known: int) -> None:
        of_all = f"of its {len(self.tensors)} tensors"
        by_words: dict[str, list[str]] = defaultdict(list)
        for name in unknown:
            by_words[unusable_part(name)].append(name)
        for words, names in by_words.items():
            if words:
                rule = f"{len(names)} {of_all} are {words}: {_some(names)}"
                self._problem(rule, "Use a file with adapters of the transformer's Linear layers alone")
            else:
                rule = f"{len(names)} {of_all} belong to no module of Z-Image, {known} do: {_some(names)}"
                self._problem(rule, "Use a LoRA made for Z-Image")

    def _problem(self, rule: str, remedy: str = "Save or download the file again") -> None:
        self.problems.append(Problem(OPTION, str(self.path), rule, remedy))

    def _grouped(self) -> tuple[dict[tuple[str, ...], dict[str, tuple[str, Key]]], list[str]]:
        groups: dict[tuple[str, ...], dict[str, tuple[str, Key]]] = defaultdict(dict)
        unknown = []
        for name in sorted(self.tensors):
            key = parse_key(name)
            if key is None:
                unknown.append(name)
                continue
            part = groups[key.targets]
            if key.part in part:
                self._problem(
                    f"{name} and {part[key.part][0]} say the same thing twice", "Use a file with one of them"
                )
            part[key.part] = (name, key)
        return dict(groups), unknown

    def _check_values(self) -> None:
        wrong_type = [
            name
            for name, tensor in self.tensors.items()
            if not tensor.is_floating_point() and not (name.endswith(".alpha") and tensor.dtype in _WHOLE)
        ]
        if wrong_type:
            self._problem(f"these tensors hold no floating-point numbers: {_some(wrong_type)}")
        broken = [
            name
            for name, tensor in self.tensors.items()
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
        ]
        if broken:
            self._problem(f"these tensors hold NaN or infinity: {_some(broken)}", "Use an earlier checkpoint")

    def _entry(
        self, targets: tuple[str, ...], parts: dict[str, tuple[str, Key]], alphas: Alphas
    ) -> Entry | None:
        tensors = {part: self.tensors[name] for part, (name, _) in parts.items()}
        where = next(iter(parts.values()))[0].rsplit(next(iter(parts.values()))[1].suffix)[0]
        alpha_tensor = tensors.pop("alpha", None)
        if alpha_tensor is not None and alpha_tensor.numel() != 1:
            self._problem(f"{where}.alpha has shape {list(alpha_tensor.shape)} instead of one number")
            return None
        flat = [p for p, t in tensors.items() if p not in _MAGNITUDES and (t.dim() != 2 or not t.numel())]
        if flat:
            self._problem(f"{where}: {_some(sorted(flat))} must be matrices with at least one number")
            return None
        alpha = None if alpha_tensor is None else float(alpha_tensor.reshape(()))
        factors = {part for part in tensors if part not in _MAGNITUDES}
        entry = self._factors(where, factors, tensors, alpha, alphas.of(targets[0]))
        if entry is None or not self._believable(where, entry, alphas):
            return None
        magnitudes = [part for part in _MAGNITUDES if part in tensors]
        if alphas.rank is not None and isinstance(entry, LowRank):
            entry = _without_padding(entry)
        if len(magnitudes) == 2:
            self._problem(f"{where} holds two DoRA magnitudes", "Use a file with one of them")
            return None
        if not magnitudes:
            return entry
        return self._dora(where, entry, tensors[magnitudes[0]], magnitudes[0])

    def _believable(self, where: str, entry: Entry, alphas: Alphas) -> bool:
        rows, columns = entry.shape
        if rows * columns > _LARGEST_WEIGHT:
            self._problem(
                f"{where} is made for a weight [{rows}, {columns}], larger than any of Z-Image",
                "Use a LoRA made for Z-Image",
            )
            return False
        if alphas.rank is not None and entry.rank != alphas.rank:
            self._problem(
                f"{where} has rank {entry.rank}, its sidecar says {alphas.rank}",
                "Use the sidecar that was written with it",
            )
            return False
        return True

    def _factors(
        self,
        where: str,
        factors: set[str],
        tensors: dict[str, Tensor],
        alpha: float | None,
        by_file: Alpha,
    ) -> Entry | None:
        if factors == _LORA_PARTS:
            down, up = tensors["down"], tensors["up"]
            if down.shape[0] != up.shape[1] or down.shape[0] == 0:
                self._problem(f"{where}: down {list(down.shape)} and up {list(up.shape)} do not share a rank")
                return None
            return LowRank(down, up, by_file.resolve(alpha, down.shape[0]))
        if factors == _LOHA_PARTS:
            return self._loha(where, tensors, alpha)
        if factors and all(part.startswith("lokr") for part in factors):
            return self._lokr(where, factors, tensors, alpha)
        missing = (_LOHA_PARTS if any(f.startswith("hada") for f in factors) else _LORA_PARTS) - factors
        words = {"down": "lora_A (lora_down)", "up": "lora_B (lora_up)"}
        self._problem(
            f"{where} is incomplete: {', '.join(words.get(m, m) for m in sorted(missing))} is missing"
        )
        return None

    def _loha(self, where: str, tensors: dict[str, Tensor], alpha: float | None) -> Entry | None:
        w1_a, w1_b, w2_a, w2_b = (tensors[part] for part in sorted(_LOHA_PARTS))
        right = w1_a.shape[1] == w1_b.shape[0] > 0 and w2_a.shape[1] == w2_b.shape[0] > 0
        if not right or w1_a.shape[0] != w2_a.shape[0] or w1_b.shape[1] != w2_b.shape[1]:
            self._problem(f"{where}: the four hada_ matrices do not fit together")
            return None
        return LoHa(w1_a, w1_b, w2_a, w2_b, float(w1_b.shape[0]) if alpha is None else alpha)

    def _lokr(
        self, where: str, factors: set[str], tensors: dict[str, Tensor], alpha: float | None
    ) -> Entry | None:
        sides = []
        for side in ("lokr_w1", "lokr_w2"):
            names = (side,) if side in factors else (f"{side}_a", f"{side}_b")
            if not factors.issuperset(names):
                self._problem(f"{where} is incomplete: {side} is missing")
                return None
            sides.append(tuple(tensors[name] for name in names))
        if len(factors) != len(sides[0]) + len(sides[1]):
            self._problem(f"{where} holds a lokr_ factor both whole and as a product")
            return None
        if any(len(side) == 2 and side[0].shape[1] != side[1].shape[0] for side in sides):
            self._problem(f"{where}: the lokr_ matrices do not fit together")
            return None
        entry = LoKr(sides[0], sides[1], 1.0)
        return replace(entry, alpha=float(entry.rank or 1) if alpha is None else alpha)

    def _dora(self, where: str, entry: Entry, magnitude: Tensor, spelling: str) -> Entry | None:
        rows, columns = entry.shape
        shape = list(magnitude.shape)
        if shape in ([rows], [rows, 1]):
            return Dora(entry, magnitude.reshape(rows, 1), spelling)
        if spelling == "dora_scale" and shape in ([columns], [1, columns]):
            return Dora(entry, magnitude.reshape(1, columns), spelling)
        self._problem(f"{where}: the DoRA magnitude has shape {shape}, the weight has {rows} rows")
        return None

    def _place(self, targets: tuple[str, ...], entry: Entry, entries: dict[str, Entry]) -> None:
        """Puts the entry at its module, or its thirds at to_q, to_k and to_v."""
        rows = entry.shape[0]
        if len(targets) == 3 and (rows % 3 or (isinstance(entry, Dora) and entry.magnitude.shape[0] == 1)):
            self._problem(
                f"the fused qkv of {targets[0].rsplit('.', 1)[0]} with {rows} rows cannot be split in three"
            )
            return
        parts = [entry] if len(targets) == 1 else split_qkv(entry)
        for target, part in zip(targets, parts, strict=True):
            if target in entries:
                self._problem(f"{target} is changed twice, alone and as a part of a fused qkv")
            if part is not None:
                entries[target] = part

    def _alphas_of_the_file(self, groups: Mapping[tuple[str, ...], dict[str, tuple[str, Key]]]) -> Alphas:
        keys = [key for parts in groups.values() for _, key in parts.values()]
        try:
            if any(key.suffix in (".lora_a", ".lora_b") for key in keys):
                return from_sidecar(self.path, self.sidecar)
            if any(key.part == "alpha" for key in keys):
                return Alphas()
            if any(key.prefix.startswith("base_model.") for key in keys) and HEADER_KEY not in self.metadata:
                return from_peft_config(self.path)
            return from_header(self.path, self.metadata)
        except StrengthError as error:
            self._problem(error.problem.rule, error.problem.remedy)
            return Alphas()
