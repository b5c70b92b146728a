"""Pictures during training. Knows the prompt file, the encoded prompts and the VAE that waits on the CPU;
must not know the loop or what is trained. A picture that fails is a warning: it never ends a run, and no
generator of the run is touched.
"""

import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from zimage_gui.engine.checkpoints import OutputNames
from zimage_gui.engine.dataset.report import count_of
from zimage_gui.engine.decoding import picture_of
from zimage_gui.engine.devices import computing_in, number_format, release_memory
from zimage_gui.engine.loader import DatasetIndex
from zimage_gui.engine.png_settings import png_bytes
from zimage_gui.engine.prompt_lines import PromptLine, read_prompt_file
from zimage_gui.engine.sampler import REFERENCE, Cancelled, Sampled, Sampling, denoise, sampling_of
from zimage_gui.errors import ProcessLost
from zimage_gui.events import Run, Sample, Stage, Warning
from zimage_gui.files import atomic_write
from zimage_gui.model.checkpoint import open_checkpoint, part_folder
from zimage_gui.model.quantise import Quant
from zimage_gui.model.text_encoder import encode_prompts
from zimage_gui.model.tokenizer import load_tokenizer
from zimage_gui.model.vae import AutoencoderKL, to_vae_space
from zimage_gui.model.weights import load_text_encoder, load_vae

STEPS, SHIFT, GUIDANCE = 20, 3.0, 0.0
"""Where a line of the prompt file says nothing. (The first seed guides by 4 then, which burns Turbo's
pictures.)"""


class PreviewModel(Sampled, Protocol):
    """What is shown: the model that is trained, or who stands for it."""

    def eval(self) -> object: ...

    def train(self) -> object: ...


