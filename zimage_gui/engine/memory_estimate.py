"""What memory and disk a training run will take, by part, before anything is loaded.

Knows the options of training, headers and the list of pictures. Must not know torch: the window shows the
same figures. `memory_sizes` has the arithmetic of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from zimage_gui.config.parallel_parts import processes_of, shards_weights
from zimage_gui.engine.dataset.scan import Picture
from zimage_gui.engine.memory_models import ModelSizes
from zimage_gui.engine.memory_sizes import (
    NUMBER_BYTES,
    Moment,
    Rows,
    Step,
    block_numbers,
    forward_bytes,
    fullest,
    pinned_bytes,
    state_bytes,
)
from zimage_gui.engine.memory_steps import (
    ITEM,
    step_item,
    step_of,
    swapped_block_bytes,
    swapped_share,
    weight_bytes,
)

GIB = 2**30
TRAINING, TEXT_ENCODER, VAE = "training", "text encoder", "VAE"
PREVIEWS, SAVING = "previews", "saving"
"""The phases of a run."""
_CUDA = 0.6 * GIB
"""CUDA's own context and the workspaces of its libraries."""
_CUT_UP = 1.04
"""What torch reserves beyond what is in use at the peak, since freed pieces do not always fit."""
_AT_WORK = 5 * 2**20
"""On a CPU, what torch's threads, kernels and our own objects take beside tensors once a step runs."""
_CODE = 25 * 2**20
"""Of libraries, read in from files when it first runs."""
_KEPT = "kept for reuse"
_KEPT_SHARE = 0.6
"""Of the activations that lie in pieces glibc keeps when they are freed: holes which later pieces do not fit.
Measured 0.35 to 1.0 in a dozen runs on a CPU, mostly 0.6; larger pieces go back to the system at once."""
_KEPT_PIECE = 32 * 2**20
_PROGRAM = {True: 2.5 * GIB, False: 0.5 * GIB}
"""RAM of the program itself, with CUDA and without (0.43 GiB measured)."""
_TOKENIZER = 210.0
"""RAM of the tokenizer for each entry of its vocabulary: 30 MiB for the released model's."""
_FP32 = 4.0
_VAE_MAPS = 6
"""Feature maps of the first width, in fp32, that the VAE holds at once."""
_CAPTION_TOKENS = 20, 3.5
"""Tokens around a caption, and letters to a token."""
_MOST_CAPTION = 512


