"""The command `resize-lora`: the same LoRA at a smaller rank.

Knows what is kept and what is said about it; the maths is in `model.lora_lowrank`.
"""

from pathlib import Path

from zimage_gui.config.lora_tools import ResizeLoraConfig
from zimage_gui.engine.lora_io import (
    DTYPES,
    dora_problems,
    form_for,
    output_problems,
    read_input,
    save,
    with_sizes,
)
from zimage_gui.engine.lora_losses import Losses
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Progress, Run
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.lora_forms import form_problems
from zimage_gui.model.lora_lowrank import spectrum


def check(config: ResizeLoraConfig) -> list[Problem]:
    """Everything that keeps the file from being resized; reads it, writes nothing."""
    problems = config.problems()
    if problems or config.input is None or config.output is None:
        return problems
    try:
        file = read_input(config.input)
        form = form_for(config.lora_format, file)
        problems += output_problems(config.output, [config.input], config.overwrite, form)
        problems += dora_problems(file, "input")
        problems += form_problems(file.entries, form) if not problems else []
    except UserError as error:
        problems += error.problems
    return problems


def run(config: ResizeLoraConfig, run: Run) -> list[Path]:
    """Resizes one file, proves it, and says the error."""
    raise_if_any(check(config))
    assert config.input is not None and config.output is not None  # `check` has seen to it
    file = read_input(config.input)
    losses = Losses()
    entries: dict[str, Entry] = {}
    for path, entry in file.entries.items():
        entries[path] = losses.cut(path, spectrum(entry), config.rank, config.energy)
        run.emit(Progress(done=len(entries), total=len(file.entries), unit="modules"))
    metadata = with_sizes(file.metadata, entries)
    form = form_for(config.lora_format, file)
    made, said = save(config.output, entries, form, metadata, DTYPES.get(config.dtype))
    for line in losses.lines():
        run.emit(Note(text=line))
    run.emit(Note(text=f"all of its {len(entries)} modules {said}"))
    return made
