"""The VAE of `generate`: loaded when first needed, in the format asked for; decodes band by band where
memory is short.

Knows latents, pixels and memory. It must not know prompts, sampling, files to write or runs.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zimage_gui.engine.devices import free_memory
from zimage_gui.errors import UserError
from zimage_gui.model.latent_rgb import fit_colours
from zimage_gui.model.vae import AutoencoderKL, VaeConfig, to_model_space, to_vae_space
from zimage_gui.model.vae_bands import decode_banded
from zimage_gui.model.weights import load_vae

Say = Callable[[str], None]
OnBytes = Callable[[int, int], None]

_LIVE_MAPS = 4
"""Feature maps of the widest full-size layer that live at once: input, normed, activated, convolved."""


def silent(text: str) -> None:
    """Words nobody asked for."""


class PictureVae:
    """`dtype` and `tiling` ("auto", "always", "never") may be changed between two pictures."""

    def __init__(self, path: Path, device: torch.device, on_bytes: OnBytes) -> None:
        self.path = path
        self.device = device
        self.dtype = torch.float32
        self.tiling = "auto"
        self.note: Say = silent
        self.warn: Say = silent
        self._on_bytes = on_bytes
        self._vae: AutoencoderKL | None = None
        self._colours: Tensor | None = None

    def ready(self, encoder: bool = False) -> AutoencoderKL:
        """The loaded VAE. Raises UserError when the file has no encoder and one is needed."""
        vae = self._vae
        if vae is not None and encoder and not hasattr(vae, "encoder"):
            vae = None
        if vae is None or next(vae.parameters()).dtype is not self.dtype:
            whole = encoder or (vae is not None and hasattr(vae, "encoder"))
            self._vae = None
            self._vae = vae = load_vae(
                self.path, self.device, self.dtype, decoder_only=not whole, on_bytes=self._on_bytes
            )
        return vae

    @torch.inference_mode()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Most probable latents in model space, fp32, of pictures in [-1, 1]."""
        vae = self.ready(encoder=True)
        z = vae.encode_mode(pixels_BCHW.to(self.device, self.dtype)).float()
        if self.dtype is not torch.float32 and not bool(torch.isfinite(z).all()):
            self._to_full_precision("encoding")
            return self.encode(pixels_BCHW)
        return to_model_space(z, vae.config)

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, 16, h, w) in model space."""
        return [picture_of(self._pixels(latent[None])[0]) for latent in latents_BCHW]

    def colour_map(self) -> Tensor | None:
        """The map of `latent_rgb`, fitted once; None for a VAE without an encoder, or that cannot be
        fitted."""
        if self._colours is None:
            try:
                fitted = fit_colours(self.ready(encoder=True))
            except UserError:
                return None
            self._colours = fitted if bool(torch.isfinite(fitted).all()) else None
        return self._colours

    def close(self) -> None:
        self._vae = None

    def _pixels(self, latents: Tensor) -> Tensor:
        """(1, 3, 8h, 8w) fp32 of one latent in model space."""
        vae = self.ready()
        z = to_vae_space(latents.to(self.device, torch.float32), vae.config).to(self.dtype)
        pixels = self._decoded(vae, z).float()
        if self.dtype is not torch.float32 and not bool(torch.isfinite(pixels).all()):
            self._to_full_precision("decoding")
            return self._pixels(latents)
        return pixels

    def _to_full_precision(self, what: str) -> None:
        self.warn(f"{what} in {_name(self.dtype)} gave undefined numbers: done again in fp32")
        self.dtype = torch.float32

    def _decoded(self, vae: AutoencoderKL, z: Tensor) -> Tensor:
        needed = decoding_bytes(vae.config, z.shape[-2], z.shape[-1], self.dtype)
        short = self.tiling == "auto" and free_memory(self.device) < needed
        if self.tiling != "always" and not short:
            try:
                return vae.decode(z)
            except torch.OutOfMemoryError:
                if self.tiling == "never":
                    raise
            # Outside the handler: its traceback would keep the failed attempt's memory.
            torch.cuda.empty_cache()
        if self.tiling == "auto":
            self.note("Memory is short for the VAE: decoding band by band")
        return decode_banded(vae.decoder, z, torch.device("cpu"))


def picture_of(pixels_CHW: Tensor) -> Image.Image:
    """A decoded picture (3, H, W), about [-1, 1]: each value goes to the nearest of 256 levels."""
    levels = ((pixels_CHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def decoding_bytes(config: VaeConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """What decoding (height, width) latents takes at its peak, in the last level, beside the weights."""
    widest = max(config.block_out_channels[:2])
    return _LIVE_MAPS * widest * height * width * config.downscale**2 * dtype.itemsize


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
