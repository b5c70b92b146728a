"""How a file was made, read from its header: the words of musubi and sd-scripts (`ss_*`, `modelspec.*`),
ai-toolkit, OneTrainer, PEFT, burn and of this program.

Knows metadata keys only; every value is a stranger's text and is passed on as such.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

PICTURE_KEY = "modelspec.thumbnail"
_TRIGGER_KEYS = (
    "modelspec.trigger_phrase",
    "trigger_phrase",
    "trigger_word",
    "trigger_words",
    "ss_trigger_word",
)
_LONGEST_JSON = 4_000_000
# What is told, and the first of these keys that is there.
_PLAIN = (
    ("Title", ("modelspec.title", "title", "name")),
    ("Author", ("modelspec.author", "author")),
    ("Description", ("modelspec.description", "description")),
    ("Licence", ("modelspec.license", "license")),
    ("Tags", ("modelspec.tags",)),
    ("Trained on", ("ss_sd_model_name", "base_model", "ss_base_model_version")),
    ("Base weights", ("ss_base_weights",)),
    ("Optimizer", ("ss_optimizer",)),
    ("Learning rate", ("ss_learning_rate", "ss_unet_lr")),
    ("Resolution", ("modelspec.resolution", "ss_resolution")),
    ("Seed", ("ss_seed",)),
    ("Comment", ("ss_training_comment",)),
)  # fmt: skip


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call the LoRA, where the file names them."""
    texts = [metadata[key] for key in _TRIGGER_KEYS if metadata.get(key, "").strip()]
    words = [word.strip() for text in texts for word in text[:2000].split(",")]
    return tuple(dict.fromkeys(word for word in words if word))[:20]


def training_facts(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """(what, value) in the order in which a person asks."""
    facts = [("Trigger words", ", ".join(words))] if (words := trigger_words(metadata)) else []
    for label, keys in _PLAIN:
        value = next(
            (text for key in keys if (text := metadata.get(key, "")).strip() not in ("", "None")), ""
        )
        if value:
            facts.append((label, value))
    for label, text in (
        ("Made by", _producer(metadata)),
        ("Length", _length(metadata)),
        ("Pictures", _pictures(metadata)),
        ("Frequent tags", _tags(metadata)),
        ("Date", _date(metadata)),
        ("Preview", "a picture in the header" if metadata.get(PICTURE_KEY) else ""),
    ):
        if text:
            facts.append((label, text))
    return facts


def _table(text: str | None) -> Any:
    if not text or len(text) > _LONGEST_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _producer(metadata: Mapping[str, str]) -> str:
    software = _table(metadata.get("software"))
    if isinstance(software, dict) and software.get("name"):
        return " ".join(str(software[key]) for key in ("name", "version") if key in software)
    if "ot_revision" in metadata or "ot_config" in metadata or "ot_branch" in metadata:
        return f"OneTrainer {metadata.get('ot_revision', '')[:10]}".strip()
    if metadata.get("producer") == "burn":
        return f"burn {metadata.get('version', '')}, the framework of z-image-train".strip()
    if _is_module_of_musubi(metadata.get("ss_network_module")):
        return "musubi-tuner or this program"
    if "ss_sd_scripts_commit_hash" in metadata:
        return "sd-scripts"
    return "PEFT (diffusers)" if "lora_adapter_metadata" in metadata else ""


def _is_module_of_musubi(name: str | None) -> bool:
    if name is None:
        return False
    from zimage_gui.config.network_parts import NETWORK_MODULES  # slow to import, and asked for rarely

    return name in NETWORK_MODULES.values()


def _length(metadata: Mapping[str, str]) -> str:
    info = _table(metadata.get("training_info"))
    table = info if isinstance(info, dict) else {}
    steps = metadata.get("ss_steps") or table.get("step")
    epochs = metadata.get("ss_epoch") or table.get("epoch")
    planned = metadata.get("ss_max_train_steps")
    of = f" of {planned}" if planned and planned != str(steps) else ""
    parts = [
        f"{steps}{of} steps" if steps is not None else "",
        f"epoch {epochs}" if epochs is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _pictures(metadata: Mapping[str, str]) -> str:
    sets = _table(metadata.get("ss_datasets"))
    counts = (
        [one.get("num_images") for one in sets if isinstance(one, dict)] if isinstance(sets, list) else []
    )
    numbers = [count for count in counts if isinstance(count, int)]
    if numbers:
        return f"{sum(numbers)} in {len(numbers)} dataset{'s' if len(numbers) > 1 else ''}"
    return metadata.get("ss_num_train_images") or metadata.get("ss_num_train_items") or ""


def _tags(metadata: Mapping[str, str]) -> str:
    folders = _table(metadata.get("ss_tag_frequency"))
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({str(tag).strip(): n for tag, n in tags.items() if isinstance(n, int)})
    return ", ".join(f"{tag} ({count})" for tag, count in counts.most_common(8))


def _date(metadata: Mapping[str, str]) -> str:
    if date := metadata.get("modelspec.date"):
        return date
    try:
        finished = float(metadata["ss_training_finished_at"])
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(finished))
    except (KeyError, ValueError, OverflowError, OSError):
        return ""
