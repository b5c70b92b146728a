"""The command `generate`: from options to pictures and latent files, each saved as soon as it is done.

Knows options, prompts, file names and the run's events. It must not know how sampling works.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine import merge_model
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.devices import DTYPES, format_note, pick_device
from zimage_gui.engine.generate_plan import (
    batches,
    lora_choices,
    merging,
    needed_parts,
    problems_of,
    problems_of_starts,
    prompts_of,
    requests_of,
)
from zimage_gui.engine.generator import Generator, Memory, ModelKey, PictureRequest
from zimage_gui.engine.interactive import typed_prompts
from zimage_gui.engine.latent_files import latent_metadata, read_latent, settings_of_latent
from zimage_gui.engine.model_files import find_models
from zimage_gui.engine.png_settings import png_bytes
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.engine.sampler import Cancelled
from zimage_gui.engine.step_pictures import StepPictures
from zimage_gui.errors import Interrupted, Problem, UserError, raise_if_any
from zimage_gui.events import SKIP_FILE, Note, Run, Sample, Stage, Warning
from zimage_gui.files import atomic_write, free_name, sweep_temp_files
from zimage_gui.model.quantise import Quant

_PART_FOLDERS = {"transformer", "vae", "text_encoder"}
_AT_ONCE = 256
"""Pictures whose prompts are encoded together; their features wait in memory."""
_MANY_TEXTS = 8
_WORTH_TELLING = 100 << 20
"""Bytes of a model from which its loading is shown as progress."""


def check(config: GenerateConfig) -> list[Problem]:
    """Everything that can be found wrong before a byte of weights is loaded."""
    return problems_of(config)


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
        raise_if_any(problems_of(config, holds, loras_are_on))
        if self._generator is None or not holds:
            self.close()
            self._generator = Generator(_key(config))
        generator = self._generator
        _set_up(generator, config, run)
        job = _Job(config, run, generator)
        try:
            if config.latent_path:
                return job.decode_latents()
            return job.ask() if config.interactive else job.generate(prompts_of(config))
        finally:
            job.steps.remove()

    def close(self) -> None:
        """Frees the models."""
        if self._generator is not None:
            self._generator.close()
        self._generator = None


def _set_up(generator: Generator, config: GenerateConfig, run: Run) -> None:
    """What of the options may differ between two requests without loading anything again."""
    generator.attention = config.attn_mode
    generator.cfg_batch = config.cfg_batch
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
    return ModelKey.of(files, config.tokenizer, pick_device(config.device), config.mixed_precision, memory)


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


class _Job:
    """One request of the user: its pictures, their names and what is said about them."""

    def __init__(self, config: GenerateConfig, run: Run, generator: Generator) -> None:
        self.config = config
        self.run = run
        self.generator = generator
        self.folder = config.save_path or run.folder / "samples"
        self.written: list[Path] = []
        self.pictures = 0
        self.steps = StepPictures(run.folder, None)

    def ask(self) -> list[Path]:
        """Pictures of the prompts that are typed."""
        self.run.emit(Note(text="Write one prompt a line, with options as in a prompt file. Ctrl-D ends."))

        def complain(text: str) -> None:
            self.run.emit(Warning(text=text))

        for line in typed_prompts(sys.stdin, self.run.stop_requested, complain):
            problems = problems_of_starts(requests_of(self.config, [line]))
            for problem in problems:
                complain(problem.sentence())
            if not problems:
                self.generate([line])
        if self.run.stop_requested():
            raise Interrupted("stopped between two prompts")
        return self.written

    def generate(self, lines: Sequence[PromptLine]) -> list[Path]:
        """Every picture of every prompt, in order."""
        requests = requests_of(self.config, lines)
        self._tell_choices(lines, requests)
        self._prepare_folder()
        meter: Meter | None = None
        done = 0
        for start in range(0, len(requests), _AT_ONCE):
            group = requests[start : start + _AT_ONCE]
            self._encode(group)
            if meter is None:
                self._load(requests)
                self.run.emit(Stage(name="generate", text=_sentence(requests, self.generator.device)))
                meter = Meter(self.run, sum(len(request.sigmas) - 1 for request in requests), "steps")
            for batch in batches(group, self.config.batch_size):
                latents = self._sample_batch(batch, meter, done)
                done += len(batch) * (len(batch[0].sigmas) - 1)
                for request, latent in zip(batch, latents, strict=False):  # none when skipped
                    self._save(request, latent[None])
        return self.written

    def _load(self, requests: Sequence[PictureRequest]) -> None:
        self._set_loras()
        decodes = self.config.output_type != "latent"
        shows = self.config.step_preview and decodes
        begins = any(request.image_path is not None for request in requests)
        self.generator.load(vae=decodes or begins, encoder=begins)
        if shows:
            self.steps = StepPictures(self.run.folder, self.generator.pictures.colour_map())

    def _encode(self, requests: Sequence[PictureRequest]) -> None:
        meter: Meter | None = None

        def on_text(done: int, total: int) -> None:
            nonlocal meter
            if self.run.stop_requested():
                raise Interrupted("stopped while reading prompts")
            if total >= _MANY_TEXTS:
                meter = meter or Meter(self.run, total, "prompts")
                meter.at(done)

        texts = [text for request in requests for text in request.texts]
        for warning in self.generator.encode(texts, on_text):
            self.run.emit(Warning(text=warning))

    def decode_latents(self) -> list[Path]:
        """Pictures of latent files written earlier."""
        self._prepare_folder()
        self.run.emit(Stage(name="decode", text="Decoding latents"))
        for path in self.config.latent_path:
            if self.run.stop_requested():
                raise Interrupted("stopped between two pictures")
            latents, metadata = read_latent(path)
            settings = settings_of_latent(metadata)
            seed = int(settings.get("seed", 0))
            for image in self.generator.decode(latents):
                target = self._target(f"{_stamp()}_{seed}__{path.stem}_000.png")
                atomic_write(target, png_bytes(image, None if self.config.no_metadata else settings))
                self._wrote(target, settings.get("prompt", ""), seed)
        return self.written

    def _tell_choices(self, lines: Sequence[PromptLine], requests: Sequence[PictureRequest]) -> None:
        for number, line in enumerate(lines, 1):
            for note in line.notes:
                self.run.emit(Note(text=f"Prompt {number}: {note}"))
        if self.config.seed is None and any(line.seed is None for line in lines):
            seeds = ", ".join(str(request.seed) for request in requests[:8]) + (
                " …" if len(requests) > 8 else ""
            )
            self.run.emit(Note(text=f"Seed: {seeds}"))
        guidance = sorted({request.guidance_scale for request in requests} - {0.0})
        if guidance:
            pairs = ", ".join(f"{g:g} (CFG {g + 1:g} in other programs)" for g in guidance)
            self.run.emit(Note(text=f"Guidance {pairs}"))
        elif self.config.negative_prompt:
            self.run.emit(Note(text="The negative prompt has no effect: guidance_scale is 0"))
        note = format_note(self.generator.device, self.config.mixed_precision, self.generator.dtype)
        if note:
            self.run.emit(Note(text=note))
        if self.config.mixed_precision == "fp16":
            self.run.emit(Warning(text="fp16 can overflow into black pictures; bf16 does not"))

    def _prepare_folder(self) -> None:
        place = self.config.output.parent if self.config.output else self.folder
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            option = "output" if self.config.output else "save_path"
            rule = f"cannot be made ({error.strerror})"
            raise UserError.one(option, place, rule, "Choose another folder") from error
        sweep_temp_files(place)

    def _set_loras(self) -> None:
        choices = lora_choices(self.config)
        counts = self.generator.set_loras(choices)
        for choice, count in zip(choices, counts, strict=True):
            text = f"LoRA {choice.path.name} at {choice.multiplier:g}: all of its {count} modules are applied"
            self.run.emit(Note(text=text))

    def _sample_batch(
        self, batch: Sequence[PictureRequest], meter: Meter, done_before: int
    ) -> Sequence[Tensor] | Tensor:
        """Latents of the batch; where memory is short for all at once, one by one."""
        if len(batch) > 1:
            try:
                return self._sample(batch, meter, done_before)
            except torch.OutOfMemoryError:
                self.run.emit(Warning(text=f"Memory is short for {len(batch)} pictures at once: one by one"))
            torch.cuda.empty_cache()
        steps = len(batch[0].sigmas) - 1
        parts = [self._sample([one], meter, done_before + i * steps) for i, one in enumerate(batch)]
        return [part[0] for part in parts if len(part)]

    def _sample(self, batch: Sequence[PictureRequest], meter: Meter, done_before: int) -> Tensor:
        """Latents of pictures computed together; empty when they are skipped."""
        skip = self.run.folder / SKIP_FILE
        skip.unlink(missing_ok=True)

        def on_step(done: int, total: int, latents: Tensor) -> bool:
            meter.at(done_before + done * len(batch))
            self.steps.show(latents)
            return self.run.stop_requested() or skip.exists()

        if self.run.stop_requested():
            raise Interrupted("stopped between two pictures")
        try:
            latents = self.generator.latents_of(batch, on_step)
        except Cancelled:
            if not skip.exists():
                raise Interrupted("stopped within a picture") from None
            skip.unlink(missing_ok=True)
            self.run.emit(Note(text="Skipped a picture"))
            return torch.empty(0)
        if not bool(torch.isfinite(latents).all()):
            rule = "gave infinite or undefined numbers instead of a picture"
            remedy = "The model or a LoRA is damaged, or a strength is far too high"
            if self.config.mixed_precision == "fp16":
                remedy = "Use bf16; if that gives none either, the model or a LoRA is damaged"
            raise UserError.one("mixed_precision", self.config.mixed_precision, rule, remedy)
        return latents

    def _save(self, request: PictureRequest, latents: Tensor) -> None:
        base = f"{_stamp()}_{request.seed}"
        settings = self._settings(request)
        if self.config.output_type != "images":
            metadata = None if self.config.no_metadata else latent_metadata(settings)
            target = self._target(f"{base}_latent.safetensors")
            atomic_write(target, save({"latent": latents.cpu().contiguous()}, metadata=metadata))
            self.written.append(target)
        if self.config.output_type != "latent":
            (image,) = self.generator.decode(latents)
            target = self._target(f"{base}_000.png")
            atomic_write(target, png_bytes(image, None if self.config.no_metadata else settings))
            self._wrote(target, request.prompt, request.seed)

    def _target(self, name: str) -> Path:
        """Where a file goes: nothing that exists is replaced unless `overwrite` says so."""
        path = self.folder / name
        if self.config.output is not None:
            path = self.config.output
            if self.pictures:
                path = path.with_name(f"{path.stem}-{self.pictures + 1}{path.suffix}")
        target = path if self.config.overwrite else free_name(path)
        if target != path:
            self.run.emit(Note(text=f"{path.name} exists already; this one is named {target.name}"))
        return target

    def _wrote(self, path: Path, prompt: str, seed: int) -> None:
        self.written.append(path)
        self.run.emit(Sample(path=str(path), step=0, prompt=prompt, seed=seed, index=self.pictures))
        self.pictures += 1

    def _settings(self, request: PictureRequest) -> dict[str, Any]:
        """Options of `generate` that make this picture again, models and LoRAs by their names."""
        choices = lora_choices(self.config)
        files = self.generator.key.files
        return {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt if request.guidance_scale > 0 else "",
            "image_size": [request.height, request.width],
            "infer_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "flow_shift": request.flow_shift,
            "seed": request.seed,
            "cpu_noise": request.cpu_noise,
            **asdict(request.sampling),
            **_start_settings(request),
            "mixed_precision": self.config.mixed_precision,
            "lora_weight": [choice.path.name for choice in choices],
            "lora_multiplier": [choice.multiplier for choice in choices],
            "dit": _name_of(files.dit),
            "vae": _name_of(files.vae),
            "text_encoder": _name_of(files.text_encoder),
        }


def _start_settings(request: PictureRequest) -> dict[str, Any]:
    """Which picture it was begun from, by name."""
    if request.image_path is None:
        return {}
    mask = {"mask_path": request.mask_path.name} if request.mask_path is not None else {}
    return {"image_path": request.image_path.name, "strength": request.strength, **mask}


def _sentence(requests: Sequence[PictureRequest], device: torch.device) -> str:
    number = len(requests)
    return f"Generating {number} picture{'' if number == 1 else 's'} on {device}"


def _stamp() -> str:
    """Local time to the millisecond, as musubi names its files."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now * 1000) % 1000:03d}"


def _name_of(path: Path | None) -> str:
    if path is None:
        return ""
    return path.parent.name if path.name in _PART_FOLDERS else path.name
