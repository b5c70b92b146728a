"""Every option of the two older programs, with its default, for the table in docs/compatibility.md and the
tests. This module knows their names and numbers only; what becomes of each is read from our own options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zimage_gui.config.argv import LAUNCHER
from zimage_gui.config.build import names_of
from zimage_gui.config.dataset import INERT_KEYS, REFUSED_KEYS, RENAMED_KEYS, DatasetEntry
from zimage_gui.config.foreign import elsewhere_of, inert_of
from zimage_gui.config.network_args import MEANINGS, WITHOUT_MEANING
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of, show

_TRAINING = """
config_file dataset_config dit vae vae_dtype text_encoder fp8_llm=off fp8_scaled=off
use_32bit_attention=off
sdpa=off flash_attn=off xformers=off sage_attn=off flash3=off split_attn=off
compile=off compile_backend=inductor compile_mode=default compile_dynamic=auto compile_fullgraph=off
compile_cache_size_limit cuda_allow_tf32=off cuda_cudnn_benchmark=off
dynamo_backend=no dynamo_mode=default dynamo_fullgraph=off dynamo_dynamic=off
max_train_steps=1600 max_train_epochs= max_data_loader_n_workers=8 persistent_data_loader_workers=off
seed=
gradient_checkpointing=off gradient_checkpointing_cpu_offload=off gradient_accumulation_steps=1
mixed_precision
save_precision
optimizer_type optimizer_args= learning_rate=2e-6 max_grad_norm=1.0 lr_scheduler=constant
lr_warmup_steps=0
lr_decay_steps=0 lr_scheduler_num_cycles=1 lr_scheduler_power=1 lr_scheduler_timescale=
lr_scheduler_min_lr_ratio=
lr_scheduler_type= lr_scheduler_args=
fp8_base=off blocks_to_swap=0 use_pinned_memory_for_block_swap=off block_swap_h2d_only=off
block_swap_ring_size=2
img_in_txt_in_offloading=off disable_numpy_memmap=off
timestep_sampling=sigma discrete_flow_shift=1.0 sigmoid_scale=1.0 weighting_scheme=none logit_mean=0.0
logit_std=1.0
mode_scale=1.29 min_timestep= max_timestep= preserve_distribution_shape=off num_timestep_buckets=
show_timesteps=
guidance_scale=1.0
output_dir output_name resume= save_every_n_epochs= save_every_n_steps= save_last_n_epochs=
save_last_n_epochs_state=
save_last_n_steps= save_last_n_steps_state= save_state=off save_state_on_train_end=off
sample_prompts= sample_every_n_steps= sample_every_n_epochs= sample_at_first=off
logging_dir= log_with= log_prefix= log_tracker_name=network_train wandb_run_name= log_tracker_config=
wandb_api_key=
log_config=off
ddp_timeout ddp_gradient_as_bucket_view=off ddp_static_graph=off
no_metadata=off training_comment= metadata_title= metadata_author= metadata_description= metadata_license=
metadata_tags= metadata_reso= metadata_arch=
huggingface_repo_id= huggingface_repo_type huggingface_path_in_repo= huggingface_token=
huggingface_repo_visibility=private save_state_to_huggingface=off resume_from_huggingface=off
async_upload=off
"""
_NETWORK = """
network_module network_dim=4 network_alpha=1 network_dropout=0 network_args= network_weights=
dim_from_weights=off
scale_weight_norms= base_weights= base_weights_multiplier=
"""
_FINETUNE = "full_bf16=off fused_backward_pass=off mem_eff_save=off block_swap_optimizer_patch_params=off "
_CACHE = "dataset_config device=auto batch_size= num_workers= skip_existing=off keep_cache=off "
_LATENTS = (
    "vae vae_dtype debug_mode= console_width=80 console_back console_num_images= disable_cudnn_backend=off"
)
_GENERATE = """
dit disable_numpy_memmap=off vae text_encoder lora_weight= lora_multiplier include_patterns=
exclude_patterns=
save_merged_model= cpu_noise=off guidance_scale=0 prompt= negative_prompt= image_size=256,256
infer_steps=25 save_path
seed= embedded_cfg_scale=2.5 flow_shift=3.0 fp8=off fp8_scaled=off fp8_llm=off text_encoder_cpu=off
device=auto
attn_mode=torch use_32bit_attention=off blocks_to_swap=0 use_pinned_memory_for_block_swap=off
output_type=images
no_metadata=off latent_path= lycoris=off prefer_lycoris=off compile=off compile_backend=inductor
compile_mode=default
compile_dynamic=auto compile_fullgraph=off compile_cache_size_limit from_file= interactive=off bell=off
"""
FIRST: dict[str, str] = {
    "cache-latents": _CACHE + _LATENTS,
    "cache-text": _CACHE + "text_encoder fp8_llm=off",
    "train-lora": _TRAINING + _NETWORK,
    "finetune": _TRAINING.replace("log_tracker_name=network_train", "log_tracker_name=fine-tuning")
    + _NETWORK
    + _FINETUNE,
    "generate": _GENERATE,
    "convert-lora": "input output target diffusers_prefix=diffusion_model reverse=off lokr_rank=",
    "ema-lora": "path no_sort=off beta=0.95 beta2= sigma_rel= output_file",
}
"""The first program's options by our command. name: has no default, or one that is no value of ours (the
parser's None, a setting of accelerate's); name=: is empty; name=off: a switch."""

SECOND: dict[str, str] = {
    "train": "model_dir dataset output=lora_weights.safetensors rank=16 alpha epochs=100 lr=1e-4 "
    "resolution=256 save_every=",
    "generate": "model_dir lora prompt output width height steps=8",
    "convert": "input output model_type dtype=keep overwrite=off",
    "inspect": "input limit=20",
}  # fmt: skip

_DATASET = """
resolution enable_bucket bucket_no_upscale caption_extension batch_size num_repeats image_directory
image_jsonl_file
cache_directory control_directory multiple_target no_resize_control control_resolution
flux_kontext_no_resize_control qwen_image_edit_no_resize_control qwen_image_edit_control_resolution
fp_latent_window_size fp_1f_clean_indices fp_1f_target_index fp_1f_no_post
video_directory video_jsonl_file target_frames frame_extraction frame_stride frame_sample max_frames
source_fps
"""
_ARGUMENTS = """
conv_dim conv_alpha rank_dropout module_dropout verbose exclude_patterns include_patterns
loraplus_lr_ratio factor
"""
NO_LORA = frozenset(word.partition("=")[0] for word in _NETWORK.split())
"""Options that the first program's finetune reads and does not use."""


