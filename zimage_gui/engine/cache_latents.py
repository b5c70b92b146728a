"""`cache-latents`: every picture of a dataset through the VAE once, kept as a file in the format of
musubi-tuner.

Knows the VAE, pictures and cache files. Must not know captions, the transformer or training.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zimage_gui.config.cache import CacheLatentsConfig
from zimage_gui.engine.cache_files import (
    CacheItem,
    Kind,
    Maker,
    image_hash,
    judge_latent,
    latent_key,
    latent_metadata,
    model_identity,
    with_flips,
    write_cache,
)
from zimage_gui.engine.cache_run import (
    CacheCommand,
    Encoding,
    Prepared,
    Work,
    judge_all,
    stop_if_asked,
)
from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.images import PictureProblem, read_pixels
from zimage_gui.engine.dataset.progress import Meter
from zimage_gui.engine.dataset.report import count_of, listing
from zimage_gui.engine.dataset.resize import Pixels, resize_and_crop
from zimage_gui.engine.dataset.scan import shown_name
from zimage_gui.engine.dataset.sources import check as check_sources
from zimage_gui.engine.dataset.sources import sources_of
from zimage_gui.engine.devices import autocast, cudnn, pick_device
from zimage_gui.engine.masks import make_masks
from zimage_gui.engine.show_pictures import show_pictures
from zimage_gui.errors import Problem, raise_if_any
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.model.vae import AutoencoderKL
from zimage_gui.model.weights import load_vae, model_problems

_Read = tuple[str, Pixels]


def check(config: CacheLatentsConfig) -> list[Problem]:
    """Everything that would stop the command, found without reading a picture or a weight."""
    return _command().check(config)


def run(config: CacheLatentsConfig, run: Run) -> list[Path]:
    """Bring the latent cache of `config`'s dataset up to date; returns the cache folders. With `debug_mode`
    the pictures are shown instead."""
    if config.debug_mode is not None:
        raise_if_any([*config.problems(), *check_sources(sources_of(config))])
        sizes = (config.console_width, config.console_num_images, config.num_workers)
        return show_pictures(sources_of(config), run, config.debug_mode, *sizes)
    with cudnn(enabled=not config.disable_cudnn_backend):
        return _command().run(config, run)


def _command() -> CacheCommand:
    return CacheCommand(
        Kind.LATENT, "vae", "picture", lambda path: model_problems(vae=path), latent_work, _encode_with_masks
    )


def _encode_with_masks(work: Work, run: Run) -> list[CacheItem]:
    usable = encode_latents(work, run)
    make_masks(usable, run)
    return usable


def latent_work(prepared: Prepared, encoding: Encoding, run: Run) -> Work:
    """Find out which latents are missing, stale or damaged; no weights are loaded."""
    maker = Maker(
        model_identity(encoding.model, "vae") if encoding.model is not None else None,
        encoding.precision if encoding.compare_precision else None,
    )
    todo = judge_all(
        with_flips(prepared.items),
        lambda item: judge_latent(item, maker, trust=encoding.trust),
        Kind.LATENT,
        run,
        encoding.workers,
    )
    rule = f"is needed: {count_of(len(todo), 'picture')} must be encoded"
    missing = Problem("vae", "", rule, "Set vae to ae.safetensors or to a diffusers vae folder")
    return Work(prepared, todo, encoding, missing)


def encode_latents(work: Work, run: Run) -> list[CacheItem]:
    """Do the work; returns the items whose latent can now be used, in order.

    The VAE is loaded only when there is something to do, and freed before this returns. Raises Interrupted
    when a stop was asked for (finished files stay).
    """
    encoding = work.encoding
    if not work.todo or encoding.model is None:
        return work.without(work.todo)
    device = pick_device(encoding.device)
    run.emit(Stage(name="load_vae", text="Loading the VAE"))
    encoder = _Encoder(
        load_vae(encoding.model, device=device, dtype=torch.float32),
        device,
        Maker(model_identity(encoding.model, "vae"), encoding.precision),
    )
    return work.without(_encode_all(list(work.todo), encoder, encoding, run))


@dataclass(frozen=True)
class _Encoder:
    vae: AutoencoderKL
    device: torch.device
    maker: Maker

    def encode(self, pictures: list[Pixels]) -> Tensor:
        with autocast(self.device, self.maker.precision):
            return encode_pixels(self.vae, pictures, self.device)


def _encode_all(
    todo: list[CacheItem], encoder: _Encoder, encoding: Encoding, run: Run
) -> dict[CacheItem, str]:
    """Encode and write all of `todo`; returns what could not be encoded, with the reason."""
    run.emit(
        Stage(name="encode_latents", text=f"Encoding {count_of(len(todo), 'picture')} on {encoder.device}")
    )
    failed: dict[CacheItem, str] = {}
    meter, done = Meter(run, len(todo), "pictures"), 0
    for batch, results in _decoded(_batches(todo, encoding.batch, encoder.device), encoding.workers):
        good = []
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, str):
                failed[item] = result
            else:
                good.append((item, result))
        failed |= _encode_batch(encoder, good)
        done += len(batch)
        meter.at(done)
        stop_if_asked(run, done, len(todo), "pictures")
    if failed:
        named = [f"{shown_name(item.picture.path)}: {reason}" for item, reason in failed.items()]
        what = f"{count_of(len(failed), 'picture')} could not be encoded, left out"
        run.emit(Warning(text=f"{what}: {listing(named)}"))
    run.emit(Note(text=f"encoded {count_of(len(todo) - len(failed), 'picture')}"))
    return failed


def _batches(todo: list[CacheItem], size: int | None, device: torch.device) -> list[list[CacheItem]]:
    """Batches of one bucket, largest bucket first so that too little memory shows at once."""
    groups: dict[Size, list[CacheItem]] = {}
    for item in todo:
        groups.setdefault(item.picture.bucket, []).append(item)
    batches = []
    for bucket, items in sorted(groups.items(), key=lambda group: -group[0][0] * group[0][1]):
        step = size or _fitting(bucket, device)
        batches += [items[start : start + step] for start in range(0, len(items), step)]
    return batches


_BYTES_PER_PIXEL = 128 * 4 * 6
"""Memory of the real encoder: about six fp32 feature maps of 128 channels live at once."""


def _fitting(bucket: Size, device: torch.device) -> int:
    """Pictures of a size to encode at once: 1 on a CPU, where more gains nothing, up to 8 on a GPU."""
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(8, max(1, free // (2 * bucket[0] * bucket[1] * _BYTES_PER_PIXEL))))


def _decoded(
    batches: list[list[CacheItem]], workers: int
) -> Iterator[tuple[list[CacheItem], list[_Read | str]]]:
    """Each batch with its decoded pictures (or the reason why not); threads work a little ahead, bounded."""
    ahead: deque[tuple[list[CacheItem], list[Future[_Read | str]]]] = deque()
    waiting = iter(batches)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            while True:
                while sum(len(batch) for batch, _ in ahead) < 2 * workers or len(ahead) < 2:
                    batch = next(waiting, None)
                    if batch is None:
                        break
                    ahead.append((batch, [pool.submit(_read, item) for item in batch]))
                if not ahead:
                    return
                batch, futures = ahead.popleft()
                yield batch, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_HUGE_PIXELS = 40_000_000
_one_huge = threading.Lock()
"""Pictures beyond 40 million pixels are decoded one at a time: each needs half a gigabyte and more."""


def _read(item: CacheItem) -> _Read | str:
    width, height = item.picture.original
    try:
        with _one_huge if width * height > _HUGE_PIXELS else nullcontext():
            digest = image_hash(item.picture.path)
            _, pixels = read_pixels(item.picture.path)
            pixels = resize_and_crop(pixels, item.picture.fit)
            return digest, np.ascontiguousarray(pixels[:, ::-1]) if item.flipped else pixels
    except PictureProblem as problem:
        return str(problem)
    except (OSError, ValueError) as error:
        return f"changed while it was read ({error})"


def _encode_batch(encoder: _Encoder, batch: list[tuple[CacheItem, _Read]]) -> dict[CacheItem, str]:
    """Encode and write; returns the items that failed with the reason. Halves the batch when memory runs
    out.
    """
    if not batch:
        return {}
    try:
        latents = encoder.encode([pixels for _, (_, pixels) in batch])
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return _encode_batch(encoder, batch[:half]) | _encode_batch(encoder, batch[half:])
    failed = {}
    for (item, (digest, _)), latent in zip(batch, latents, strict=True):
        if bool(torch.isfinite(latent).all()):
            shape = item.latent_shape
            metadata = latent_metadata(item, digest, encoder.maker)
            write_cache(item.latent_path, latent_key(shape), "F32", shape, _little_endian(latent), metadata)
        else:
            failed[item] = "the VAE gave infinite or undefined numbers"
    return failed


def _little_endian(latent: Tensor) -> bytes:
    return latent.contiguous().numpy().astype("<f4", copy=False).tobytes()


_CHANNELS_LAST_PIXELS = 512 * 512
"""Up to this size the CPU convolves pixels as they come, channels last: 10 to 20 % faster, at most 1e-4 off.
Above it torch's group norm sums such an array too carelessly (7e-4 off at 1024x1024)."""


@torch.inference_mode()
def encode_pixels(vae: AutoencoderKL, pictures: list[Pixels], device: torch.device) -> Tensor:
    """Pictures (H, W, 3) uint8 of one size -> posterior means (B, 16, H/8, W/8) fp32 on the CPU, VAE space.

    The VAE sees value / 127.5 - 1.
    """
    pixels_BHWC = torch.from_numpy(np.stack(pictures)).to(device, non_blocking=True)
    images_BCHW = (pixels_BHWC.float() / 127.5 - 1).permute(0, 3, 1, 2)
    if device.type != "cpu" or pictures[0].shape[0] * pictures[0].shape[1] > _CHANNELS_LAST_PIXELS:
        images_BCHW = images_BCHW.contiguous()
    return vae.encode_mode(images_BCHW).float().cpu()
