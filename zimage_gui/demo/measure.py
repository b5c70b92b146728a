"""The demo's figures: `python -m zimage_gui.demo.measure` generates many pictures and lets the judge count.

Knows how the figures are defined (prompts, seeds, steps). Must not know how a picture is judged or how the
model was trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from zimage_gui.demo.draw import SIZE, Subject, held_out_subjects
from zimage_gui.demo.judge import Judgement, judge
from zimage_gui.demo.pictures import ZORB_PROMPT
from zimage_gui.demo.project import DATA
from zimage_gui.engine.devices import number_format
from zimage_gui.engine.sampler import denoise
from zimage_gui.model import flow
from zimage_gui.model.lora_files import read_lora
from zimage_gui.model.lora_merge import merge_lora
from zimage_gui.model.text_encoder import encode_prompts
from zimage_gui.model.tokenizer import load_tokenizer
from zimage_gui.model.vae import to_vae_space
from zimage_gui.model.weights import load_text_encoder, load_transformer, load_vae

STEPS, SHIFT = 20, 3.0
PROMPTS, STARS, BATCH = 200, 50, 25


@dataclass(frozen=True)
class Score:
    """Shares of pictures that are right; `all_three` counts pictures right in every respect."""

    background: float
    colour: float
    shape: float
    all_three: float
    stars: float

    def line(self) -> str:
        parts = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in vars(self).items()]
        return ", ".join(parts)


class DemoModel:
    """The demo model, ready to draw: transformer in `dtype` (None: as `generate` does here), everything else
    in fp32 on the CPU."""

    def __init__(
        self,
        hub: Path,
        transformer: Path | None = None,
        lora: Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = dtype or number_format(torch.device("cpu"), "bf16", 0)
        self.transformer = load_transformer(transformer or hub, dtype=dtype)
        if lora is not None:
            merge_lora(self.transformer, read_lora(lora), 1.0)
        self.vae = load_vae(hub)
        self.text_encoder = load_text_encoder(hub, dtype=dtype)
        vocabulary = self.text_encoder.config.vocab_size
        self.tokenizer = load_tokenizer(None, hub / "text_encoder", vocabulary)

    @torch.no_grad()
    def pictures(self, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Image.Image]:
        """One 128x128 picture per prompt; the noise of a picture depends on its seed alone."""
        side = SIZE // self.vae.config.downscale
        sigmas = flow.shifted_sigmas(STEPS, SHIFT)
        for start in range(0, len(prompts), BATCH):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + BATCH]]
            noise = torch.stack([torch.randn(16, side, side, generator=g) for g in generators])
            features = encode_prompts(self.text_encoder, self.tokenizer, prompts[start : start + BATCH])
            latents = denoise(self.transformer, noise, features, None, sigmas, 0.0)
            for latent in torch.split(latents, 1):
                decoded = self.vae.decode(to_vae_space(latent, self.vae.config))[0]
                pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
                yield Image.fromarray(pixels.permute(1, 2, 0).numpy())


def held_out_prompts(count: int) -> list[Subject]:
    """`count` subjects never trained, in turn."""
    subjects = held_out_subjects()
    return [subjects[i % len(subjects)] for i in range(count)]


def score(subjects: Sequence[Subject], seen: Sequence[Judgement]) -> Score:
    """What the judge saw against what was asked."""
    right = torch.tensor(
        [[*j.agrees(s), all(j.agrees(s)), j.is_star()] for s, j in zip(subjects, seen, strict=True)]
    )
    return Score(*right.double().mean(0).tolist())


def measure(model: DemoModel, subjects: Sequence[Subject], sheet: Path | None = None) -> Score:
    """Draw one picture per subject with seeds 0, 1, 2 …; with `sheet` they are also saved side by side."""
    pictures = list(model.pictures([s.caption for s in subjects], range(len(subjects))))
    if sheet is not None:
        contact_sheet(pictures).save(sheet)
    return score(subjects, [judge(picture) for picture in pictures])


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 10) -> Image.Image:
    """All pictures in rows of `columns`."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * SIZE, index // columns * SIZE))
    return sheet


def main() -> None:
    """Command line: which model, which LoRA, how many pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hub", type=Path, default=DATA, help="hub folder; default: the shipped demo")
    parser.add_argument("--transformer", type=Path, help="another transformer than the folder's")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--count", type=int, default=PROMPTS)
    parser.add_argument("--stars", type=int, default=STARS)
    parser.add_argument("--sheets", type=Path, help="folder for the pictures, side by side")
    options = parser.parse_args()
    model = DemoModel(options.hub, options.transformer, options.lora)
    tasks = {
        "held out": held_out_prompts(options.count),
        "zorb": [ZORB_PROMPT] * options.stars,
        "circle": [Subject("circle", "red", "white")] * options.stars,
    }
    for name, subjects in tasks.items():
        sheet = options.sheets / f"{name.replace(' ', '_')}.png" if options.sheets else None
        if subjects:
            print(f"{name}, {len(subjects)} pictures: {measure(model, subjects, sheet).line()}", flush=True)


if __name__ == "__main__":
    main()
