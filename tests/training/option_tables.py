"""One case for every option that both kinds of training have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from option_cases import (
    Case,
    Changes,
    Proof,
    Refused,
    Serves,
    asked,
    blocks,
    counts,
    first_step,
    header,
    losses,
    moved,
    names,
    rates,
    samples,
    switches,
    threads,
    told,
    validated,
    weights,
)
from option_proofs import (
    average_leaves_the_gpu,
    is_in_the_header,
    result_lies_in,
    run_is_recorded_in,
    second_run_replaces_the_first,
    waits_so_long,
)
from option_walk import STEPS, Walk


def shared_cases(walk: Walk) -> dict[str, Case]:
    p = walk.project
    return {
        **_models(p), **_pictures(p), **_length(), **_optimizer(), **_timesteps(), **_watching(p), **_saving(walk.states),
        **_previews(p), **_speed(), **_words(), **_elsewhere(p),
    }  # fmt: skip


def _encoders(p: Path) -> dict[str, Any]:
    return {"vae": p / "models" / "vae.safetensors", "text_encoder": p / "models" / "te.safetensors"}


def _models(p: Path) -> dict[str, Case]:
    """An encoder is seen by what it makes of pictures and captions, so each run encodes anew."""
    anew = _encoders(p) | {"cache_directory": "new"}
    tokenizer = Path(__file__).parents[1] / "data" / "reference" / "hub" / "tokenizer"
    return {
        "model_dir": Serves(p / "all", lambda seen: len(losses(seen)) == STEPS, {"dit": None}),
        "dit": Changes(p / "other.safetensors", losses),
        "vae": Changes(p / "other_vae.safetensors", losses, anew, instead=anew["vae"]),
        "text_encoder": Changes(p / "other_te.safetensors", losses, anew, instead=anew["text_encoder"]),
        "tokenizer": Changes(tokenizer, losses, anew),
        "fp8_llm": Changes(True, losses, anew),
    }  # fmt: skip


def _pictures(p: Path) -> dict[str, Case]:
    encoders = _encoders(p)
    wide = encoders | {"dataset": p / "wide", "resolution": (64, 64)}
    shuffled = encoders | {"shuffle_caption": True}
    masked = {"mask_directory": p / "masks"}
    return {
        "dataset_config": Serves(p / "data.toml", lambda seen: len(losses(seen)) == STEPS, {"dataset": None, "batch_size": 1, "resolution": (1024, 1024)}),
        "dataset": Changes(p / "wide", losses, encoders),
        "resolution": Changes((48, 48), losses, encoders | {"cache_directory": "new"}),
        "enable_bucket": Changes(False, losses, wide),
        "bucket_no_upscale": Changes(True, losses, encoders | {"resolution": (64, 64), "cache_directory": "new"}),
        "num_repeats": Changes(2, told),
        "caption_extension": Changes(".cap", losses, encoders | {"cache_directory": "new"}),
        "cache_directory": Proof(lambda walk: walk.seen(encoders | {"cache_directory": p / "kept"}).results != [] and any((p / "kept").glob("*.safetensors"))),
        "flip_aug": Changes(True, losses, encoders),
        "alpha_mask": Changes(True, losses),
        "mask_directory": Changes(p / "masks", losses),
        "unmasked_weight": Changes(0.9, losses, masked),
        "caption_prefix": Changes("zorb", losses, encoders | {"cache_directory": "new"}),
        "caption_dropout_rate": Changes(1.0, losses, encoders),
        "caption_lines": Changes(True, losses, encoders | {"cache_directory": "new"}),
        "shuffle_caption": Changes(True, losses, encoders),
        "keep_tokens": Changes(3, losses, shuffled | {"cache_directory": "new"}),
        "shuffle_variants": Changes(1, losses, shuffled | {"cache_directory": "new"}),
    }  # fmt: skip


def _length() -> dict[str, Case]:
    return {
        "max_train_steps": Changes(1, counts),
        "max_train_epochs": Changes(2, counts),
        "batch_size": Changes(1, losses),
        "gradient_accumulation_steps": Changes(2, counts, {"max_train_epochs": 1}),
        "seed": Changes(8, losses),
        "learning_rate": Changes(5e-3, weights),
    }


def _optimizer() -> dict[str, Case]:
    longer = {"max_train_steps": 6}
    return {
        "optimizer_type": Changes("SGD", weights),
        "optimizer_args": Changes(("weight_decay=0.5",), weights),
        "max_grad_norm": Changes(1e-3, weights, {"optimizer_type": "SGD"}),
        "lr_scheduler": Changes("linear", rates),
        "lr_warmup_steps": Changes(2, rates, {"lr_scheduler": "constant_with_warmup"}),
        "lr_decay_steps": Changes(5, rates, longer | {"lr_scheduler": "warmup_stable_decay"}, instead=3),
        "lr_scheduler_num_cycles": Changes(2, rates, longer | {"lr_scheduler": "cosine_with_restarts"}),
        "lr_scheduler_power": Changes(3.0, rates, {"lr_scheduler": "polynomial"}),
        "lr_scheduler_timescale": Changes(2, rates, {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 1}),
        "lr_scheduler_min_lr_ratio": Changes(0.5, rates, {"lr_scheduler": "cosine_with_min_lr"}, instead=0.1),
        "lr_scheduler_type": Changes("PolynomialLR", rates),
        "lr_scheduler_args": Changes(("rex_alpha=0.5",), rates, {"lr_scheduler": "rex"}),
    }


def _timesteps() -> dict[str, Case]:
    normal = {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal"}
    huber = {"loss_type": "huber"}
    return {
        "timestep_sampling": Changes("uniform", losses),
        "discrete_flow_shift": Changes(5.0, losses),
        "sigmoid_scale": Changes(2.0, losses, {"timestep_sampling": "sigmoid"}),
        "weighting_scheme": Changes("cosmap", losses),
        "logit_mean": Changes(1.0, losses, normal),
        "logit_std": Changes(2.0, losses, normal),
        "mode_scale": Changes(0.5, losses, {"timestep_sampling": "sigma", "weighting_scheme": "mode"}),
        "min_timestep": Changes(900, losses),
        "max_timestep": Changes(100, losses),
        "preserve_distribution_shape": Changes(True, losses, {"min_timestep": 500}),
        "num_timestep_buckets": Changes(3, losses),
        "show_timesteps": Changes("console", lambda seen: (counts(seen), "timesteps     share" in "".join(told(seen)))),
        "loss_type": Changes("l1", losses),
        "huber_c": Changes(0.5, losses, huber),
        "huber_schedule": Changes("snr", losses, huber),
        "min_snr_gamma": Changes(1.0, losses),
        "noise_offset": Changes(0.3, losses),
    }  # fmt: skip


def _watching(p: Path) -> dict[str, Case]:
    split = {"validation_split": 0.3}
    still = split | {"validate_every_n_steps": 1, "learning_rate": 0.0}
    stopping = still | {"early_stop": "validation"}
    return {
        "validation_split": Changes(0.3, validated),
        "validation_dataset": Changes(p / "held", validated, _encoders(p)),
        "validate_every_n_epochs": Changes(0, validated, split | {"max_train_epochs": 2, "validate_every_n_steps": 100}),
        "validate_every_n_steps": Changes(1, validated, split),
        "validation_levels": Changes(2, validated, split),
        "ema_decay": Changes(0.9, weights, kept=losses),
        "ema_device": Proof(average_leaves_the_gpu),
        "early_stop": Serves("validation", lambda seen: len(losses(seen)) == 1, still | {"early_stop_patience": 1}),
        "early_stop_patience": Changes(2, counts, stopping),
    }  # fmt: skip


def _saving(states: Path) -> dict[str, Case]:
    steps = {"save_every_n_steps": 1}
    epochs = {"save_every_n_epochs": 1, "max_train_epochs": 3}
    return {
        "output_dir": Proof(result_lies_in),
        "output_name": Changes("cats", names),
        "save_every_n_steps": Changes(2, names),
        "save_every_n_epochs": Changes(1, names, {"max_train_epochs": 2}),
        "save_last_n_steps": Changes(1, names, steps | {"max_train_steps": 4}),
        "save_last_n_epochs": Changes(1, names, epochs),
        "save_last_n_steps_state": Changes(1, names, steps | {"max_train_steps": 4, "save_state": True}),
        "save_last_n_epochs_state": Changes(1, names, epochs | {"save_state": True}),
        "save_state": Changes(True, names, {"save_every_n_steps": 2}),
        "save_state_on_train_end": Changes(True, names),
        "resume": Changes(states / "owner-state", first_step),
        "overwrite": Proof(second_run_replaces_the_first),
        "runs_dir": Proof(run_is_recorded_in),
    }


def _previews(p: Path) -> dict[str, Case]:
    prompts = _encoders(p) | {"sample_prompts": p / "prompts.txt"}
    each = prompts | {"sample_every_n_steps": 2}
    return {
        "sample_prompts": Serves(p / "prompts.txt", lambda seen: samples(seen) == [0], _encoders(p) | {"sample_at_first": True}),
        "sample_every_n_steps": Changes(1, samples, prompts | {"sample_at_first": True}),
        "sample_every_n_epochs": Changes(1, samples, each | {"max_train_epochs": 1}),
        "sample_at_first": Changes(True, samples, each),
    }  # fmt: skip


def _speed() -> dict[str, Case]:
    checkpointing = {"gradient_checkpointing": True}
    eager = {"compile": True, "compile_backend": "eager"}
    return {
        "mixed_precision": Changes("fp16", losses),
        "attn_mode": Refused("sage", "no gradients"),
        "gradient_checkpointing": Changes(True, blocks, kept=weights),
        "gradient_checkpointing_fraction": Changes("0", blocks, checkpointing, kept=weights),
        "gradient_checkpointing_cpu_offload": Changes(True, moved, checkpointing, kept=weights),
        "max_data_loader_n_workers": Changes(2, threads, kept=weights),
        "blocks_to_swap": Changes(2, moved),
        "block_swap_ring_size": Changes(1, moved, {"blocks_to_swap": 2}, kept=weights),
        "gpus": Refused("98,99", "GPU", {"device": "auto"}),
        "ddp_timeout": Proof(waits_so_long),
        "device": Refused("cuda:99", "cuda"),
        "compile": Changes(True, asked, {"compile_backend": "eager"}),
        "compile_backend": Changes("aot_eager", asked, {"compile": True}, instead="eager"),
        "compile_mode": Refused("max-autotune", "inductor", eager),
        "compile_dynamic": Changes("false", asked, eager),
        "compile_fullgraph": Changes(True, asked, eager),
        "compile_cache_size_limit": Changes(1, asked, eager),
        "dynamo_backend": Changes("eager", asked),
        "cuda_allow_tf32": Changes(True, switches),
        "cuda_cudnn_benchmark": Changes(True, switches),
    }


def _words() -> dict[str, Case]:
    values = {
        "title": "A title", "author": "Ann", "description": "Cats", "license": "CC0", "tags": "a, b", "reso": "640x320",
        "arch": "Z-Image-Base/lora",
    }  # fmt: skip
    found: dict[str, Case] = {f"metadata_{name}": is_in_the_header(value) for name, value in values.items()}
    return found | {"training_comment": is_in_the_header("for Ann"), "no_metadata": Changes(True, header)}


def _elsewhere(p: Path) -> dict[str, Case]:
    wandb = {"log_with": "wandb"}
    hub = {"huggingface_repo_id": "ann/cats"}
    logs = wandb | {"logging_dir": p / "logs"}
    return {
        "logging_dir": Changes(p / "logs", lambda seen: sorted(path.name for path in seen.run.folder.iterdir()), wandb),
        "log_with": Changes("wandb", asked),
        "log_prefix": Changes("mine-", asked, logs),
        "log_tracker_name": Changes("cats", asked, wandb),
        "wandb_run_name": Changes("first", asked, wandb),
        "log_tracker_config": Changes(p / "wandb.toml", asked, wandb),
        "wandb_api_key": Changes("a key", asked, wandb),
        "log_config": Changes(True, asked, wandb),
        "huggingface_repo_id": Changes("ann/cats", asked),
        "huggingface_repo_type": Changes("dataset", asked, hub),
        "huggingface_path_in_repo": Changes("loras", asked, hub),
        "huggingface_repo_visibility": Changes("public", asked, hub),
        "huggingface_token": Changes("hf_secret", asked, hub),
        "save_state_to_huggingface": Changes(True, asked, hub | {"save_state_on_train_end": True}),
        "async_upload": Changes(True, asked, hub),
        "huggingface_resume": Changes("ann/cats/owner-state", first_step),
        "resume_from_huggingface": Serves(True, lambda seen: first_step(seen) == 3, {"resume": "ann/cats/owner-state"}),
    }  # fmt: skip
