"""Writing LoRA files in the forms other programs read, and proving afterwards that every tensor lands.

Knows the names and scales of each form. It must not know training or how a file was made.

Forms: `universal` (diffusion_model. names, lora_A/lora_B, alpha/rank inside lora_B, `.alpha` = rank: exact in
ComfyUI and in every diffusers that knows Z-Image), `native` (kohya / musubi), `comfy` (kohya names with a
fused qkv).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.files import atomic_write, read_header
from zimage_gui.model.lora_dialects import native_name
from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_read import fit_problems, load_tensors, read_lora, taken_apart

Form = Literal["universal", "native", "comfy"]
ALPHA_KEY = "zimage_gui_alpha"
_OPTION = "target"


def write_lora(
    path: Path,
    entries: Mapping[str, Entry],
    form: Form = "universal",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    prefix: str = "diffusion_model",
) -> int:
    """Writes `entries` {module path: adapter} to `path`, atomically, then reads the file back and compares.

    `dtype` casts every factor (None keeps them); alpha is written in fp32. `prefix` names the universal
    form's root; with any other than diffusion_model no `.alpha` is written, because diffusers refuses it
    there. Adds the hashes sshs_model_hash and sshs_legacy_hash to `metadata`. Returns the number of modules.
    Raises UserError when the form has no way to say what an entry does, or when the read-back differs.
    """
    problems = write_problems(entries, form, prefix)
    if not entries:
        problems.append(
            Problem(_OPTION, str(path), "there is no adapter to write", "Choose a file with LoRA modules")
        )
    raise_if_any(problems)
    tensors = form_tensors(entries, form, dtype, prefix)
    header = dict(metadata or {})
    if form == "universal":
        header.update(alpha_note(entries))
    else:
        header.pop(ALPHA_KEY, None)
    atomic_write(path, save(tensors, metadata={**header, **model_hashes(tensors, header)}))
    _compare(path, tensors, set(entries))
    return len(entries)


def write_problems(
    entries: Mapping[str, Entry], form: Form, prefix: str = "diffusion_model"
) -> list[Problem]:
    """What of `entries` the form cannot say."""
    problems = [p for name, entry in entries.items() for p in _form_problems(name, entry, form, prefix)]
    return problems + (_fusion_problems(entries) if form == "comfy" else [])


def form_tensors(
    entries: Mapping[str, Entry],
    form: Form,
    dtype: torch.dtype | None = None,
    prefix: str = "diffusion_model",
) -> dict[str, Tensor]:
    """{tensor name: tensor} of the file, contiguous and on the CPU."""
    named: dict[str, Tensor] = {}
    for path, entry in (_fused(entries) if form == "comfy" else dict(entries)).items():
        if form == "universal":
            named.update(_universal(f"{prefix}.{path}" if prefix else path, entry, prefix))
        else:
            named.update(_native(native_name(path), entry))
    return {
        name: tensor.detach().to("cpu", None if name.endswith(".alpha") else dtype).contiguous().clone()
        for name, tensor in named.items()
    }


def _universal(name: str, entry: Entry, prefix: str) -> dict[str, Tensor]:
    if isinstance(entry, Dora) and isinstance(entry.inner, LowRank):
        return {
            **_universal(name, entry.inner, prefix),
            f"{name}.lora_magnitude_vector": entry.magnitude.reshape(-1),
        }
    if not isinstance(entry, LowRank):
        return _lycoris(name, entry)
    folded = entry.with_alpha(float(entry.rank))
    factors = {f"{name}.lora_A.weight": folded.down, f"{name}.lora_B.weight": folded.up}
    return (
        {**factors, f"{name}.alpha": torch.tensor(folded.alpha)} if prefix == "diffusion_model" else factors
    )


def _native(name: str, entry: Entry) -> dict[str, Tensor]:
    if not isinstance(entry, LowRank):
        return _lycoris(name, entry)
    return {
        f"{name}.lora_down.weight": entry.down,
        f"{name}.lora_up.weight": entry.up,
        f"{name}.alpha": torch.tensor(entry.alpha),
    }


def _lycoris(name: str, entry: Entry) -> dict[str, Tensor]:
    if isinstance(entry, LoHa):
        return {
            f"{name}.hada_w1_a": entry.w1_a,
            f"{name}.hada_w1_b": entry.w1_b,
            f"{name}.hada_w2_a": entry.w2_a,
            f"{name}.hada_w2_b": entry.w2_b,
            f"{name}.alpha": torch.tensor(entry.alpha),
        }
    assert isinstance(entry, LoKr)
    named = {f"{name}.alpha": torch.tensor(entry.alpha)}
    for side, factors in (("lokr_w1", entry.w1), ("lokr_w2", entry.w2)):
        suffixes = ("",) if len(factors) == 1 else ("_a", "_b")
        named.update(
            {f"{name}.{side}{suffix}": factor for suffix, factor in zip(suffixes, factors, strict=True)}
        )
    return named


_QKV = ("to_q", "to_k", "to_v")


def _fused(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The same adapters with q, k and v of each block as one qkv, and ComfyUI's name of the output
    projection."""
    fused: dict[str, Entry] = {}
    for path, entry in entries.items():
        block, _, last = path.rpartition(".attention.")
        if last == "to_out.0":
            fused[f"{block}.attention.out"] = entry
        elif last not in _QKV or not block:
            fused[path] = entry
        elif last == "to_q":
            fused[f"{block}.attention.qkv"] = _fuse_qkv(
                [entries[f"{block}.attention.{name}"] for name in _QKV]
            )
    return fused


