"""The command `convert-lora`: a LoRA of any dialect into the form another program reads.

Knows which form a target means and what may be kept of the header. It must not know tensor names.
"""

from pathlib import Path

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run
from zimage_gui.files import sweep_temp_files
from zimage_gui.model.lora_files import LoraFile, read_lora, write_lora
from zimage_gui.model.lora_write import ALPHA_KEY, Form, original_alphas, with_alphas, write_problems

_FORMS: dict[str, Form] = {"other": "universal", "default": "native", "comfy": "comfy"}
_NAMES = {
    "universal": "universal names (ComfyUI and diffusers)",
    "native": "lora_unet_ names (musubi)",
    "comfy": "lora_unet_ names with fused qkv (ComfyUI)",
}
# They describe the tensors of the source, not those written; hashes are computed anew.
_STALE_KEYS = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash")


def check(config: ConvertLoraConfig) -> list[Problem]:
    """Everything that keeps the file from being converted; reads it, writes nothing."""
    problems = config.problems()
    if problems or config.input is None or config.output is None:
        return problems
    problems += config.overwritten()
    try:
        file = _read(config.input)
        problems += write_problems(file.entries, form_of(config), config.diffusers_prefix)
    except UserError as error:
        problems += error.problems
    return problems


def run(config: ConvertLoraConfig, run: Run) -> list[Path]:
    """Converts one file, verifies it by reading it back, and says what was done."""
    raise_if_any(check(config))
    assert config.input is not None and config.output is not None  # `check` has seen to it
    form = form_of(config)
    file = _read(config.input)
    sweep_temp_files(config.output.parent)
    metadata = {name: text for name, text in file.metadata.items() if name not in _STALE_KEYS}
    entries = file.entries
    if form != "universal":
        # A universal file of ours has its alpha folded away; the other forms have a place for it.
        entries = with_alphas(entries, original_alphas(metadata))
        metadata.pop(ALPHA_KEY, None)
    count = write_lora(config.output, entries, form, metadata, prefix=config.diffusers_prefix)
    text = f"{file.dialect}: all of its {count} modules written to {config.output.name} with {_NAMES[form]}"
    run.emit(Note(text=text))
    return [config.output]


def form_of(config: ConvertLoraConfig) -> Form:
    """The form that the target means; `reverse` is the second converter's way back to native names."""
    return "native" if config.reverse else _FORMS[config.target or "other"]


def _read(path: Path) -> LoraFile:
    file = read_lora(path, "input")
    raise_if_any(Problem("input", problem.value, problem.rule, problem.remedy) for problem in file.problems)
    return file