@dataclass(frozen=True)
class Batch:
    """The largest batch of a run: one picture's size, the padded caption length, how many."""

    width: int
    height: int
    text: int
    count: int

    @property
    def rows(self) -> Rows:
        image = _padded((self.width // 16) * (self.height // 16))
        return Rows(self.count * image, self.count * self.text)

    @property
    def words(self) -> str:
        return f"{self.width}x{self.height}, batch {self.count}, {self.text} caption tokens"


@dataclass(frozen=True)
class Estimate:
    """Bytes. `training`: parts of the device's memory while training; `phases`: what else the device holds at
    other times, one after the other; `device` is "cuda" or "cpu", where the device's memory is RAM."""

    batch: Batch
    training: dict[str, float]
    phases: dict[str, float]
    ram: dict[str, float]
    disk: dict[str, float]
    device: str
    recomputed: int

    @property
    def training_peak(self) -> float:
        return sum(self.training.values())

    @property
    def peak(self) -> float:
        """Of the device, with what CUDA itself needs."""
        most = max(map(self.taken, (TRAINING, *self.phases)))
        return most + _CUDA if self.device == "cuda" else most

    def taken(self, phase: str) -> float:
        """What torch reserves of a GPU in a phase, or what is in use of a CPU's RAM."""
        size = self.training_peak if phase == TRAINING else self.phases[phase]
        return size * _CUT_UP if self.device == "cuda" else size + _AT_WORK

    @property
    def kept(self) -> float:
        """By how much more than what is in use a process on a CPU grows."""
        return self.ram.get(_KEPT, 0.0) + _CODE

    @property
    def ram_peak(self) -> float:
        return sum(self.ram.values()) + (self.peak if self.device == "cpu" else 0.0)


@dataclass(frozen=True)
class Workload:
    """What is known of the data and the length: the largest batch, bytes of caches, saves and states."""

    batch: Batch
    cache_bytes: float = 0.0
    saves: int = 1
    states: int = 0


def _padded(tokens: int) -> int:
    return -(-tokens // 32) * 32


def caption_tokens(caption: str) -> int:
    around, letters = _CAPTION_TOKENS
    return _padded(min(_MOST_CAPTION, around + math.ceil(len(caption) / letters)))


def workload(
    config: Any, pictures: Iterable[Picture], updates: int, epochs: int, text_width: int = 2560
) -> Workload | None:
    """From the pictures of a scan; None without any. updates and epochs: length of the run; text_width:
    numbers that a caption's token is encoded to."""
    shown = list(pictures)
    if not shown:
        return None
    members: dict[tuple[Any, tuple[int, int]], int] = {}
    for picture in shown:
        key = (picture.source, picture.bucket)
        members[key] = members.get(key, 0) + picture.source.num_repeats
    text = max(caption_tokens(caption) for picture in shown for caption in picture.captions)
    batches = [
        Batch(*bucket, text, min(count, _batch_size(config, source)))
        for (source, bucket), count in members.items()
    ]
    cache = sum(_cache_bytes(picture, text_width) for picture in shown)
    saves = _saves(config, "", updates, epochs)
    states = _saves(config, "_state", updates, epochs) if config.save_state else 0
    states += bool(config.save_state_on_train_end and not config.save_state)
    return Workload(max(batches, key=lambda batch: batch.rows.all), cache, saves, states)


def _batch_size(config: Any, source: Any) -> int:
    return int(source.batch_size if config.dataset_config is not None else config.batch_size)


def _cache_bytes(picture: Picture, text_width: int) -> float:
    width, height = picture.bucket
    latents = 16 * (width // 8) * (height // 8) * 4 * (2 if picture.source.flip_aug else 1)
    return latents + sum(caption_tokens(caption) * text_width * 2 for caption in picture.captions)


def _saves(config: Any, what: str, updates: int, epochs: int) -> int:
    """Files that are there at the fullest, when the last one has been written and older ones are to go."""
    count = 1
    for every, last, total in (
        (config.save_every_n_steps, "save_last_n_steps", updates),
        (config.save_every_n_epochs, "save_last_n_epochs", epochs),
    ):
        if every:
            kept = getattr(config, f"{last}{what}") or getattr(config, last)
            made = max(0, total - 1) // every  # the last one is the final file
            count += min(made, kept // every + 1) if kept is not None else made
    return count


def estimate(
    config: Any, sizes: ModelSizes, load: Workload, device: str, item: int | None = None
) -> Estimate:
    """All parts for these options. item: bytes of a number in the computation where the machine changes it;
    a share of blocks that is "auto" counts as all of them."""
    lora = hasattr(config, "network_dim")
    item = item or ITEM[config.mixed_precision]
    step = step_of(config, sizes, load.batch.rows, load.batch.count, device, item)
    weights, _ = weight_bytes(config, sizes, item)
    shared = processes_of(config) if shards_weights(config) else 1
    training = {"transformer": weights / shared}
    if lora:
        training["LoRA"] = 4.0 * step.trained
    if shared > 1:
        training["blocks while they are whole"] = _whole_blocks(sizes, step)
    away = 0.0 if lora or step.in_backward else swapped_share(config, sizes, step)
    training |= _moving(step, fullest(step), (1 - away) / shared)
    beside = 0.0 if lora else swapped_share(config, sizes, step)  # of weights that wait in CPU memory
    average = 4.0 * step.trained / shared if config.ema_decay else 0.0
    if average and config.ema_device != "cpu":
        training["average"] = average * (1 - beside)
    waiting = _waiting(config, sizes, load, step, item, away, device)
    waiting |= {"average": average - training.get("average", 0.0)} if average else {}
    waiting = {name: size for name, size in waiting.items() if size}
    ram = {"program": _PROGRAM[device == "cuda"]}
    if device == "cpu":  # there it is one memory
        small = sizes.config.dim * item * load.batch.rows.all < _KEPT_PIECE
        ram |= {_KEPT: _KEPT_SHARE * training["activations"]} if small else {}
        for name, size in waiting.items():
            training[name] = training.get(name, 0.0) + size
    else:
        ram |= waiting
    moving = training["gradients"] + training["activations"]
    resident = sum(training.values()) - moving
    phases = _phases(config, sizes, load.batch, resident, item)
    if device == "cpu":
        for name in (TEXT_ENCODER, VAE):
            phases[name] += waiting["tokenizer"]
    if copies := _copies(config, load, step, average, device):
        if device == "cpu":
            phases[SAVING] = resident + copies
        else:
            ram["copies while it saves"] = copies
    disk = _disk(config, load, sizes, step)
    return Estimate(load.batch, training, phases, ram, disk, device, step.recomputed)


def _waiting(
    config: Any, sizes: ModelSizes, load: Workload, step: Step, item: int, away: float, device: str
) -> dict[str, float]:
    """What is in CPU memory all the while. For CUDA it is pinned."""
    pinned = pinned_bytes if device == "cuda" else float
    swapped = min(int(config.blocks_to_swap), sizes.config.n_layers)
    inputs = sizes.config.dim * item * load.batch.rows.all
    found = {
        "tokenizer": _TOKENIZER * sizes.text.vocab_size,
        "swapped blocks": swapped * pinned(swapped_block_bytes(config, sizes, item)),
    }
    # gradients and averages of swapped weights that are updated in CPU memory
    found["their gradients and states"] = away * step.trained * (step.gradient + step.state)
    if step.inputs_away:
        found["block inputs"] = max(0, step.recomputed - step.first) * pinned(inputs)
    if config.sample_prompts is not None:
        found["VAE of the previews"] = _FP32 * sizes.vae_decoder
    return found


def _copies(config: Any, load: Workload, step: Step, average: float, device: str) -> float:
    """Copies in RAM while a state is written, which a GPU's tensors need, or while the average stands in the
    place of the weights."""
    state = step.trained * (step_item(config) + step.state) + average
    written = state if load.states and device == "cuda" else 0.0
    return max(written, step.trained * float(step_item(config)) if average else 0.0)


def least_recomputed(
    config: Any, sizes: ModelSizes, load: Workload, device: str, free: float, item: int | None = None
) -> int:
    """The fewest blocks to compute twice so that the run fits `free` bytes; all of them when none is few
    enough."""
    layers = sizes.config.n_layers
    for count in range(layers):
        share = config.model_copy(update={"gradient_checkpointing_fraction": str(count / layers)})
        found = estimate(share, sizes, load, device, item)
        if found.peak <= free:
            return found.recomputed
    return layers - 1


def _whole_blocks(sizes: ModelSizes, step: Step) -> float:
    """Where processes share out the weights: one block computes, the next one comes and is taken apart, and
    one block's gradients are whole, then in fp32 on their way."""
    return block_numbers(sizes.config) * (4.0 * step.gradient + _FP32)


def _moving(step: Step, moment: Moment, here: float) -> dict[str, float]:
    """here: the share of the trained numbers that stay on the device."""
    return {
        "optimizer": state_bytes(step) * here,
        "gradients": moment.gradients * here,
        "activations": moment.activations,
    }


def _phases(config: Any, sizes: ModelSizes, batch: Batch, resident: float, item: int) -> dict[str, float]:
    """The encoders while caching, and previews beside the trained model."""
    encoder = sizes.text_encoder
    # caches are encoded in bf16, the prompts of previews in the format that generate takes for them
    item_of_text = 4.0 if config.sample_prompts is not None and config.mixed_precision == "no" else 2.0
    text = encoder.kept_as(NUMBER_BYTES["fp8"] if config.fp8_llm else item_of_text, item_of_text)
    text += (4 * sizes.text.hidden_size + 3 * sizes.text.intermediate_size) * 2 * _MOST_CAPTION
    pixels = batch.width * batch.height
    maps = _VAE_MAPS * sizes.vae_width * 4.0 * pixels
    phases = {TEXT_ENCODER: text, VAE: 4.0 * (sizes.vae_encoder + sizes.vae_decoder) + maps}
    if config.sample_prompts is not None:
        rows = Rows(2 * _padded(pixels // 256), 2 * _MOST_CAPTION)  # guided: twice the rows
        passing = forward_bytes(sizes.config, rows, item)
        phases[PREVIEWS] = resident + max(passing, 4.0 * sizes.vae_decoder + maps)
    return phases


def _disk(config: Any, load: Workload, sizes: ModelSizes, step: Step) -> dict[str, float]:
    saved = step.trained if hasattr(config, "network_dim") else sizes.transformer.all
    parts = {
        "caches": load.cache_bytes,
        "results": load.saves * saved * float(ITEM[config.save_precision]),
    }
    if load.states:
        average = _FP32 if config.ema_decay else 0.0
        parts["states"] = load.states * step.trained * (step_item(config) + step.state + average)
    return parts
