"""What a trained file says about itself, in the words of sd-scripts (`ss_*`, `modelspec.*`), which other
programs show. Knows a run's settings and numbers; must not know tensors, and never writes a folder's full
path.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_gui.config.network_parts import NETWORK_MODULES
from zimage_gui.engine.dataset.sources import Source
from zimage_gui.engine.loader import DatasetIndex
from zimage_gui.model.lora import LoraNetwork

ARCHITECTURE = "Z-Image"
IMPLEMENTATION = "https://github.com/Tongyi-MAI/Z-Image"
_KEPT_WITHOUT_METADATA = (
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
_NETWORK_ARGUMENTS = (
    "rank_dropout", "module_dropout", "include_patterns", "exclude_patterns", "use_rslora",
    "loraplus_lr_ratio", "network_reg_dims", "network_reg_lrs",
)  # fmt: skip
_FROM_CONFIG = (
    "learning_rate", "gradient_checkpointing", "gradient_checkpointing_cpu_offload",
    "gradient_accumulation_steps", "lr_warmup_steps", "lr_scheduler",
    "mixed_precision", "max_grad_norm", "weighting_scheme", "logit_mean", "logit_std", "mode_scale",
    "timestep_sampling",
    "sigmoid_scale", "discrete_flow_shift",
)  # fmt: skip
_IF_CHANGED = (
    "loss_type", "huber_c", "huber_schedule", "min_snr_gamma", "noise_offset", "num_timestep_buckets",
    "caption_prefix", "caption_dropout_rate", "shuffle_caption", "keep_tokens", "flip_aug",
    "ema_decay",
)  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """What is known when the run begins."""

    name: str
    seed: int
    total_steps: int
    total_epochs: int
    started_at: float
    optimizer: str
    index: DatasetIndex
    network: LoraNetwork | None = None


def metadata_of(config: Any, facts: RunFacts, step: int, epoch: int) -> dict[str, str]:
    """Header of the file saved at `step` in `epoch` (both counted from 1), all values text."""
    lora = hasattr(config, "network_dim")
    entries: dict[str, object] = {f"ss_{name}": getattr(config, name) for name in _FROM_CONFIG}
    entries |= {f"ss_{name}": getattr(config, name) for name in _IF_CHANGED if _changed(config, name)}
    entries |= {
        "ss_session_id": facts.seed & 0xFFFFFFFF,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": time.time(),
        "ss_output_name": facts.name,
        "ss_num_train_items": facts.index.samples_per_epoch,
        "ss_num_batches_per_epoch": facts.index.batches_per_epoch,
        "ss_num_epochs": facts.total_epochs,
        "ss_max_train_steps": facts.total_steps,
        "ss_base_model_version": "z_image",
        "ss_seed": facts.seed,
        "ss_training_comment": config.training_comment or None,
        "ss_optimizer": facts.optimizer,
        "ss_full_bf16": bool(getattr(config, "full_bf16", False)),
        "ss_full_fp16": False,
        "ss_fp8_base": getattr(config, "base_quant", "none") == "fp8",
        "ss_datasets": json.dumps(_datasets(facts.index), ensure_ascii=False),
        "ss_sd_model_name": Path(config.dit).name if config.dit else None,
        "ss_vae_name": Path(config.vae).name if config.vae else None,
        "ss_steps": step,
        "ss_epoch": epoch,
    }
    if lora:
        entries |= _network(config, facts.network)
    if config.no_metadata:
        entries = {name: value for name, value in entries.items() if name in _KEPT_WITHOUT_METADATA}
    return {name: str(value) for name, value in (entries | _model_spec(config, facts, lora)).items()}


def _changed(config: Any, name: str) -> bool:
    return bool(getattr(config, name) != type(config).model_fields[name].default)


def _network(config: Any, network: LoraNetwork | None) -> dict[str, object]:
    """Ranks and alphas are those that were trained, "Dynamic" (kohya's word) where layers differ."""
    arguments = {
        name: list(value) if isinstance(value, tuple) else value
        for name in _NETWORK_ARGUMENTS
        if (value := getattr(config, name))
    }
    if config.network_module == "lokr":
        arguments |= {"factor": config.lokr_factor} | ({"full_matrix": True} if config.lokr_full else {})
    specs = [module.spec for module in network.modules.values()] if network is not None else []
    ranks = {spec.dim for spec in specs} or {config.network_dim}
    alphas = {spec.effective_alpha for spec in specs} or {config.alpha}
    entries: dict[str, object] = {
        "ss_network_module": NETWORK_MODULES[config.network_module],
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
        "ss_network_dropout": config.network_dropout or None,
        "ss_base_weights": ", ".join(Path(path).name for path in config.base_weights) or None,
    }
    if config.scale_weight_norms is not None:
        entries["ss_scale_weight_norms"] = config.scale_weight_norms
    if config.network_weights is not None:
        entries["ss_network_weights"] = Path(config.network_weights).name
    return entries | ({"ss_network_args": json.dumps(arguments)} if arguments else {})


def _model_spec(config: Any, facts: RunFacts, lora: bool) -> dict[str, object]:
    widths = [item.bucket for item in facts.index.items]
    largest = max(widths, key=lambda bucket: bucket[0] * bucket[1])
    entries: dict[str, object] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": config.metadata_arch or (f"{ARCHITECTURE}/lora" if lora else ARCHITECTURE),
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": config.metadata_title or facts.name,
        "modelspec.resolution": _size(config.metadata_reso) or f"{largest[0]}x{largest[1]}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime()),
    }
    for name in ("author", "description", "license", "tags"):
        if text := getattr(config, f"metadata_{name}"):
            entries[f"modelspec.{name}"] = text
    if config.min_timestep is not None or config.max_timestep is not None:
        low, high = config.min_timestep or 0, 1000 if config.max_timestep is None else config.max_timestep
        entries["modelspec.timestep_range"] = f"{low},{high}"
    return entries


