"""The files of `generate`: where each goes, what it is called, and the settings that are written into it.

Knows options, names and metadata. It must not know models in memory or how a picture is made.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.generator import LoraChoice, PictureRequest
from zimage_gui.engine.latent_files import latent_metadata
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.png_settings import png_bytes
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Run, Sample
from zimage_gui.files import atomic_write, free_name, sweep_temp_files

_PART_FOLDERS = {"transformer", "vae", "text_encoder"}


class PictureFiles:
    """The results of one request of the user: each is told as soon as it is on the disk."""

    def __init__(self, config: GenerateConfig, run: Run) -> None:
        self.config = config
        self.run = run
        self.folder = config.save_path or run.folder / "samples"
        self.written: list[Path] = []
        self.pictures = 0

    def prepare(self) -> None:
        """Makes the folder. Raises UserError when it cannot be made."""
        place = self.config.output.parent if self.config.output else self.folder
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            option = "output" if self.config.output else "save_path"
            rule = f"cannot be made ({error.strerror})"
            raise UserError.one(option, place, rule, "Choose another folder") from error
        sweep_temp_files(place)

    def picture(
        self, image: Image.Image, name: str, settings: dict[str, Any], shown: tuple[str, int] | None = None
    ) -> Path:
        """Writes a picture; `shown` is the prompt and the seed that are told with it, those of the settings
        unless given."""
        return self.picture_at(self._target(name), image, settings, shown)

    def picture_at(
        self, path: Path, image: Image.Image, settings: dict[str, Any], shown: tuple[str, int] | None = None
    ) -> Path:
        """The same under exactly this path."""
        atomic_write(path, png_bytes(image, None if self.config.no_metadata else settings))
        prompt, seed = shown or (settings.get("prompt", ""), settings.get("seed", 0))
        self.tell(path, prompt, seed)
        return path

    def latent(self, latents: Tensor, name: str, settings: dict[str, Any]) -> Path:
        """Writes a latent file."""
        metadata = None if self.config.no_metadata else latent_metadata(settings)
        target = self._target(name)
        atomic_write(target, save({"latent": latents.cpu().contiguous()}, metadata=metadata))
        self.written.append(target)
        return target

    def tell(self, path: Path, prompt: str, seed: int) -> None:
        """A picture is there."""
        self.written.append(path)
        self.run.emit(Sample(path=str(path), step=0, prompt=prompt, seed=seed, index=self.pictures))
        self.pictures += 1

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


def settings_of(
    config: GenerateConfig, files: ModelFiles, choices: Sequence[LoraChoice], request: PictureRequest
) -> dict[str, Any]:
    """Options of `generate` that make this picture again, models and LoRAs by their names."""
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
        "mixed_precision": config.mixed_precision,
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


def stamp() -> str:
    """Local time to the millisecond, as musubi names its files."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now * 1000) % 1000:03d}"


def _name_of(path: Path | None) -> str:
    if path is None:
        return ""
    return path.parent.name if path.name in _PART_FOLDERS else path.name
