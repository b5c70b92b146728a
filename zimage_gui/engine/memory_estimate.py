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
from zimage_gui.engine.memory_models import ModelSizes, adapter_numbers, lora_layers
from zimage_gui.engine.memory_sizes import (
    NUMBER_BYTES,
    Moment,
    Rows,
    Step,
    block_numbers,
    forward_bytes,
    fullest,
    state_bytes,
)

GIB = 2**30
AUTO = "auto"
_ITEM = {"no": 4, "fp16": 2, "bf16": 2, "fp32": 4}
_STATES = {
    "adamw": 8.0, "adam": 8.0, "adamw8bit": 2.1, "adam8bit": 2.1, "pagedadamw8bit": 2.1, "adafactor": 0.02,
    "lion": 4.0, "lion8bit": 1.05, "pagedlion8bit": 1.05, "prodigy": 16.0, "adamwschedulefree": 8.0,
    "came": 4.05, "muon": 4.0, "sgd": 4.0,
}  # fmt: skip
"""Bytes of state per trained number with averages in fp32; of any other optimizer as AdamW."""
_CUDA = 0.6 * GIB
"""CUDA's own context and the workspaces of its libraries."""
_CUT_UP = 1.04
"""What torch reserves beyond what is in use at the peak, since freed pieces do not always fit."""
_PROGRAM = {True: 2.5 * GIB, False: 1.0 * GIB}
"""RAM of the program itself, with CUDA and without."""
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
        """Of the device, with what CUDA and its allocator need."""
        most = max(self.training_peak, *self.phases.values())
        return most * _CUT_UP + _CUDA if self.device == "cuda" else most

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


def workload(config: Any, pictures: Iterable[Picture], updates: int, epochs: int) -> Workload | None:
    """From the pictures of a scan; None without any. updates and epochs: length of the run."""
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
    cache = sum(_cache_bytes(picture) for picture in shown)
    saves = _saves(config, "", updates, epochs)
    states = _saves(config, "_state", updates, epochs) if config.save_state else 0
    states += bool(config.save_state_on_train_end and not config.save_state)
    return Workload(max(batches, key=lambda batch: batch.rows.all), cache, saves, states)


def _batch_size(config: Any, source: Any) -> int:
    return int(source.batch_size if config.dataset_config is not None else config.batch_size)


