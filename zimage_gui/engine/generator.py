"""The models of `generate`, loaded once and kept: text encoder, transformer, VAE and the LoRAs that are on.

Knows how a request becomes latents and a picture, and what may stay in memory. It must not know files to
write, runs, or where requests come from.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zimage_gui.engine.decoding import PictureVae, Say, silent
from zimage_gui.engine.devices import free_memory, number_format, release_memory
from zimage_gui.engine.kernels import compile_blocks, switches_now
from zimage_gui.engine.model_key import ModelKey, stamps_of
from zimage_gui.engine.sampler import REFERENCE, Forward, Kept, OnStep, Sampling, bytes_of_both, denoise
from zimage_gui.engine.start_picture import mask_tensor, picture_tensor
from zimage_gui.model import flow
from zimage_gui.model.attention import use_backend
from zimage_gui.model.checkpoint import open_checkpoint, part_folder
from zimage_gui.model.cuda_graphs import GraphedNetwork, Record, record_on_cuda
from zimage_gui.model.lora_files import AppliedLora, LoraFile, LoraStack, read_lora
from zimage_gui.model.offload import BlockSwap
from zimage_gui.model.quantise import Quant, bytes_per_number, stored_bytes
from zimage_gui.model.text_encoder import Qwen3TextEncoder, encode_prompts
from zimage_gui.model.tokenizer import Tokenizer, load_tokenizer
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.vae import AutoencoderKL
from zimage_gui.model.weights import load_text_encoder, load_transformer

_PROMPTS_KEPT = 512
_STARTS_KEPT = 4
_HEADROOM = 3 << 30
"""Bytes that must stay free beside the weights for activations and the VAE's decode."""

OnLoad = Callable[[str, int, int], None]
"""Progress of loading: (which model, bytes read, bytes in all)."""


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA file as a user names it."""

    path: Path
    multiplier: float = 1.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureRequest:
    """Everything that determines one picture beside models and LoRAs. Sizes in px, multiples of 16."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    steps: int
    guidance_scale: float
    flow_shift: float
    seed: int
    cpu_noise: bool = False
    sampling: Sampling = REFERENCE
    image_path: Path | None = None
    mask_path: Path | None = None
    strength: float = 1.0

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that are visited, fewer where a picture is begun from."""
        strength = self.strength if self.image_path is not None else 1.0
        return self.sampling.sigmas(self.steps, self.flow_shift, strength)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that must be encoded; the negative one only where guidance uses it."""
        return (self.prompt, self.negative_prompt) if self.guidance_scale > 0 else (self.prompt,)


def _silent(part: str, done: int, total: int) -> None:
    """Progress nobody asked for."""


