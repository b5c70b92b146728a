"""The model of a run with what is trained on it: loaded, merged, quantised, swapped or shared out as the
options say. Knows options and loading; must not know the loop or the data.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from zimage_gui.config.common import strengths
from zimage_gui.config.parallel_parts import shards_weights
from zimage_gui.engine import finetuning
from zimage_gui.engine.devices import DTYPES, format_note, number_format
from zimage_gui.engine.frozen import frozen_names
from zimage_gui.engine.methods import FullMethod, LoraMethod, Method
from zimage_gui.engine.networks import build_network
from zimage_gui.engine.processes import Processes
from zimage_gui.events import Note, Run, Stage, Warning
from zimage_gui.model.checkpoint import open_checkpoint, part_folder
from zimage_gui.model.lora_merge import merge_lora
from zimage_gui.model.lora_read import read_lora
from zimage_gui.model.offload import BlockSwap, Trained
from zimage_gui.model.placing import merges_of
from zimage_gui.model.quantise import saved_bytes, stored_bytes
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import load_transformer


def method_of(config: Any, run: Run, device: torch.device, processes: Processes) -> Method:
    """Loads the model and says what of it is trained. Raises UserError."""
    lora = hasattr(config, "network_dim")
    weights = open_checkpoint(part_folder(config.dit, "transformer"), "dit").weights
    computing = number_format(device, config.mixed_precision, weights)
    if getattr(config, "full_bf16", False):
        computing = DTYPES[config.mixed_precision]
    if note := format_note(device, config.mixed_precision, computing):
        run.emit(Note(text=note))
    dtype = computing if lora or config.full_bf16 else torch.float32
    run.emit(
        Stage(
            name="load_dit", text=f"Loading the transformer ({str(dtype).removeprefix('torch.')}, {device})"
        )
    )
    if config.mixed_precision == "fp16":
        run.emit(
            Warning(text="fp16 overflows easily with Z-Image; bf16 is the safe choice where the GPU has it")
        )
    if lora:
        model = _frozen_model(config, run, device, dtype)
        network = build_network(model, config, run)
        _swap_blocks(model, config, run, device)
        return LoraMethod(model, network, config.lora_format, DTYPES[config.save_precision])
    if shards_weights(config):
        model = _shared_out(config, run, device, dtype, processes)
    else:
        model = load_transformer(config.dit, device, dtype, swapped=config.blocks_to_swap)
    autocast = None if config.full_bf16 or computing is torch.float32 else computing
    finetuning.tell(config, run)
    frozen = frozen_names(config, dict(model.named_parameters()))
    method = FullMethod(model, autocast, config.save_layout, DTYPES[config.save_precision], frozen)
    method.swap = _swap_blocks(
        model, config, run, device, "updated" if config.fused_backward_pass else "gathered"
    )
    return method


def _shared_out(
    config: Any, run: Run, device: torch.device, dtype: torch.dtype, processes: Processes
) -> ZImageTransformer:
    """Each process reads the file and keeps its rows of each tensor: none ever has the whole model."""
    from zimage_gui.model.sharding import shard

    prepare = partial(shard, group=processes.data_group, device=device, dtype=dtype)
    model = load_transformer(config.dit, "cpu", dtype, prepare=prepare)
    text = f"weights, gradients and optimizer are shared out over {processes.count} processes"
    if not config.shard_weights:
        text += ", as accelerate launch asks; of its other settings for FSDP none is used"
    run.emit(Note(text=text))
    return model


def _frozen_model(config: Any, run: Run, device: torch.device, dtype: torch.dtype) -> ZImageTransformer:
    """The base of a LoRA, with `base_weights` in it; they are added before anything is quantised."""
    multipliers = strengths(config.base_weights_multiplier, len(config.base_weights))
    loras = [
        (read_lora(Path(path)), multiplier)
        for path, multiplier in zip(config.base_weights, multipliers, strict=False)
    ]
    quantised = config.base_quant != "none"
    merges = merges_of(loras) if quantised else None
    swapped = config.blocks_to_swap
    model = load_transformer(
        config.dit, device, dtype, quant=config.base_quant, merges=merges, swapped=swapped
    )
    if quantised:
        kept, saved = (amount / 2**20 for amount in (stored_bytes(model), saved_bytes(model, dtype)))
        text = (
            f"base weights kept as {config.base_quant}: {kept:,.1f} MiB, {saved:,.1f} MiB less than without"
        )
        run.emit(Note(text=text))
    for file, multiplier in loras:
        count = len(file.entries) if quantised else merge_lora(model, file, multiplier)
        what = f"merged {file.path.name} x {multiplier:g} into {count} layers for training"
        run.emit(Note(text=f"{what}; the result will not contain it"))
    return model


def _swap_blocks(
    model: ZImageTransformer, config: Any, run: Run, device: torch.device, trained: Trained | None = None
) -> BlockSwap | None:
    """When it is known what is trained: a LoRA stays on the device, a model's own weights are swapped."""
    if not config.blocks_to_swap:
        return None
    ring = config.block_swap_ring_size
    swap = BlockSwap(list(model.layers), config.blocks_to_swap, device, ring, trained)
    host, ring = (amount / 2**20 for amount in (swap.host_bytes, swap.ring_bytes))
    text = f"{config.blocks_to_swap} blocks wait in CPU memory ({host:,.1f} MiB), {ring:,.1f} MiB of buffers"
    if device.type == "cpu":
        text += "; on a CPU this saves nothing"
    run.emit(Note(text=text))
    return swap