def _size(text: str) -> str:
    """ "1024,768" and "1024" as the header has it, 1024x768 and 1024x1024."""
    sides = [side.strip() for side in text.lower().replace("x", ",").split(",")]
    return f"{sides[0]}x{sides[-1]}" if text else ""


def _datasets(index: DatasetIndex) -> list[dict[str, object]]:
    """One entry per dataset source: what can be said without paths or captions."""
    return [_dataset(source, number, index) for number, source in enumerate(index.sources)]


def _dataset(source: Source, number: int, index: DatasetIndex) -> dict[str, object]:
    buckets = Counter(f"{w}x{h}" for w, h in (item.bucket for item in index.items if item.source == number))
    named = "image_directory" if source.image_directory else "image_jsonl_file"
    return {
        named: (source.image_directory or source.image_jsonl_file or Path()).name,
        "resolution": list(source.resolution), "caption_extension": source.caption_extension,
        "batch_size_per_device": source.batch_size, "num_repeats": source.num_repeats,
        "enable_bucket": source.enable_bucket, "bucket_no_upscale": source.bucket_no_upscale,
        "has_control": False, "num_images": buckets.total(), "buckets": dict(buckets),
    }  # fmt: skip


def sidecar(config: Any, network: LoraNetwork) -> bytes | None:
    """The second seed's `.lora.json`, which its `generate` wants beside a LoRA; None for what it does not
    know: another kind, or layers that differ."""
    sizes = {(spec.dim, spec.written_alpha) for spec in (m.spec for m in network.modules.values())}
    if config.network_module != "lora" or len(sizes) != 1:
        return None
    rank, alpha = sizes.pop()
    facts = {
        "rank": rank,
        "alpha": alpha,
        "target_attention": True,
        "target_feed_forward": True,
        "target_refiners": False,
    }
    return (json.dumps(facts, indent=2) + "\n").encode("utf-8")