class Generator:
    """Loads each model when it is first needed and keeps it as memory allows. Not for several threads."""

    def __init__(self, key: ModelKey, attention: str = "torch", on_load: OnLoad = _silent) -> None:
        self.key = key
        self.device = torch.device(key.device)
        self.dtype = self._format(key)
        self.attention = attention
        self.cfg_batch = "auto"
        self.text_encoder_cpu = False
        self.note: Say = silent
        self.on_load = on_load
        vae = key.files.vae
        self.pictures = PictureVae(vae or Path(), self.device, self._told("VAE"))
        self._features: OrderedDict[str, Tensor] = OrderedDict()
        self._tokenizer: Tokenizer | None = None
        self._text_encoder: Qwen3TextEncoder | None = None
        self._transformer: ZImageTransformer | None = None
        self._starts: OrderedDict[object, Tensor] = OrderedDict()
        self._stack: LoraStack | None = None
        self._swap: BlockSwap | None = None
        self._graphs: GraphedNetwork | None = None
        self._records = False
        self.record: Record = record_on_cuda
        self._loras: tuple[tuple[LoraChoice, tuple[tuple[str, int, int], ...]], ...] = ()
        self._counts: list[int] = []

    def encode(self, texts: Iterable[str], on_text: Callable[[int, int], None] | None = None) -> list[str]:
        """Encodes the texts that are new, and returns one warning for each that is longer than 512 tokens.

        The text encoder is loaded for it and afterwards kept, moved to the CPU or freed, as memory allows.
        `on_text(done, total)` is called after each; it may raise to stop.
        """
        wanted = dict.fromkeys(texts)
        new = [text for text in wanted if text not in self._features]
        warnings = []
        if new:
            encoder, tokenizer = self._ready_text_encoder()
            for number, text in enumerate(new, 1):
                # One by one: padding to the longest would change nothing but the rounding.
                (features,) = encode_prompts(encoder, tokenizer, [text])
                self._features[text] = features.to("cpu")
                if warning := tokenizer.encode_prompt(text).warning:
                    warnings.append(warning)
                if on_text is not None:
                    on_text(number, len(new))
            self._put_text_encoder_away()
        for text in wanted:
            self._features.move_to_end(text)
        while len(self._features) > max(_PROMPTS_KEPT, len(wanted)):
            self._features.popitem(last=False)
        return warnings

    def set_loras(self, choices: Sequence[LoraChoice]) -> list[int]:
        """Makes exactly these LoRAs act; returns how many modules each changes. Nothing is done when they
        already do.

        Raises UserError, with the LoRAs of before still on, when one does not fit.
        """
        if self.has_loras(choices):
            return self._counts
        files: dict[Path, LoraFile] = {choice.path: read_lora(choice.path) for choice in choices}
        if self._stack is None:
            self._stack = LoraStack(self.transformer)
        if self._swap is not None:
            self._swap.home()
        if self._graphs is not None:
            self._graphs.forget()
        self._counts = self._stack.set(
            [
                AppliedLora(files[choice.path].select(choice.include, choice.exclude), choice.multiplier)
                for choice in choices
            ]
        )
        self._loras = lora_stamps(choices)
        return self._counts

    def has_loras(self, choices: Sequence[LoraChoice]) -> bool:
        """Whether exactly these LoRAs are on, from files that have not changed since."""
        return self._loras == lora_stamps(choices)

    def latents(self, request: PictureRequest, on_step: OnStep | None = None) -> Tensor:
        """Samples one picture: fp32 latents (1, 16, H/8, W/8) in model space, on the device."""
        return self.latents_of([request], on_step)

    def latents_of(self, requests: Sequence[PictureRequest], on_step: OnStep | None = None) -> Tensor:
        """The same for several requests at once, which differ in nothing but their seeds."""
        first = requests[0]
        self.encode(first.texts)
        use_backend(self.attention)
        transformer = self.transformer
        positive, *negative = ([self._feature(text)] * len(requests) for text in first.texts)
        noise = torch.cat([starting_noise(request, self.device) for request in requests])
        start, kept = self._begun(first, noise)

        forward = self._forward()

        def sampled(batched: bool) -> Tensor:
            guidance = first.sampling.guidance(first.guidance_scale, batched)
            return denoise(
                transformer, start, positive, negative[0] if negative else None, first.sigmas, guidance,
                on_step, solver=first.sampling.sampler, kept=kept, forward=forward,
            )  # fmt: skip

        if negative and self._both_fit(start):
            try:
                return sampled(True)
            except torch.OutOfMemoryError:
                self.note("Memory is short for both prompts at once: one after the other")
            release_memory()
        return sampled(False)

    def use_graphs(self, wanted: bool) -> None:
        """Whether passes are recorded as CUDA graphs from the next picture on."""
        self._records = wanted
        if not wanted:
            self._graphs = None

    def _forward(self) -> Forward | None:
        """The recorded transformer where passes are recorded, else None."""
        if not self._records:
            return None
        if self._graphs is None or self._graphs.network is not self.transformer:
            self._graphs = GraphedNetwork(self.transformer, lambda text: self.note(text), self.record)
        self._graphs.surroundings = (self.attention, *switches_now())
        return self._graphs

    def _both_fit(self, latents: Tensor) -> bool:
        """Whether prompt and negative prompt of these latents go through the transformer as one batch."""
        if self.cfg_batch != "auto":
            return self.cfg_batch == "always"
        return free_memory(self.device) >= 2 * bytes_of_both(self.transformer, latents)

    def _begun(self, request: PictureRequest, noise: Tensor) -> tuple[Tensor, Kept | None]:
        """Where the loop starts, and what of a picture is kept."""
        if request.image_path is None:
            return noise, None
        x0 = self._start(request.image_path, request.height, request.width)
        start = flow.noisy(x0, noise, request.sigmas[:1].to(self.device))
        if request.mask_path is None:
            return start, None
        mask = mask_tensor(request.mask_path, request.height, request.width).to(self.device)
        return start, Kept(x0, mask, noise)

    def _start(self, path: Path, height: int, width: int) -> Tensor:
        """Latents (1, 16, H/8, W/8) of a picture to begin from; the last few are kept."""
        key = (stamps_of([path]), height, width, self.pictures.dtype)
        if key not in self._starts:
            pixels, notes = picture_tensor(path, height, width)
            if notes:
                self.note(f"{path.name}: {'; '.join(notes)}")
            self._starts[key] = self.pictures.encode(pixels)
            while len(self._starts) > _STARTS_KEPT:
                self._starts.popitem(last=False)
        return self._starts[key]

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, 16, h, w) in model space."""
        return self.pictures.decode(latents)

    @property
    def transformer(self) -> ZImageTransformer:
        if self._transformer is None:
            assert self.key.files.dit is not None
            memory = self.key.memory
            self._transformer = load_transformer(
                self.key.files.dit, self.device, self.dtype,
                on_bytes=self._told("transformer"), quant=memory.base, swapped=memory.swapped,
            )  # fmt: skip
            if memory.swapped:
                blocks = list(self._transformer.layers)
                self._swap = BlockSwap(blocks, memory.swapped, self.device, memory.ring)
            if self.key.compiler is not None:
                compile_blocks(self._transformer, self.key.compiler)
                self.note("the blocks are compiled at the first step of each size, which takes longer")
        return self._transformer

    @property
    def vae(self) -> AutoencoderKL:
        return self.pictures.ready()

    def load(self, vae: bool = True, encoder: bool = False) -> None:
        """Loads what the next pictures need, so that nothing is loaded between two of them."""
        _ = self.transformer
        if vae:
            self.pictures.ready(encoder)

    def close(self) -> None:
        """Frees every model."""
        self._text_encoder = self._transformer = self._stack = self._swap = self._graphs = None
        self.pictures.close()
        self._starts.clear()
        self._loras, self._counts = (), []
        self._features.clear()
        release_memory()

    def take(self, key: ModelKey) -> bool:
        """Goes over to other models when only the transformer differs, and keeps all else; False when more
        does."""
        if key == self.key:
            return True
        dtype = self._format(key)
        if dtype != self.dtype or key.but_for_transformer() != self.key.but_for_transformer():
            return False
        self.key = key
        self._transformer = self._stack = self._swap = self._graphs = None
        self._loras, self._counts = (), []
        release_memory()
        return True

    def _format(self, key: ModelKey) -> torch.dtype:
        dit = key.files.dit
        weights = _size(dit, "transformer", torch.uint8, "none") if dit is not None else 0
        return number_format(self.device, key.precision, weights)

    def _told(self, part: str) -> Callable[[int, int], None]:
        return lambda done, total: self.on_load(part, done, total)

    def _feature(self, text: str) -> Tensor:
        return self._features[text].to(self.device, self.dtype)

    def _ready_text_encoder(self) -> tuple[Qwen3TextEncoder, Tokenizer]:
        path = self.key.files.text_encoder
        assert path is not None
        if self._text_encoder is None:
            told = self._told("text encoder")
            self._text_encoder = load_text_encoder(
                path, self._place_for(path), self.dtype, on_bytes=told, quant=self.key.memory.llm
            )
        else:
            place = self._place_for(path)
            if self._text_encoder.embed_tokens.weight.device.type != place.type:
                self._text_encoder.to(place)
        if self._tokenizer is None:
            vocabulary = self._text_encoder.config.vocab_size
            self._tokenizer = load_tokenizer(self.key.tokenizer, path, vocabulary)
        return self._text_encoder, self._tokenizer

    def _place_for(self, path: Path) -> torch.device:
        """The device, or the CPU when it is wanted there or the transformer leaves it no room."""
        if self.text_encoder_cpu:
            return torch.device("cpu")
        crowded = (
            self._transformer is not None
            and free_memory(self.device)
            < _size(path, "text_encoder", self.dtype, self.key.memory.llm) + _HEADROOM // 3
        )
        return torch.device("cpu") if crowded else self.device

    def _put_text_encoder_away(self) -> None:
        """Keeps the text encoder where it is, else on the CPU, else not at all, so that the transformer has
        room."""
        encoder = self._text_encoder
        assert encoder is not None
        needed = _HEADROOM
        if self._transformer is None and self.key.files.dit is not None:
            needed += _size(self.key.files.dit, "transformer", self.dtype, self.key.memory.base)
        if free_memory(self.device) >= needed:
            return
        on_cpu = stored_bytes(encoder) + _HEADROOM
        if self.device.type != "cpu" and free_memory(torch.device("cpu")) >= on_cpu:
            encoder.to("cpu")
        else:
            self._text_encoder = None
        del encoder
        release_memory()


def starting_noise(request: PictureRequest, device: torch.device) -> Tensor:
    """fp32 noise (1, 16, H/8, W/8) of the request's seed, drawn on `device`, or on the CPU with
    `cpu_noise`."""
    source = torch.device("cpu") if request.cpu_noise else device
    generator = torch.Generator(source).manual_seed(request.seed)
    shape = (1, 16, request.height // 16 * 2, request.width // 16 * 2)
    return torch.randn(shape, generator=generator, device=source, dtype=torch.float32).to(device)


def lora_stamps(
    choices: Sequence[LoraChoice],
) -> tuple[tuple[LoraChoice, tuple[tuple[str, int, int], ...]], ...]:
    """The LoRAs with the times and sizes of their files, which notice a replaced one."""
    return tuple((choice, stamps_of([choice.path])) for choice in choices)


def _size(path: Path, part: str, dtype: torch.dtype, quant: Quant) -> int:
    """Bytes of a model in memory, about: of a quantised one nearly all numbers are."""
    numbers = open_checkpoint(part_folder(path, part), part).weights
    return int(numbers * bytes_per_number(quant, dtype))
