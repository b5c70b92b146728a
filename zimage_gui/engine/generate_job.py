"""One request of the user for pictures: prompts read, models made ready, pictures sampled and saved.

Knows prompts, requests, the run's events and stops. It must not know how sampling works, how files are named
or when models are loaded.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.devices import format_note
from zimage_gui.engine.generate_plan import batches, lora_choices, requests_and_problems, requests_of
from zimage_gui.engine.generator import Generator, PictureRequest
from zimage_gui.engine.interactive import typed_prompts
from zimage_gui.engine.latent_files import read_latent, settings_of_latent
from zimage_gui.engine.picture_files import PictureFiles, settings_of, stamp
from zimage_gui.engine.prompt_lines import PromptLine
from zimage_gui.engine.sampler import Cancelled
from zimage_gui.engine.step_pictures import StepPictures
from zimage_gui.errors import Interrupted, UserError, raise_if_any
from zimage_gui.events import SKIP_FILE, Note, Run, Stage, Warning

_AT_ONCE = 256
"""Pictures whose prompts are encoded together; their features wait in memory."""
_MANY_TEXTS = 8
_OF_SAMPLING = ("prompt", "from_file", "interactive", "lora_weight", "image_path")
"""Options that have no part in the decoding of latents."""


class Painter:
    """Has a generator make latents, heeds stops and skips within one step, and shows each step."""

    def __init__(self, config: GenerateConfig, run: Run, generator: Generator) -> None:
        self.config = config
        self.run = run
        self.generator = generator
        self.steps = StepPictures(run.folder, None)
        self.meter: Meter | None = None
        self._done = 0

    def begin(self, steps: int, sentence: str) -> None:
        """The models are there: from now on steps of `steps` are counted."""
        self.run.emit(Stage(name="generate", text=sentence))
        self._done = 0
        self.meter = Meter(self.run, steps, "steps")

    def encode(self, requests: Sequence[PictureRequest]) -> None:
        """Encodes the prompts that are new."""
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

    def set_loras(self, config: GenerateConfig) -> None:
        """Makes the LoRAs of these options act, and says so."""
        choices = lora_choices(config)
        counts = self.generator.set_loras(choices)
        for choice, count in zip(choices, counts, strict=True):
            text = f"LoRA {choice.path.name} at {choice.multiplier:g}: all of its {count} modules are applied"
            self.run.emit(Note(text=text))

    def load(self, requests: Sequence[PictureRequest]) -> None:
        """Loads what the pictures need, so that nothing is loaded between two of them."""
        decodes = self.config.output_type != "latent"
        begins = any(request.image_path is not None for request in requests)
        self.generator.load(vae=decodes or begins, encoder=begins)
        if self.config.step_preview and decodes:
            self.steps = StepPictures(self.run.folder, self.generator.pictures.colour_map())

    def paint(self, batch: Sequence[PictureRequest]) -> Sequence[Tensor] | Tensor:
        """Latents of the batch, none of a skipped one; where memory is short for all at once, one by one."""
        before = self._done
        self._done += len(batch) * (len(batch[0].sigmas) - 1)
        if len(batch) > 1:
            try:
                return self._sample(batch, before)
            except torch.OutOfMemoryError:
                self.run.emit(Warning(text=f"Memory is short for {len(batch)} pictures at once: one by one"))
            torch.cuda.empty_cache()
        steps = len(batch[0].sigmas) - 1
        parts = [self._sample([one], before + i * steps) for i, one in enumerate(batch)]
        return [part[0] for part in parts if len(part)]

    def _sample(self, batch: Sequence[PictureRequest], done_before: int) -> Tensor:
        """Latents of pictures computed together; empty when they are skipped."""
        skip = self.run.folder / SKIP_FILE
        skip.unlink(missing_ok=True)

        def on_step(done: int, total: int, latents: Tensor) -> bool:
            if self.meter is not None:
                self.meter.at(done_before + done * len(batch))
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


class Job:
    """One request of the user: its pictures, their names and what is said about them."""

    def __init__(self, config: GenerateConfig, run: Run, generator: Generator) -> None:
        self.config = config
        self.run = run
        self.generator = generator
        self.painter = Painter(config, run, generator)
        self.files = PictureFiles(config, run)

    def ask(self) -> list[Path]:
        """Pictures of the typed prompts; one that cannot be made is told, and the next waited for."""
        self.files.prepare()
        self.run.emit(Note(text="Write one prompt a line, with options as in a prompt file. Ctrl-D ends."))

        def complain(text: str) -> None:
            self.run.emit(Warning(text=text))

        for line in typed_prompts(sys.stdin, self.run.stop_requested, complain):
            try:
                raise_if_any(requests_and_problems(self.config, [line])[1])
                self.generate([line])
                if self.config.bell:
                    print("\a", end="", flush=True)
            except UserError as error:
                complain(str(error))
        if self.run.stop_requested():
            raise Interrupted("stopped between two prompts")
        return self.files.written

    def generate(self, lines: Sequence[PromptLine]) -> list[Path]:
        """Every picture of every prompt, in order."""
        requests = requests_of(self.config, lines)
        tell_choices(self.config, self.run, self.generator, lines, requests)
        self.files.prepare()
        for start in range(0, len(requests), _AT_ONCE):
            group = requests[start : start + _AT_ONCE]
            self.painter.encode(group)
            if not start:
                self.painter.set_loras(self.config)
                self.painter.load(requests)
                steps = sum(len(request.sigmas) - 1 for request in requests)
                self.painter.begin(steps, sentence(len(requests), self.generator.device))
            for batch in batches(group, self.config.batch_size):
                latents = self.painter.paint(batch)
                for request, latent in zip(batch, latents, strict=False):  # none when skipped
                    self._save(request, latent[None])
        return self.files.written

    def decode_latents(self) -> list[Path]:
        """Pictures of latent files written earlier."""
        self.files.prepare()
        self.run.emit(Stage(name="decode", text="Decoding latents"))
        idle = [name for name in _OF_SAMPLING if getattr(self.config, name)]
        if idle:
            self.run.emit(Note(text=f"Latents are only decoded: {', '.join(idle)} not used"))
        for path in self.config.latent_path:
            if self.run.stop_requested():
                raise Interrupted("stopped between two pictures")
            latents, metadata = read_latent(path)
            settings = settings_of_latent(metadata)
            seed = int(settings.get("seed", 0))
            for image in self.generator.decode(latents):
                self.files.picture(image, f"{stamp()}_{seed}__{path.stem}_000.png", settings)
        return self.files.written

    def _save(self, request: PictureRequest, latents: Tensor) -> None:
        base = f"{stamp()}_{request.seed}"
        choices = lora_choices(self.config)
        settings = settings_of(self.config, self.generator.key.files, choices, request)
        if self.config.output_type != "images":
            self.files.latent(latents, f"{base}_latent.safetensors", settings)
        if self.config.output_type != "latent":
            (image,) = self.generator.decode(latents)
            self.files.picture(image, f"{base}_000.png", settings)


def tell_choices(
    config: GenerateConfig,
    run: Run,
    generator: Generator,
    lines: Sequence[PromptLine],
    requests: Sequence[PictureRequest],
) -> None:
    """What was decided that the user did not write: seeds, guidance in other programs' words, the format."""
    for number, line in enumerate(lines, 1):
        for note in line.notes:
            run.emit(Note(text=f"Prompt {number}: {note}"))
    if config.seed is None and any(line.seed is None for line in lines):
        seeds = ", ".join(str(request.seed) for request in requests[:8]) + (" …" if len(requests) > 8 else "")
        run.emit(Note(text=f"Seed: {seeds}"))
    guidance = sorted({request.guidance_scale for request in requests} - {0.0})
    if guidance:
        pairs = ", ".join(f"{g:g} (CFG {g + 1:g} in other programs)" for g in guidance)
        run.emit(Note(text=f"Guidance {pairs}"))
    elif config.negative_prompt and (config.from_file or config.interactive):  # else it is warned about
        run.emit(Note(text="The negative prompt has no effect: guidance_scale is 0"))
    unseen = {r.strength for r in requests if r.image_path and r.strength < 1 and float(r.sigmas[0]) >= 1}
    for strength in sorted(unseen):
        text = f"Strength {strength:g} of so few steps is all of them: each begins from pure noise"
        run.emit(Note(text=f"{text} and sees no picture. Give more steps or less strength"))
    note = format_note(generator.device, config.mixed_precision, generator.dtype)
    if note:
        run.emit(Note(text=note))
    if config.mixed_precision == "fp16":
        run.emit(Warning(text="fp16 can overflow into black pictures; bf16 does not"))


def sentence(number: int, device: torch.device) -> str:
    return f"Generating {number} picture{'' if number == 1 else 's'} on {device}"
