"""The command `convert-lora`: a LoRA of any dialect into the form another program reads.

Knows which form a target means. It must not know tensor names.
"""

from dataclasses import replace
from pathlib import Path

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.engine.lora_io import change_lines, output_problems, read_input, save
from zimage_gui.errors import Problem, raise_if_any, tried
from zimage_gui.events import Note, Run
from zimage_gui.model.lora_fit import fitted
from zimage_gui.model.lora_forms import Form, form_problems

_FORMS: dict[str, Form] = {
    "other": "universal",
    "default": "native",
    "comfy": "comfy",
    "peft": "peft",
    "rust": "rust",
}


def check(config: ConvertLoraConfig) -> list[Problem]:
    """Everything that keeps the file from being converted; reads it, writes nothing."""
    problems = config.problems()
    form, source = form_of(config), config.input
    if config.output is not None:
        problems += output_problems(config.output, [source] if source else [], config.overwrite, form)
    file = tried(lambda: read_input(source), problems) if source is not None else None
    if file is not None:
        (word,) = (word for word, meant in _FORMS.items() if meant == form)
        found = form_problems(file.entries, form, config.diffusers_prefix)
        problems += [replace(problem, value=word) for problem in found]
    return list(dict.fromkeys(problems))


def run(config: ConvertLoraConfig, run: Run) -> list[Path]:
    """Converts one file, verifies it by reading it back, and says what was done."""
    raise_if_any(check(config))
    assert config.input is not None and config.output is not None  # `check` has seen to it
    form = form_of(config)
    file = read_input(config.input)
    fit = fitted(file.entries, form, config.lokr_rank)
    made, said = save(config.output, fit.entries, form, file.metadata, prefix=config.diffusers_prefix)
    for line in change_lines(fit.changes, config.lokr_rank):
        run.emit(Note(text=line))
    run.emit(Note(text=f"{file.dialect}: all of its {len(fit.entries)} modules {said}"))
    return made


def form_of(config: ConvertLoraConfig) -> Form:
    """The form that the target means; `reverse` is the second converter's way back to native names, and only
    that converter has a `lokr_rank`."""
    if config.reverse:
        return "native"
    return _FORMS[config.target or ("other" if config.lokr_rank is None else "comfy")]