@dataclass(frozen=True)
class Row:
    """One option of an older program in the table: where it is given, and what becomes of it here."""

    name: str
    place: str
    here: str


def defaults(words: str) -> dict[str, str | None]:
    """Name -> default as it is typed; None: not to be compared."""
    parts = (word.partition("=") for word in words.split())
    return {name: value if separator else None for name, separator, value in parts}


def rows() -> Iterator[Row]:
    """All of both programs."""
    for program in (FIRST, SECOND):
        for command, words in program.items():
            for name in defaults(words):
                yield Row(name, command, fate(command, name))
    for name in _DATASET.split():
        yield Row(name, "dataset file", _fate_of_key(name))
    for name in _ARGUMENTS.split():
        here = f"nothing: {WITHOUT_MEANING[name]}" if name in WITHOUT_MEANING else f"`{MEANINGS[name]}`"
        yield Row(name, "network_args", here)


def fate(command: str, name: str) -> str:
    """What an option becomes. Raises KeyError for one that is forgotten."""
    cls = COMMANDS[command]
    if name in LAUNCHER:
        return "yes"
    if (inert := inert_of(command).get(name)) is not None:
        return f"nothing: {inert.reason}"
    if (elsewhere := elsewhere_of(command).get(name)) is not None:
        return f"refused: {elsewhere.what}"
    if command == "finetune" and name in NO_LORA:
        return "refused: it trains no LoRA"
    known, switched = names_of(cls)[name]
    if switched is not None:
        return f"`{known.name} {show(switched)}`"
    return "yes" if name == known.name else f"`{known.name}`"


def _fate_of_key(name: str) -> str:
    if (reason := INERT_KEYS.get(RENAMED_KEYS.get(name, name))) is not None:
        return f"nothing: {reason}"
    if (reason := REFUSED_KEYS.get(name)) is not None:
        return f"refused: {reason}"
    return "yes" if name in options_of(DatasetEntry) else "forgotten"
