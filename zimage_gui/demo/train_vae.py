"""Train the demo's autoencoder on drawn pictures: `python -m zimage_gui.demo.train_vae --to FOLDER`.

Knows the drawn pictures and the VAE. Must not know the transformer. Two phases: 64 px crops of busy
pictures (flat ones alone teach droplets and wrong colours), then whole 128 px pictures. Between the two
the latents are centred and scaled to about unit variance in the transformer's space. Last the decoder goes
on alone: from there the latents stay, so that the transformer can be trained at the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zimage_gui.demo.draw import SIZE, draw, draw_rich, held_out_subjects, trained_subjects
from zimage_gui.model.vae import AutoencoderKL, VaeConfig, to_model_space

DEMO_VAE = VaeConfig(block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_groups=8)
WEIGHTS, STATE, LOG = "vae.safetensors", "vae-state.safetensors", "vae.log"


@dataclass(frozen=True)
class Recipe:
    """Numbers of one training: crops, whole pictures, whole pictures with the encoder frozen."""

    crop_steps: int = 6000
    whole_steps: int = 250
    decoder_steps: int = 700
    crop_batch: int = 16
    whole_batch: int = 8
    learning_rate: float = 2e-3
    rate_horizon: int = 6900  # where the first cosine would reach zero
    decoder_rate: float = 5e-4
    decoder_flat: int = 6  # flat pictures among the `whole_batch` of a step of the decoder alone
    warmup_steps: int = 100
    kl_weight: float = 1e-6  # of the sum over one picture's latents, against the mean over its pixels
    rich_pictures: int = 6000
    flat_pictures: int = 3000
    seed: int = 1
    threads: int = 2

    @property
    def total_steps(self) -> int:
        return self.encoder_steps + self.decoder_steps

    @property
    def encoder_steps(self) -> int:
        """Steps after which the encoder, and with it every latent, stays as it is."""
        return self.crop_steps + self.whole_steps

    def rate(self, step: int) -> float:
        """Learning rate at `step`: linear warm-up, half a cosine towards zero, another for the decoder."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < self.encoder_steps:
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1, step / self.rate_horizon)))
        done = (step - self.encoder_steps) / max(1, self.decoder_steps)
        return self.decoder_rate * 0.5 * (1 + math.cos(math.pi * min(1, done)))