def _cache_bytes(picture: Picture) -> float:
    width, height = picture.bucket
    latents = 16 * (width // 8) * (height // 8) * 4 * (2 if picture.source.flip_aug else 1)
    return latents + sum(caption_tokens(caption) * 2560 * 2 for caption in picture.captions)


def _saves(config: Any, what: str, updates: int, epochs: int) -> int:
    """Files that are there at the end, the last one among them."""
    count = 1
    for every, last, total in (
        (config.save_every_n_steps, f"save_last_n_steps{what}", updates),
        (config.save_every_n_epochs, f"save_last_n_epochs{what}", epochs),
    ):
        if every:
            kept = getattr(config, last)
            made = total // every
            count += min(made, kept // every + 1) if kept is not None else made
    return count


def estimate(
    config: Any, sizes: ModelSizes, load: Workload, device: str, item: int | None = None
) -> Estimate:
    """All parts for these options. item: bytes of a number in the computation where the machine changes it;
    a share of blocks that is "auto" counts as all of them."""
    lora = hasattr(config, "network_dim")
    item = item or _ITEM[config.mixed_precision]
    step = _step(config, sizes, load.batch.rows, item)
    moment = fullest(step)
    weights, host = _weights(config, sizes, step, item)
    shared = processes_of(config) if shards_weights(config) else 1
    training = {"transformer": weights / shared}
    if lora:
        training["LoRA"] = 4.0 * step.trained
    if shared > 1:
        training["blocks while they are whole"] = _whole_blocks(sizes, step)
    away = 0.0 if lora or step.in_backward else _swapped_share(config, sizes)
    training |= _moving(step, moment, (1 - away) / shared)
    weights = training["transformer"]
    ram = {"program": _PROGRAM[device == "cuda"]}
    if host:
        ram["swapped blocks"] = host
    if away:  # gradients and averages of swapped weights that are updated in CPU memory
        ram["their gradients and states"] = away * step.trained * (step.gradient + step.state)
    if step.inputs_away and step.recomputed:
        ram["block inputs"] = step.recomputed * sizes.config.dim * item * load.batch.rows.all
    if config.ema_decay:
        average = 4.0 * step.trained / shared
        beside = 0.0 if lora else _swapped_share(config, sizes)  # of weights that wait in CPU memory
        if config.ema_device != "cpu":
            training["average"] = average * (1 - beside)
        if config.ema_device == "cpu" or beside:
            ram["average"] = average - training.get("average", 0.0)
    resident = weights + training.get("LoRA", 0.0) + training["optimizer"] + training.get("average", 0.0)
    if load.states:
        ram["state while it is written"] = step.trained * (step_item(config) + step.state)
    if config.sample_prompts is not None:
        ram["VAE of the previews"] = 4.0 * sizes.vae_decoder
    return Estimate(
        load.batch, training, _phases(config, sizes, load.batch, resident, item), ram,
        _disk(config, load, sizes, step), device, step.recomputed,
    )  # fmt: skip


def step_item(config: Any) -> int:
    """Bytes of a trained number."""
    return 2 if getattr(config, "full_bf16", False) else 4


def recomputed_blocks(config: Any, layers: int) -> int:
    """How many of the main blocks are computed twice; the last one never is."""
    if not config.gradient_checkpointing:
        return 0
    share = config.gradient_checkpointing_fraction
    return min(layers - 1, math.ceil((1.0 if share == AUTO else float(share)) * layers))


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


def _step(config: Any, sizes: ModelSizes, rows: Rows, item: int) -> Step:
    shape, trained_item = sizes.config, step_item(config)
    recomputed = recomputed_blocks(config, shape.n_layers)
    away = config.gradient_checkpointing_cpu_offload
    full_state = _STATES.get(config.optimizer_type.lower(), 8.0)
    if hasattr(config, "network_dim"):
        layers = lora_layers(config, sizes)
        trained = sum(adapter_numbers(config, path, size) for path, size in layers.items())
        if config.dim_from_weights and config.network_weights is not None:
            trained = config.network_weights.stat().st_size // 2
        inside = any(not path.startswith(("layers.", "all_final")) for path in layers)
        return Step(
            shape, rows, item, trained, 4, full_state, recomputed, away, inside, config.network_dim,
            quantised=config.base_quant != "none",
        )  # fmt: skip
    rounds = config.full_bf16 and config.stochastic_rounding
    state = full_state if rounds or trained_item == 4 else full_state / 2
    adafactor = config.optimizer_type.lower() in ("adafactor", "came")
    copies = (4.5 if adafactor else 3.0) if rounds else (2.0 if adafactor else 0.0)
    return Step(
        shape, rows, item, sizes.transformer.all, trained_item, state, recomputed, away, True,
        in_backward=config.fused_backward_pass, casts=trained_item != item, copies=copies,
    )  # fmt: skip


def _weights(config: Any, sizes: ModelSizes, step: Step, item: int) -> tuple[float, float]:
    """Bytes of the transformer on the device, and in CPU memory."""
    quant = getattr(config, "base_quant", "none")
    other = item if hasattr(config, "network_dim") else step_item(config)
    matrix = NUMBER_BYTES[quant] if quant != "none" else other
    whole = sizes.transformer.kept_as(matrix, other)
    swapped = min(config.blocks_to_swap, sizes.config.n_layers)
    if not swapped:
        return whole, 0.0
    block = block_numbers(sizes.config) * matrix + 4 * sizes.config.dim * sizes.config.time_dim * other
    ring = min(config.block_swap_ring_size, swapped)
    return whole - (swapped - ring) * block, swapped * block


def _swapped_share(config: Any, sizes: ModelSizes) -> float:
    """Of the transformer's numbers."""
    swapped = min(int(config.blocks_to_swap), sizes.config.n_layers)
    return swapped * block_numbers(sizes.config) / sizes.transformer.all


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
    phases = {"text encoder": text, "VAE": 4.0 * (sizes.vae_encoder + sizes.vae_decoder) + maps}
    if config.sample_prompts is not None:
        rows = Rows(2 * _padded(pixels // 256), 2 * _MOST_CAPTION)  # guided: twice the rows
        passing = forward_bytes(sizes.config, rows, item)
        phases["previews"] = resident + max(passing, 4.0 * sizes.vae_decoder + maps)
    return phases


def _disk(config: Any, load: Workload, sizes: ModelSizes, step: Step) -> dict[str, float]:
    saved = step.trained if step.rank else sizes.transformer.all
    parts = {
        "caches": load.cache_bytes,
        "results": load.saves * saved * float(_ITEM[config.save_precision]),
    }
    if load.states:
        parts["states"] = load.states * step.trained * (step_item(config) + step.state)
    return parts
