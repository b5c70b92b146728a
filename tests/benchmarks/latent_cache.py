"""Pictures to latents on disk: our `cache-latents` and the loop of a diffusers script, same VAE weights and pictures."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from alternate import compare
from PIL import Image
from safetensors.torch import load_file, save_file

from zimage_gui.config.cache import CacheLatentsConfig
from zimage_gui.engine.cache_latents import run
from zimage_gui.events import NullRun
from zimage_gui.model.saving import save_hub_part, vae_settings
from zimage_gui.model.vae import AutoencoderKL, VaeConfig

COUNT, EDGE, SOURCE = 12, 128, (200, 160)
CONFIG = VaeConfig(block_out_channels=(32, 64, 64, 64))


def _project(folder: Path) -> None:
    torch.manual_seed(0)
    save_hub_part(folder / "vae", "vae", AutoencoderKL(CONFIG), vae_settings(CONFIG))
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = generator.integers(0, 256, (SOURCE[1] // 8, SOURCE[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(SOURCE).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a picture", encoding="utf-8")


def ours(folder: Path, precision: str) -> Path:
    """The whole command with an empty cache."""
    cache = folder / "ours"
    shutil.rmtree(cache, ignore_errors=True)
    config = CacheLatentsConfig(
        dataset=folder / "pictures", vae=folder / "vae", resolution=(EDGE, EDGE), enable_bucket=False,
        cache_directory=cache, device="cpu", num_workers=1, mixed_precision=precision,
    )  # fmt: skip
    run(config, NullRun(folder))
    return cache


def theirs(folder: Path, dtype: torch.dtype) -> Path:
    """Load the VAE, then for each picture: open, resize, crop, encode, save."""
    from diffusers import AutoencoderKL as TheirVae

    cache = folder / "theirs"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    vae = TheirVae.from_pretrained(folder / "vae", torch_dtype=dtype)
    for path in sorted((folder / "pictures").glob("*.png")):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        scale = max(EDGE / side for side in picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
        left, top = (picture.width - EDGE) // 2, (picture.height - EDGE) // 2
        pixels = np.asarray(picture.crop((left, top, left + EDGE, top + EDGE)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(dtype) / 127.5 - 1
        with torch.no_grad():
            latent = vae.encode(image).latent_dist.mode()
        save_file({"latent": latent[0].float()}, cache / f"{path.stem}.safetensors")
    return cache


def rows(pairs: int, dtypes: list[torch.dtype], say: Callable[[str], None]) -> list[str]:
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _project(folder)
        for dtype in dtypes:
            precision = "no" if dtype is torch.float32 else "bf16"
            cache, other = ours(folder, precision), theirs(folder, dtype)
            worst = 0.0
            for path in cache.glob("*.safetensors"):
                mine = next(iter(load_file(path).values()))
                their = load_file(other / f"{path.name.split('_')[0]}.safetensors")["latent"]
                worst = max(worst, float((mine - their).norm() / their.norm()))
            title = f"latent cache, {COUNT} pictures, {str(dtype).removeprefix('torch.')}"
            say(f"{title}: relative difference of the latents {worst:.1e} (the resampling filter differs)")
            result = compare(lambda p=precision: ours(folder, p), lambda d=dtype: theirs(folder, d), pairs)
            table.append(result.row(title))
            say(table[-1])
    return table