def picture_pool(recipe: Recipe) -> Tensor:
    """Training pictures (N, 3, 128, 128) uint8; held-out combinations are not among the flat ones."""
    subjects = trained_subjects()
    pictures = [draw_rich(i) for i in range(recipe.rich_pictures)]
    pictures += [draw(subjects[i % len(subjects)], i) for i in range(recipe.flat_pictures)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def unseen_flat(count: int = 57) -> Tensor:
    """Pictures of held-out combinations (count, 3, 128, 128) in [-1, 1]."""
    subjects = held_out_subjects()
    pixels = np.stack([np.asarray(draw(subjects[i % len(subjects)], 10_000 + i)) for i in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch_of(pool: Tensor, recipe: Recipe, step: int) -> Tensor:
    """The pictures of one step in [-1, 1], a pure function of (seed, step): crops, mirrored at random."""
    rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    whole = step >= recipe.crop_steps
    count, side = (recipe.whole_batch, SIZE) if whole else (recipe.crop_batch, 64)
    index = torch.randint(len(pool), (count,), generator=rng)
    if step >= recipe.encoder_steps:
        flat = slice(0, recipe.decoder_flat)
        index[flat] = recipe.rich_pictures + index[flat] % recipe.flat_pictures
    picked = pool[index]
    corners = torch.randint(SIZE - side + 1, (count, 2), generator=rng).tolist()
    crops = [p[:, y : y + side, x : x + side] for p, (y, x) in zip(picked, corners, strict=True)]
    mirrored = torch.rand(count, generator=rng) < 0.5
    crops = [c.flip(-1) if flip else c for c, flip in zip(crops, mirrored.tolist(), strict=True)]
    return torch.stack(crops).float() / 127.5 - 1


def loss_of(vae: AutoencoderKL, images: Tensor, recipe: Recipe) -> Tensor:
    """Absolute + squared error of a sampled reconstruction, plus the KL to N(0, 1) in model space."""
    mean, logvar = (part.float() for part in vae.encode_moments(images))
    z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
    error = vae.decode(z).float() - images
    model_mean = to_model_space(mean, vae.config)
    model_logvar = logvar + 2 * math.log(vae.config.scaling_factor)
    kl = 0.5 * (model_mean.square() + model_logvar.exp() - 1 - model_logvar).sum() / len(images)
    return error.abs().mean() + error.square().mean() + recipe.kl_weight * kl


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Peak signal to noise in dB of pictures in [-1, 1] through the autoencoder, averaged by picture."""
    parts = [vae.decode(vae.encode_mode(chunk)).clamp(-1, 1) - chunk for chunk in torch.split(images, 8)]
    error = torch.cat(parts).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give the latents mean 0 (by channel) and variance 1 (overall) in model space, weights alone.

    Exact inside the picture; at the border the decoder's zero padding sees other values, which the
    training that follows repairs.
    """
    z = torch.cat([vae.encode_mode(chunk) for chunk in torch.split(pictures, 8)])
    mean = z.mean((0, 2, 3))
    config = vae.config
    gain = 1 / (config.scaling_factor * (z - mean[:, None, None]).std())
    shift = config.shift_factor - gain * mean
    latents = config.latent_channels
    head, first = vae.encoder.conv_out, vae.decoder.conv_in
    assert head.bias is not None and first.bias is not None
    head.weight[:latents] *= gain
    head.bias[:latents] = head.bias[:latents] * gain + shift
    head.bias[latents:] += 2 * gain.log()
    first.weight /= gain
    first.bias -= (first.weight.sum((2, 3)) * shift).sum(1)


class Training:
    """The autoencoder, its optimizer and the step reached; saved and resumed as safetensors."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder = recipe, folder
        self.vae = AutoencoderKL(DEMO_VAE)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=recipe.learning_rate, weight_decay=1e-3)
        self.step = 0
        if (folder / STATE).exists():
            self._resume()

    def save(self) -> None:
        save_file(self.vae.state_dict(), self.folder / WEIGHTS)
        tensors = {"step": torch.tensor(self.step)}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{index}.{name}": value for name, value in state.items()}
        temporary = self.folder / (STATE + ".tmp")
        save_file({**tensors, **{f"vae.{k}": v for k, v in self.vae.state_dict().items()}}, temporary)
        temporary.replace(self.folder / STATE)

    def _resume(self) -> None:
        tensors = load_file(self.folder / STATE)
        self.step = int(tensors.pop("step"))
        self.vae.load_state_dict({k[4:]: tensors.pop(k) for k in list(tensors) if k.startswith("vae.")})
        saved = self.optimizer.state_dict()
        for key, value in tensors.items():
            index, name = key.split(".")
            saved["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(saved)

    def one_step(self, pool: Tensor) -> tuple[float, float]:
        """Loss and gradient norm of one update."""
        torch.manual_seed(self.recipe.seed * 7 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        images = batch_of(pool, self.recipe, self.step)
        self.vae.encoder.requires_grad_(self.step < self.recipe.encoder_steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(self.vae, images, self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()), float(norm)


def train(recipe: Recipe, folder: Path, say: Callable[[str], None], every: int = 250) -> AutoencoderKL:
    """Run or resume the training; a line, the weights and the state every `every` steps."""
    pool, unseen = picture_pool(recipe), unseen_flat()
    run = Training(recipe, folder)
    say(f"{sum(p.numel() for p in run.vae.parameters())} parameters, {json.dumps(vars(recipe))}")
    begun, losses = time.monotonic(), []
    while run.step < recipe.total_steps:
        if run.step == recipe.crop_steps:
            normalise_latents(run.vae, pool[recipe.rich_pictures :][:256].float() / 127.5 - 1)
        losses.append(run.one_step(pool)[0])
        if run.step % every == 0 or run.step == recipe.total_steps:
            run.save()
            average, losses = sum(losses) / len(losses), []
            quality, seconds = psnr(run.vae, unseen[:19]), time.monotonic() - begun
            rate = f"lr {recipe.rate(run.step):.2e}"
            say(f"step {run.step} loss {average:.5f} {rate} {quality:.2f} dB {seconds:.0f} s")
    say(f"done: {psnr(run.vae, unseen):.2f} dB on {len(unseen)} pictures of combinations never trained")
    return run.vae


def main() -> None:
    """Command line: where to write, and the numbers worth changing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, required=True)
    for name in ("crop_steps", "whole_steps", "decoder_steps", "threads", "rich_pictures", "flat_pictures"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    options = vars(parser.parse_args())
    folder: Path = options.pop("to")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(**options)
    torch.set_num_threads(recipe.threads)
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            log.write(time.strftime("%Y-%m-%d %H:%M:%S ", time.gmtime()) + line + "\n")
            log.flush()

        train(recipe, folder, say)


if __name__ == "__main__":
    main()