def _fuse_qkv(parts: Sequence[Entry]) -> Entry:
    """One adapter of the stacked weight. Three that share one `down` and scale (a fused LoRA taken apart) are
    put together as they were; any other three become a block-diagonal one of the summed rank."""
    if all(isinstance(part, LoHa) for part in parts):
        return _fuse_loha([part for part in parts if isinstance(part, LoHa)])
    low = [part for part in parts if isinstance(part, LowRank)]
    first = low[0]
    if all(part.scale == first.scale and torch.equal(part.down, first.down) for part in low[1:]):
        return LowRank(first.down, torch.cat([part.up for part in low]), first.alpha)
    rank = sum(part.rank for part in low)
    same_scale = [part.with_alpha(first.scale * part.rank) for part in low]
    up = _block_diagonal(*[part.up for part in same_scale])
    return LowRank(torch.cat([part.down for part in low]), up, first.scale * rank)


def _fuse_loha(parts: Sequence[LoHa]) -> LoHa:
    """Block-diagonal `_a`, stacked `_b`; alpha grows with the rank. Needs one scale for all three."""
    return LoHa(
        _block_diagonal(*[part.w1_a for part in parts]),
        torch.cat([part.w1_b for part in parts]),
        _block_diagonal(*[part.w2_a for part in parts]),
        torch.cat([part.w2_b for part in parts]),
        sum(part.alpha for part in parts),
    )


def _block_diagonal(*parts: Tensor) -> Tensor:
    """torch.block_diag keeps no types for the checker."""
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return whole


def _form_problems(path: str, entry: Entry, form: Form, prefix: str) -> list[Problem]:
    if isinstance(entry, LoKr) and entry.row_count is not None:
        return [
            Problem(
                _OPTION,
                form,
                f"{path} is one third of a fused LoKr, which no other form can say",
                "Keep the file as it is: ComfyUI reads it",
            )
        ]
    if not isinstance(entry, Dora):
        return []
    per_row = isinstance(entry.inner, LowRank) and entry.magnitude.shape[1] == 1
    if form == "universal" and prefix == "transformer" and per_row:
        return []
    return [
        Problem(
            _OPTION,
            form,
            f"{path} is a DoRA, whose size per row this form cannot say",
            "Use the target other with diffusers_prefix transformer (exact in diffusers), or merge it",
        )
    ]


