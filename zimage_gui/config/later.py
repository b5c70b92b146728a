"""Options of the two older programs that are not options here: those without meaning for Z-Image, which are
accepted with one line, and those that are not built yet, which are refused with one sentence, never ignored.

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
class Later:
    """An option that is not built yet. harmless: values that ask for what happens anyway, accepted
    in silence."""

    name: str
    takes: Takes
    commands: tuple[str, ...]
    what: str
    harmless: tuple[str, ...] = ()

    def is_harmless(self, value: object) -> bool:
        values = value if isinstance(value, list | tuple) else (value,)
        words = [str(item).strip().lower() for item in values]
        if self.takes == "switch":
            return words == ["false"]
        return bool(words) and all(word in self.harmless for word in words)


INERT: tuple[Inert, ...] = (
    Inert("vae_dtype", "value", _MODELS + _CACHES, "the VAE always computes in fp32 here"),
    Inert("use_32bit_attention", "switch", _MODELS, "queries and keys have the same format as the values"),
    Inert("split_attn", "switch", _MODELS, "no batch mixes lengths, so there is nothing to split"),
    Inert("embedded_cfg_scale", "value", ("generate",), "Z-Image has no embedded guidance"),
    Inert("guidance_scale", "value", _TRAINING, "Z-Image is trained without guidance"),
    Inert("img_in_txt_in_offloading", "switch", _TRAINING, "Z-Image has no such layers"),
    Inert("persistent_data_loader_workers", "switch", _TRAINING, "the loader's threads always stay"),
    Inert("lycoris", "switch", ("generate",), "LoHa, LoKr and LoRA files are all read without it"),
    Inert("num_cpu_threads_per_process", "value", _ALL, "it belongs to accelerate launch"),
    Inert("num_processes", "value", _TRAINING, "it belongs to accelerate launch"),
    Inert("num_machines", "value", _TRAINING, "it belongs to accelerate launch"),
)

_SHOW = "showing resized pictures comes in a later version; the command dataset lists the buckets"
_MEMORY = "memory-saving modes come in a later version"
_COMPILE = "compiling comes in a later version"
_LOGGING = "TensorBoard and Weights & Biases come in a later version; events and curves are in the run folder"
_HUB = "uploading to Hugging Face comes in a later version"
_DDP = "training on several GPUs comes in a later version"
_NETWORK = "it comes in a later version"

LATER: tuple[Later, ...] = (
    Later("debug_mode", "value", ("cache-latents",), _SHOW),
    Later("console_width", "value", ("cache-latents",), _SHOW, harmless=("80",)),
    Later("console_back", "value", ("cache-latents",), _SHOW),
    Later("console_num_images", "value", ("cache-latents",), _SHOW),
    Later("fp8_llm", "switch", ("cache-text", *_MODELS), _MEMORY),
    Later("fp8_base", "switch", _TRAINING, _MEMORY),
    Later("fp8", "switch", ("generate",), _MEMORY),
    Later("fp8_scaled", "switch", _MODELS, _MEMORY),
    Later("blocks_to_swap", "value", _MODELS, _MEMORY, harmless=("0",)),
    Later("use_pinned_memory_for_block_swap", "switch", _MODELS, _MEMORY),
    Later("block_swap_h2d_only", "switch", _TRAINING, _MEMORY),
    Later("block_swap_ring_size", "value", _TRAINING, _MEMORY, harmless=("2",)),
    Later("block_swap_optimizer_patch_params", "switch", ("finetune",), _MEMORY),
    Later("gradient_checkpointing_cpu_offload", "switch", _TRAINING, _MEMORY),
    Later("fused_backward_pass", "switch", ("finetune",), _MEMORY),
    Later("mem_eff_save", "switch", ("finetune",), _MEMORY),
    Later("text_encoder_cpu", "switch", ("generate",), _MEMORY),
    Later("disable_numpy_memmap", "switch", _MODELS, _MEMORY),
    Later("compile", "switch", _MODELS, _COMPILE),
    Later("compile_backend", "value", _MODELS, _COMPILE, harmless=("inductor",)),
    Later("compile_mode", "value", _MODELS, _COMPILE, harmless=("default",)),
    Later("compile_dynamic", "value", _MODELS, _COMPILE, harmless=("auto",)),
    Later("compile_fullgraph", "switch", _MODELS, _COMPILE),
    Later("compile_cache_size_limit", "value", _MODELS, _COMPILE),
    Later("dynamo_backend", "value", _TRAINING, _COMPILE, harmless=("no",)),
    Later("dynamo_mode", "value", _TRAINING, _COMPILE),
    Later("dynamo_fullgraph", "switch", _TRAINING, _COMPILE),
    Later("dynamo_dynamic", "switch", _TRAINING, _COMPILE),
    Later("cuda_allow_tf32", "switch", _MODELS, _COMPILE),
    Later("cuda_cudnn_benchmark", "switch", _MODELS, _COMPILE),
    Later(
        "flash3",
        "switch",
        _MODELS,
        "FlashAttention 3 comes in a later version; --flash_attn is FlashAttention 2",
    ),
    Later(
        "num_timestep_buckets", "value", _TRAINING, "stratified timesteps come in a later version", ("0", "1")
    ),
    Later("show_timesteps", "value", _TRAINING, "drawing the timesteps comes in a later version"),
    Later(
        "network_weights", "value", ("train-lora", "train"), "starting from a LoRA comes in a later version"
    ),
    Later(
        "dim_from_weights", "switch", ("train-lora", "train"), "starting from a LoRA comes in a later version"
    ),
    Later("scale_weight_norms", "value", ("train-lora", "train"), _NETWORK),
    Later("metadata_reso", "value", _TRAINING, _NETWORK),
    Later("metadata_arch", "value", _TRAINING, _NETWORK),
    Later("logging_dir", "value", _TRAINING, _LOGGING),
    Later("log_with", "value", _TRAINING, _LOGGING),
    Later("log_prefix", "value", _TRAINING, _LOGGING),
    Later("log_tracker_name", "value", _TRAINING, _LOGGING),
    Later("log_tracker_config", "value", _TRAINING, _LOGGING),
    Later("wandb_run_name", "value", _TRAINING, _LOGGING),
    Later("wandb_api_key", "value", _TRAINING, _LOGGING),
    Later("log_config", "switch", _TRAINING, _LOGGING),
    Later("ddp_timeout", "value", _TRAINING, _DDP),
    Later("ddp_gradient_as_bucket_view", "switch", _TRAINING, _DDP),
    Later("ddp_static_graph", "switch", _TRAINING, _DDP),
    Later("multi_gpu", "switch", _TRAINING, _DDP),
    Later("huggingface_repo_id", "value", _TRAINING, _HUB),
    Later("huggingface_repo_type", "value", _TRAINING, _HUB),
    Later("huggingface_path_in_repo", "value", _TRAINING, _HUB),
    Later("huggingface_token", "value", _TRAINING, _HUB),
    Later("huggingface_repo_visibility", "value", _TRAINING, _HUB),
    Later("save_state_to_huggingface", "switch", _TRAINING, _HUB),
    Later("resume_from_huggingface", "switch", _TRAINING, _HUB),
    Later("async_upload", "switch", _TRAINING, _HUB),
    Later(
        "interactive",
        "switch",
        ("generate",),
        "asking for prompts comes in a later version; --from_file takes many",
    ),
    Later("lokr_rank", "value", ("convert-lora",), _NETWORK),
)

SECRETS = frozenset({"wandb_api_key", "huggingface_token"})
"""Their values are never repeated in a message."""


def inert_of(command: str) -> dict[str, Inert]:
    return {entry.name: entry for entry in INERT if command in entry.commands}


def later_of(command: str) -> dict[str, Later]:
    return {entry.name: entry for entry in LATER if command in entry.commands}
