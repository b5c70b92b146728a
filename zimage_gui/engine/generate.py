"""The command `generate`: which models a request needs, and whether they are held already.

Knows options, models in memory and the run's events. It must not know prompts, sampling or file names.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine import merge_model
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.devices import DTYPES, pick_device
from zimage_gui.engine.generate_job import Job
from zimage_gui.engine.generate_plan import lora_choices, merging, needed_parts, problems_of, prompts_of
from zimage_gui.engine.generator import Generator
from zimage_gui.engine.grid import grid_problems
from zimage_gui.engine.grid_job import GridJob
from zimage_gui.engine.kernels import compiler_of, set_cuda_switches
from zimage_gui.engine.model_files import find_models
from zimage_gui.engine.model_key import Memory, ModelKey
from zimage_gui.errors import Interrupted, Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.model.quantise import Quant

_WORTH_TELLING = 100 << 20
"""Bytes of a model from which its loading is shown as progress."""


def check(config: GenerateConfig) -> list[Problem]:
    """Everything that can be found wrong before a byte of weights is loaded."""
    return _problems(config)


def run(config: GenerateConfig, run: Run) -> list[Path]:
    """Generates what the options ask for; returns the files written."""
    resident = Resident()
    try:
        return resident.run(config, run)
    finally:
        resident.close()


class Resident:
    """Does one request after another and keeps the models between them."""

    def __init__(self) -> None:
        self._generator: Generator | None = None

    def run(self, config: GenerateConfig, run: Run) -> list[Path]:
        """Generates what the options ask for; returns the files written.

        Raises UserError before any weight is loaded, and Interrupted when a stop was asked for: what was
        finished by then is saved.
        """
        if config.save_merged_model is not None:
            raise_if_any(config.problems())
            return merge_model.run(merging(config), run)
        holds = self._generator is not None and _holds(self._generator, config)
        loras_are_on = (
            self._generator is not None and holds and self._generator.has_loras(lora_choices(config))
        )
        raise_if_any(_problems(config, holds, loras_are_on))
        if config.axes():
            return GridJob(config, run, partial(self._ready, run=run), _key).make(prompts_of(config))
        job = Job(config, run, self._ready(config, run))
        try:
            if config.latent_path:
                return job.decode_latents()
            return job.ask() if config.interactive else job.generate(prompts_of(config))
        finally:
            job.painter.steps.remove()

    def _ready(self, config: GenerateConfig, run: Run) -> Generator:
        """The generator with the models that the options name; what it holds of them already stays."""
        key = _key(config)
        if self._generator is None or not self._generator.take(key):
            self.close()
            self._generator = Generator(key)
        _set_up(self._generator, config, run)
        return self._generator

    def close(self) -> None:
        """Frees the models."""
        if self._generator is not None:
            self._generator.close()
        self._generator = None


def _problems(config: GenerateConfig, holds: bool = False, loras_are_on: bool = False) -> list[Problem]:
    return list(dict.fromkeys([*problems_of(config, holds, loras_are_on), *grid_problems(config)]))


def _set_up(generator: Generator, config: GenerateConfig, run: Run) -> None:
    """What of the options may differ between two requests without loading anything again."""
    set_cuda_switches(config)
    generator.attention = config.attn_mode
    generator.cfg_batch = config.cfg_batch
    generator.use_graphs(config.cuda_graphs)
    generator.text_encoder_cpu = config.text_encoder_cpu
    generator.on_load = _Loading(run).told
    pictures = generator.pictures
    pictures.dtype, pictures.tiling = DTYPES[config.vae_dtype], config.vae_tiling
    generator.note = pictures.note = lambda text: run.emit(Note(text=text))
    pictures.warn = lambda text: run.emit(Warning(text=f"VAE: {text}"))


def _key(config: GenerateConfig) -> ModelKey:
    files, problems = find_models(config, *needed_parts(config))
    raise_if_any(problems)
    llm: Quant = "fp8" if config.fp8_llm else "none"
    memory = Memory(config.base_quant, llm, config.blocks_to_swap, config.block_swap_ring_size)
    device = pick_device(config.device)
    key = ModelKey.of(files, config.tokenizer, device, config.mixed_precision, memory)
    return replace(key, compiler=compiler_of(config))


def _holds(generator: Generator, config: GenerateConfig) -> bool:
    """Whether the models are loaded already; what is wrong with the options is said elsewhere."""
    try:
        return generator.key == _key(config)
    except UserError:
        return False


@dataclass
class _Loading:
    """Reports the loading of each model: a stage when it begins, then megabytes. A stop is heeded
    meanwhile."""

    run: Run
    part: str = ""
    meter: Meter | None = None
    megabytes: int = 0

    def told(self, part: str, done: int, total: int) -> None:
        if self.run.stop_requested():
            raise Interrupted("stopped while loading")
        if part != self.part:
            self.part, self.megabytes = part, 0
            self.run.emit(Stage(name="load", text=f"Loading the {part}"))
            self.meter = Meter(self.run, total >> 20, "MB") if total > _WORTH_TELLING else None
        if self.meter is not None and done >> 20 > self.megabytes:
            self.megabytes = done >> 20
            self.meter.at(self.megabytes)
