"""Options of the two older programs that are not options here: those without meaning for Z-Image, which are
accepted with one line, and those that a launcher has to be told, which are refused with one sentence, never
ignored.

This module knows names and sentences; it must not know how they are read. It is the only such list;
`docs/compatibility.md` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Takes = Literal["switch", "value", "list"]

_CACHES = ("cache-latents", "cache-text")
_TRAINING = ("train-lora", "finetune", "train")
_MODELS = (*_TRAINING, "generate")
_ALL = (*_CACHES, *_MODELS)


@dataclass(frozen=True)
class Inert:
    """An option that does nothing here; reason: the line that says so, after the name."""

    name: str
    takes: Takes
    commands: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Elsewhere:
    """An option that another program must be told. harmless: values that ask for what happens anyway,
    accepted in silence; remedy: how to tell it."""

    name: str
    takes: Takes
    commands: tuple[str, ...]
    what: str
    remedy: str
    harmless: tuple[str, ...] = ()

    def is_harmless(self, value: object) -> bool:
        values = value if isinstance(value, list | tuple) else (value,)
        words = [str(item).strip().lower() for item in values]
        if self.takes == "switch":
            return words == ["false"]
        return bool(words) and all(word in self.harmless for word in words)


_TRAINED = "weights that are trained cannot be kept in 8 bits"

INERT: tuple[Inert, ...] = (
    Inert("vae_dtype", "value", _TRAINING + _CACHES, "the VAE always computes in fp32 here"),
    Inert("use_32bit_attention", "switch", _MODELS, "queries and keys have the same format as the values"),
    Inert("split_attn", "switch", _MODELS, "no batch mixes lengths, so there is nothing to split"),
    Inert("embedded_cfg_scale", "value", ("generate",), "Z-Image has no embedded guidance"),
    Inert("guidance_scale", "value", _TRAINING, "Z-Image is trained without guidance"),
    Inert("img_in_txt_in_offloading", "switch", _TRAINING, "Z-Image has no such layers"),
    Inert("persistent_data_loader_workers", "switch", _TRAINING, "the loader's threads always stay"),
    Inert("fp8_base", "switch", ("finetune",), _TRAINED),
    Inert("fp8_scaled", "switch", ("finetune",), _TRAINED),
    Inert(
        "use_pinned_memory_for_block_swap", "switch", _MODELS, "weights that are swapped always wait in it"
    ),
    Inert(
        "block_swap_h2d_only", "switch", _TRAINING, "frozen weights always go one way, trained ones come back"
    ),
    Inert("console_back", "value", ("cache-latents",), "it had no effect in musubi-tuner either"),
    Inert("lycoris", "switch", ("generate",), "LoHa, LoKr and LoRA files are all read without it"),
    Inert("prefer_lycoris", "switch", ("generate",), "LoHa, LoKr and LoRA files are all read without it"),
    Inert("disable_numpy_memmap", "switch", _MODELS, "models are read tensor by tensor, never mapped"),
    Inert("mem_eff_save", "switch", ("finetune",), "models are written tensor by tensor, without a copy"),
    Inert(
        "block_swap_optimizer_patch_params",
        "switch",
        ("finetune",),
        "weights are updated beside their gradients",
    ),
    Inert(
        "ddp_gradient_as_bucket_view",
        "switch",
        _TRAINING,
        "gradients are added up in passing buckets, so there is no second copy to save",
    ),
    Inert(
        "ddp_static_graph",
        "switch",
        _TRAINING,
        "which weights have gradients is compared at every step, at no cost",
    ),
    Inert("multi_gpu", "switch", _TRAINING, "gpus (num_processes) says on how many to train"),
    Inert("num_cpu_threads_per_process", "value", _ALL, "it belongs to accelerate launch"),
)

ELSEWHERE: tuple[Elsewhere, ...] = (
    Elsewhere(
        "num_machines",
        "value",
        _TRAINING,
        "asks for processes on other machines, which only a launcher started on each of them can begin",
        "Leave it out, and start torchrun --nnodes on each machine; gpus starts those of this one",
        harmless=("1",),
    ),
)


def inert_of(command: str) -> dict[str, Inert]:
    return {entry.name: entry for entry in INERT if command in entry.commands}


def elsewhere_of(command: str) -> dict[str, Elsewhere]:
    return {entry.name: entry for entry in ELSEWHERE if command in entry.commands}
