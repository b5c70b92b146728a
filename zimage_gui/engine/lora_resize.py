"""The command `resize-lora`: the same LoRA at a smaller rank.

Knows what is kept and what is said about it; the maths is in `model.lora_lowrank`.
"""

from pathlib import Path

from zimage_gui.config.lora_tools import ResizeLoraConfig
from zimage_gui.engine.devices import DTYPES
from zimage_gui.engine.lora_io import (
    dora_problems,
    form_for,
    output_problems,
    read_input,
    save,
    with_sizes,
)
from zimage_gui.engine.lora_losses import Losses
from zimage_gui.errors import Problem, raise_if_any, tried
from zimage_gui.events import Note, Progress, Run
from zimage_gui.model.lora_entries import Entry
from zimage_gui.model.lora_forms import form_problems
from zimage_gui.model.lora_lowrank import spectrum


def check(config: ResizeLoraConfig) -> list[Problem]:
    """Everything that keeps the file from being resized; reads it, writes nothing."""
    problems = config.problems()
    source = config.input
    file = tried(lambda: read_input(source), problems) if source is not None else None
    form = form_for(config.lora_format, file) if file is not None else None
    if config.output is not None:
        problems += output_problems(config.output, [source] if source else [], config.overwrite, form)
    if file is not None and form is not None:
        doras = dora_problems(file, "input")
        problems += doras or form_problems(file.entries, form, option="lora_format")
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
