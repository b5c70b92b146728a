"""Writing LoRA files, and proving afterwards that every tensor lands.

Knows files, headers and hashes; `lora_forms` knows the forms. It must not know training or how a file was
made.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.files import atomic_write, read_header, unwritten
from zimage_gui.model.lora_alphas import HEADER_KEY, sidecar_path
from zimage_gui.model.lora_entries import Entry, LoHa, LowRank
from zimage_gui.model.lora_fit import fitted
from zimage_gui.model.lora_forms import Form, Written, form_problems, written
from zimage_gui.model.lora_read import fit_problems, load_tensors, read_lora, taken_apart

ALPHA_KEY = "zimage_gui_alpha"
_NAMED = 6

__all__ = [
    "ALPHA_KEY",
    "Form",
    "original_alphas",
    "verify_lora",
    "with_alphas",
    "write_lora",
    "write_tensors",
]


def write_lora(
    path: Path,
    entries: Mapping[str, Entry],
    form: Form = "universal",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    prefix: str = "diffusion_model",
) -> int:
    """Takes what it is about to write apart again and compares; writes it atomically and reads it back.

    `dtype` casts every factor (None keeps them); alpha is written in fp32. `prefix` names the universal
    form's root. Kinds that the form cannot say are written as LoRAs (see `lora_fit`). Adds the hashes
    sshs_model_hash and sshs_legacy_hash to `metadata`. Returns the number of modules. Raises UserError when
    the form has no way to say what an entry does, or when the file would not mean the same.

    entries: {module path: adapter}.
    """
    problems = form_problems(entries, form, prefix)
    if not entries:
        problems.append(
            Problem("target", str(path), "there is no adapter to write", "Choose a file with LoRA modules")
        )
    raise_if_any(problems)
    entries = fitted(entries, form).entries
    content = written(entries, form, dtype, prefix)
    header = {name: text for name, text in (metadata or {}).items() if name != HEADER_KEY} | content.header
    if form == "universal":
        header.update(alpha_note(entries))
    else:
        header.pop(ALPHA_KEY, None)
    _refuse_infinite(path, content.tensors)
    _compare_modules(path, entries, content, header)
    write_tensors(path, content.tensors, header, content.sidecar)
    return len(entries)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], sidecar: str = ""
) -> None:
    """Writes tensors under their final names with fresh hashes, the sidecar first, and reads all back.

    Raises UserError, with nothing written, for numbers that are no longer finite, as after a cast to fp16.
    """
    _refuse_infinite(path, tensors)
    kept = {name: text for name, text in metadata.items() if name not in _HASHES}
    content = save(tensors, metadata=kept | model_hashes(tensors, kept))
    try:
        if sidecar:
            atomic_write(sidecar_path(path), sidecar.encode("utf-8"))
        atomic_write(path, content)
    except OSError as error:
        raise unwritten(error, path) from error
    stored = load_tensors(path, read_header(path, "output"), "output")
    same = stored.keys() == tensors.keys() and all(
        torch.equal(stored[name], tensors[name].to(stored[name].dtype)) for name in stored
    )
    if not same:
        raise _not_read_back(path, "its tensors differ from those that were written")


def _refuse_infinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        shown = ", ".join(broken[:_NAMED]) + (" …" if len(broken) > _NAMED else "")
        rule = f"these tensors would hold infinity or NaN in this number format: {shown}"
        raise UserError.one("output", str(path), rule, "Use bf16 or fp32")


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


_HASHES = ("sshs_model_hash", "sshs_legacy_hash")


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


def _not_read_back(path: Path, why: str) -> UserError:
    rule = f"was written but does not read back: {why}"
    return UserError.one("output", str(path), rule, "Check the disk and save again")


def _compare_modules(
    path: Path, entries: Mapping[str, Entry], content: Written, metadata: Mapping[str, str]
) -> None:
    """Every module that does something must come back, and no other; a third of a fused qkv that changes
    nothing may come or go. Nothing is written yet."""
    file = taken_apart(path, content.tensors, metadata, content.sidecar)
    rules = [problem.rule for problem in file.problems]
    lost = [name for name, entry in entries.items() if name not in file.entries and _acts(entry)]
    more = [name for name, entry in file.entries.items() if name not in entries and _acts(entry)]
    if lost or more:
        rules.append(f"{len(entries) - len(lost)} of {len(entries)} modules came back and {len(more)} others")
    if rules:
        rule = f"would not mean the same when it is read again: {'; '.join(rules)}"
        raise UserError.one("output", str(path), rule, "Choose another form")


def _acts(entry: Entry) -> bool:
    if isinstance(entry, LowRank):
        return entry.alpha != 0 and bool(entry.up.any())
    return not isinstance(entry, LoHa) or (entry.alpha != 0 and bool(entry.w1_a.any() and entry.w2_a.any()))


def verify_lora(path: Path, model_shapes: Mapping[str, Sequence[int]]) -> int:
    """Reads a file back and counts the modules that land in a model with these weights {module path: (out,
    in)}.

    Raises UserError when anything in it does not.
    """
    file = read_lora(path)
    problems = fit_problems(file, model_shapes, option="output")
    raise_if_any(problems)
    return len(file.entries)
