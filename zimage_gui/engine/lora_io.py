"""What every LoRA command does alike: refuse a file that is not whole, never overwrite unasked, keep the
header, write atomically, read back, and say what was done.

Knows files and headers. It must not know what a command changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from zimage_gui.errors import Problem, raise_if_any
from zimage_gui.files import read_header, sweep_temp_files
from zimage_gui.model.lora_alphas import HEADER_KEY, sidecar_path
from zimage_gui.model.lora_dialects import parse_key
from zimage_gui.model.lora_entries import Dora, Entry
from zimage_gui.model.lora_files import LoraFile, read_lora, write_lora
from zimage_gui.model.lora_fit import Change
from zimage_gui.model.lora_forms import Form
from zimage_gui.model.lora_sizes import size_problem
from zimage_gui.model.lora_write import ALPHA_KEY, original_alphas, with_alphas

FORM_NAMES: dict[Form, str] = {
    "universal": "universal names (ComfyUI and diffusers)",
    "native": "lora_unet_ names (musubi)",
    "comfy": "lora_unet_ names with fused qkv (ComfyUI)",
    "peft": "transformer. names with its rank and alpha in the header (diffusers, PEFT)",
    "rust": "z-image-train's names and a .lora.json beside it",
}


def read_input(path: Path, option: str = "input") -> LoraFile:
    """A LoRA that is whole and of this model; raises UserError naming all that is wrong with it."""
    file = read_lora(path, option)
    problems = [Problem(option, problem.value, problem.rule, problem.remedy) for problem in file.problems]
    if rule := size_problem({name: entry.shape for name, entry in file.entries.items()}):
        problems.append(Problem(option, str(path), rule, "Save or download the file again"))
    raise_if_any(problems)
    return file


def output_problems(
    output: Path, inputs: Sequence[Path], overwrite: bool, form: Form | None = None
) -> list[Problem]:
    """What keeps `output` from being written: its ending, an input under another name, a file in its place.

    `form` rust also writes a sidecar.
    """
    problems = []
    if output.suffix.lower() != ".safetensors":
        remedy = f"Write {output.with_suffix('.safetensors').name}"
        problems.append(Problem("output", str(output), "must end in .safetensors", remedy))
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        problems.append(Problem("output", str(output), "is the input file itself", "Choose another name"))
        return problems
    for path in (output, *([sidecar_path(output)] if form == "rust" else [])):
        if path.exists() and not overwrite:
            remedy = "Choose another name, or set overwrite"
            problems.append(Problem("output", str(path), "exists already", remedy))
    return problems


def save(
    output: Path,
    entries: Mapping[str, Entry],
    form: Form,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    prefix: str = "diffusion_model",
) -> tuple[list[Path], str]:
    """Writes and proves the file. Returns the files made and the end of a sentence about them."""
    sweep_temp_files(output.parent)
    header = {name: text for name, text in metadata.items() if name != HEADER_KEY}
    if form != "universal":
        # A universal file of ours has its alpha folded away; the other forms have a place for it.
        entries = with_alphas(entries, original_alphas(header))
    header.pop(ALPHA_KEY, None)
    write_lora(output, entries, form, header, dtype, prefix)
    made = [output, *([sidecar_path(output)] if form == "rust" else [])]
    return made, f"written to {output.name} with {FORM_NAMES[form]}"


def form_of_file(file: LoraFile, names: Iterable[str]) -> Form:
    """The form whose names a file has, or else the universal one; `names` are those of its tensors."""
    keys = [key for key in map(parse_key, names) if key is not None]
    if any(key.suffix in (".lora_a", ".lora_b") for key in keys):
        return "rust"
    if keys and all(key.prefix == "lora_unet_" for key in keys):
        return "comfy" if any(len(key.targets) == 3 for key in keys) else "native"
    return "peft" if HEADER_KEY in file.metadata else "universal"


def form_for(wanted: str, file: LoraFile) -> Form:
    """The form to write: the one `wanted`, or with keep that of the file's own names."""
    if wanted == "keep":
        return form_of_file(file, read_header(file.path, "input").tensors)
    return next(form for form in FORM_NAMES if form == wanted)


def sidecar_of(path: Path, names: Iterable[str]) -> str:
    """The text of z-image-train's sidecar of a file with these tensor names; empty for other dialects."""
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return sidecar_path(path).read_text(encoding="utf-8")
    return ""


def dora_problems(file: LoraFile, option: str) -> list[Problem]:
    """DoRA depends on the weight below it, which a file alone does not say."""
    doras = [name for name, entry in file.entries.items() if isinstance(entry, Dora)]
    if not doras:
        return []
    rule = f"{len(doras)} modules are DoRAs, whose change depends on the model: {doras[0]}"
    return [Problem(option, str(file.path), rule, "Merge it into a model first, then use extract-lora")]


def with_sizes(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> dict[str, str]:
    """The header with kohya's rank and alpha made true again, where it has them and they are one number."""
    ranks = {entry.rank for entry in entries.values()}
    text = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    header = {name: old for name, old in metadata.items() if name != ALPHA_KEY}
    return header | {name: text for name in ("ss_network_dim", "ss_network_alpha") if name in header}


def change_lines(changes: Sequence[Change], lokr_rank: int | None = None) -> list[str]:
    """What was written as a LoRA because the form has no other kind, with its cost."""
    if not changes:
        return []
    worst = max(changes, key=lambda change: change.error)
    ranks = sorted({change.rank for change in changes})
    span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
    kinds = " and ".join(sorted({change.kind for change in changes}))
    what = "module became a LoRA" if len(changes) == 1 else "modules became LoRAs"
    text = f"{len(changes)} {kinds} {what} of rank {span}"
    if worst.error > 1e-6:
        text += f"; the largest relative error is {worst.error:.2%} ({worst.path})"
    else:
        text += ", exact to rounding"
        text += "; lokr_rank makes a LoKr's smaller" if lokr_rank is None and ranks[-1] > 128 else ""
    return [text]