@dataclass(frozen=True)
class PreviewPrompt:
    """One picture to be made each time, with nothing left open."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance_scale: float
    flow_shift: float
    sampling: Sampling = REFERENCE

    def settings(self, config: Any, step: int) -> dict[str, Any]:
        """What the PNG says; names as in `generate`, and those of the LoRAs merged for training."""
        adapters = [Path(path).name for path in getattr(config, "base_weights", ())]
        return {
            "prompt": self.prompt, "negative_prompt": self.negative_prompt,
            "image_size": [self.height, self.width],
            "infer_steps": self.steps, "seed": self.seed, "guidance_scale": self.guidance_scale,
            "flow_shift": self.flow_shift, "cpu_noise": True, **asdict(self.sampling),
            "dit": Path(config.dit).name, "training_step": step,
            **({"base_weights": adapters} if adapters else {}),
        }  # fmt: skip


@dataclass
class Previews:
    """The previews of one run. `attach` gives it the model that is trained."""

    run: Run
    names: OutputNames
    config: Any
    prompts: list[PreviewPrompt]
    features: dict[str, Tensor]
    vae: AutoencoderKL
    device: torch.device
    model: PreviewModel | None = None
    autocast: torch.dtype | None = None

    def attach(self, model: PreviewModel, autocast: torch.dtype | None) -> None:
        self.model, self.autocast = model, autocast

    def make(self, step: int, epoch: int | None) -> None:
        """Make every picture once; `epoch` counts finished epochs when an epoch is the occasion."""
        assert self.model is not None
        pictures = count_of(len(self.prompts), "picture")
        self.run.emit(Stage(name="sample", text=f"Making {pictures} at step {step}"))
        self.model.eval()
        try:
            for index, prompt in enumerate(self.prompts):
                self._tried(self.model, prompt, index, step, epoch)
        except Cancelled:
            pass  # a stop was asked for: the loop sees the same request and saves
        finally:
            self.model.train()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.run.emit(Stage(name="train", text="Training"))

    def _tried(
        self, model: PreviewModel, prompt: PreviewPrompt, index: int, step: int, epoch: int | None
    ) -> None:
        try:
            self._one(model, prompt, index, step, epoch)
        except (Cancelled, ProcessLost):
            raise
        except Exception as error:  # whatever goes wrong in a preview, training and the other pictures go on
            traceback.print_exc()
            what = f"no picture {index + 1} at step {step}: {type(error).__name__}: {error}"
            self.run.emit(Warning(text=f"{what}; training goes on"))

    def _one(
        self, model: PreviewModel, prompt: PreviewPrompt, index: int, step: int, epoch: int | None
    ) -> None:
        noise = torch.randn(
            (1, 16, prompt.height // 8, prompt.width // 8),
            generator=torch.Generator().manual_seed(prompt.seed),
        )
        with computing_in(self.device, self.autocast):
            latents = denoise(
                model, noise.to(self.device), [self._feature(prompt.prompt)],
                [self._feature(prompt.negative_prompt)] if prompt.guidance_scale > 0 else None,
                prompt.sampling.sigmas(prompt.steps, prompt.flow_shift),
                prompt.sampling.guidance(prompt.guidance_scale),
                lambda done, total, latents: self.run.stop_requested(),
                solver=prompt.sampling.sampler,
            )  # fmt: skip
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("the model gave infinite or undefined numbers")
        try:
            picture = _decoded(self.vae.to(self.device), latents)
        finally:  # out of memory too: training needs the room
            self.vae.to("cpu")
        occasion = f"e{epoch:06d}" if epoch is not None else f"{step:06d}"
        when = time.strftime("%Y%m%d%H%M%S")
        path = self.names.samples / f"{self.names.name}_{occasion}_{index:02d}_{when}_{prompt.seed}_000.png"
        atomic_write(path, png_bytes(picture, prompt.settings(self.config, step)))
        adapter = "on" if getattr(self.config, "base_weights", ()) else None
        self.run.emit(
            Sample(
                path=str(path),
                step=step,
                prompt=prompt.prompt,
                seed=prompt.seed,
                index=index,
                adapter=adapter,
            )
        )

    def _feature(self, text: str) -> Tensor:
        return self.features[text].to(self.device)


@torch.no_grad()
def _decoded(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    return picture_of(vae.decode(to_vae_space(latents, vae.config))[0])


def preview_prompts(lines: list[PromptLine], size: tuple[int, int], seed: int) -> list[PreviewPrompt]:
    """Fill in what the lines leave open. A line without `--d` has the same seed each time, so that pictures
    compare."""
    return [
        PreviewPrompt(
            prompt=line.prompt,
            negative_prompt=line.negative_prompt or "",
            width=line.width or size[0],
            height=line.height or size[1],
            steps=line.steps or STEPS,
            seed=line.seed if line.seed is not None else (seed + index) % 2**63,
            guidance_scale=GUIDANCE if line.guidance_scale is None else line.guidance_scale,
            flow_shift=line.flow_shift or SHIFT,
            sampling=sampling_of(line),
        )
        for index, line in enumerate(lines)
    ]


def encode_previews(
    config: Any, run: Run, names: OutputNames, index: DatasetIndex, device: torch.device
) -> Previews:
    """Read the prompt file, encode its prompts and free the text encoder; the VAE stays on the CPU."""
    lines = read_prompt_file(Path(config.sample_prompts), "sample_prompts")
    for number, line in enumerate(lines, 1):
        for note in line.notes:
            run.emit(Warning(text=f"prompt {number}: {note}"))
        if line.image_path is not None:
            run.emit(Warning(text=f"prompt {number}: pictures during training begin from noise"))
    size, _ = Counter(item.bucket for item in index.items).most_common(1)[0]
    prompts = preview_prompts(lines, size, config.seed)
    run.emit(Stage(name="encode_prompts", text=f"Encoding {count_of(len(prompts), 'prompt')} for previews"))
    texts = {prompt.prompt for prompt in prompts}
    texts |= {prompt.negative_prompt for prompt in prompts if prompt.guidance_scale > 0}
    quant: Quant = "fp8" if config.fp8_llm else "none"
    encoder = load_text_encoder(config.text_encoder, device, _encoder_format(config, device), quant=quant)
    tokenizer = load_tokenizer(config.tokenizer, config.text_encoder, encoder.config.vocab_size)
    features = {}
    for text in sorted(texts):
        features[text] = encode_prompts(encoder, tokenizer, [text])[0].to("cpu")
        if warning := tokenizer.encode_prompt(text).warning:
            run.emit(Warning(text=warning))
    del encoder
    release_memory()
    vae = load_vae(config.vae, "cpu", torch.float32, decoder_only=True)
    return Previews(run, names, config, prompts, features, vae, device)


def _encoder_format(config: Any, device: torch.device) -> torch.dtype:
    """That in which `generate` reads prompts, so that the pictures are the same; caches are bf16 always."""
    weights = open_checkpoint(part_folder(config.text_encoder, "text_encoder"), "text_encoder").weights
    return number_format(device, config.mixed_precision, weights)