def _fusion_problems(entries: Mapping[str, Entry]) -> list[Problem]:
    problems = []
    for path in entries:
        block, _, last = path.rpartition(".attention.")
        if last not in _QKV:
            continue
        parts = [entries.get(f"{block}.attention.{name}") for name in _QKV]
        present = [part for part in parts if part is not None]
        if len(present) < 3 and last != next(
            n for n, part in zip(_QKV, parts, strict=True) if part is not None
        ):
            continue
        if len(present) == 3 and last != "to_q":
            continue
        problem = _why_not_fused(block, present)
        if problem:
            problems.append(
                Problem(_OPTION, "comfy", problem, "Use the target other, which ComfyUI reads too")
            )
    return problems


def _why_not_fused(block: str, present: Sequence[Entry]) -> str:
    if len(present) < 3:
        return f"{block}.attention has only some of q, k and v, a fused qkv needs all three"
    if len({type(part) for part in present}) > 1:
        return f"{block}.attention mixes kinds of adapters in q, k and v"
    if isinstance(present[0], LoKr):
        return f"{block}.attention is a LoKr; three Kronecker products are not one"
    scales = {part.alpha / part.rank for part in present if isinstance(part, LoHa)}
    return f"{block}.attention has LoHa parts of different strength" if len(scales) > 1 else ""


def alpha_note(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Header entry that remembers the alpha which the universal form folds away: a number, or one per
    module."""
    alphas = {path: entry.alpha for path, entry in entries.items() if isinstance(entry, LowRank)}
    values = set(alphas.values())
    if not alphas or all(
        entry.alpha == entry.rank for entry in entries.values() if isinstance(entry, LowRank)
    ):
        return {}
    return {ALPHA_KEY: json.dumps(values.pop() if len(values) == 1 else alphas)}


def original_alphas(metadata: Mapping[str, str]) -> dict[str, float] | float | None:
    """The alpha of before folding, from the header of a universal file written here; None when there is
    none."""
    try:
        found = json.loads(metadata.get(ALPHA_KEY, "null"))
        if isinstance(found, dict):
            return {str(path): _alpha(value) for path, value in found.items()}
        return None if found is None else _alpha(found)
    except (ValueError, TypeError, RecursionError):
        return None


def _alpha(value: object) -> float:
    alpha = float(str(value))
    if not 1e-6 <= alpha <= 1e6:
        raise ValueError(alpha)
    return alpha


def with_alphas(entries: Mapping[str, Entry], alphas: dict[str, float] | float | None) -> dict[str, Entry]:
    """The same adapters written with these alphas where they are LoRA: the undoing of `alpha_note`'s
    folding."""
    changed = dict(entries)
    for path, entry in entries.items():
        alpha = alphas.get(path) if isinstance(alphas, dict) else alphas
        if isinstance(entry, LowRank) and alpha:
            changed[path] = entry.with_alpha(alpha)
    return changed


def model_hashes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """kohya's two hashes, over the file as it would be with only the ss_ metadata: SHA-256 of the tensor
    data, and the first 8 digits of that of the 64 KiB at 1 MiB."""
    data = save(tensors, metadata={k: v for k, v in metadata.items() if k.startswith("ss_")})
    start = 8 + int.from_bytes(data[:8], "little")
    legacy = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
        "sshs_legacy_hash": legacy,
    }


def _compare(path: Path, tensors: Mapping[str, Tensor], modules: set[str]) -> None:
    header = read_header(path, "output")
    stored = load_tensors(path, header)
    file = taken_apart(path, stored, header.metadata)
    rules = [problem.rule for problem in file.problems]
    if set(file.entries) != modules:
        rules.append(f"{len(file.entries)} of {len(modules)} modules came back")
    if stored.keys() != tensors.keys() or not all(
        torch.equal(stored[name], tensors[name]) for name in stored
    ):
        rules.append("its tensors differ from those that were written")
    if rules:
        rule = f"was written but does not read back: {'; '.join(rules)}"
        raise UserError.one("output", str(path), rule, "Check the disk and save again")


def verify_lora(path: Path, model_shapes: Mapping[str, Sequence[int]]) -> int:
    """Reads a file back and counts the modules that land in a model with these weights {module path: (out,
    in)}.

    Raises UserError when anything in it does not.
    """
    file = read_lora(path)
    problems = fit_problems(file, model_shapes, option="output")
    raise_if_any(problems)
    return len(file.entries)
