"""The text that A1111 and its heirs write into a picture, as options of `generate`.

Knows this text. It must not know files, models or what is done with the options. No torch.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_A1111_SAMPLERS = {
    "euler": "Euler", "heun": "Heun", "dpmpp_2m": "DPM++ 2M", "res_multistep": "Res Multistep"
}  # fmt: skip
_A1111_SCHEDULES = {
    "simple": "Simple", "normal": "Normal", "sgm_uniform": "SGM Uniform", "beta": "Beta",
    "linear_quadratic": "Linear Quadratic",
}  # fmt: skip
_OTHER_SCHEDULES = ("Karras", "Exponential", "Polyexponential", "Uniform", "Automatic")
# Option of `generate` <- key of A1111's last line. CFG there is the common c = g + 1.
_A1111_NUMBERS = {"Steps": ("infer_steps", int), "Seed": ("seed", int), "Shift": ("flow_shift", float)}
# A run of blanks is looked at from its beginning alone: from each of its places, time grows with its square.
# A tag without a number is at full strength.
_LORA_TAG = re.compile(
    r"(?<!\s)\s*<lora:([^<>:]{1,300})(?::(-?(?:\d{1,3}(?:\.\d{0,9})?|\.\d{1,9})))?(?::[^<>]*)?>"
)
# A value in quotes may hold commas and what looks like further pairs.
_PAIR = re.compile(r"([A-Z][\w \-/]{0,40}): (\"(?:\\.|[^\"\\]){0,20000}\"|[^,\"]{1,200})(?:,|$)")


def a1111_text(settings: Mapping[str, Any]) -> str:
    """The text A1111 and its heirs write and read; CFG scale in their convention, g + 1."""
    height, width = settings.get("image_size", (0, 0))
    pairs = {
        "Steps": settings.get("infer_steps", ""),
        "Sampler": _A1111_SAMPLERS.get(settings.get("sampler", "euler"), ""),
        "Schedule type": _A1111_SCHEDULES.get(settings.get("scheduler", ""), ""),
        "CFG scale": f"{settings.get('guidance_scale', 0) + 1:g}",
        "Seed": settings.get("seed", ""),
        "Size": f"{width}x{height}" if width else "",
        "Shift": f"{settings['flow_shift']:g}" if "flow_shift" in settings else "",
        "Denoising strength": f"{settings['strength']:g}" if "strength" in settings else "",
        "Model": Path(settings.get("dit") or "").stem,
    }
    loras = zip(settings.get("lora_weight", ()), settings.get("lora_multiplier", ()), strict=False)
    tags = "".join(f" <lora:{Path(name).stem}:{multiplier:g}>" for name, multiplier in loras)
    negative = settings.get("negative_prompt") or ""
    lines = [settings.get("prompt", "") + tags, *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items() if value != ""))
    return "\n".join(lines)


def from_a1111(text: str) -> dict[str, Any]:
    """prompt lines, an optional `Negative prompt:`, then one line of `Key: value, …`."""
    *lines, last = text.strip().split("\n")
    pairs = dict(_PAIR.findall(last))
    if "Steps" not in pairs:
        return {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    found: dict[str, Any] = {
        "prompt": _LORA_TAG.sub("", prompt).strip(),
        "negative_prompt": negative.strip(),
        **named_loras((name, float(value or 1)) for name, value in _LORA_TAG.findall(prompt)),
    }
    for key, (option, kind) in _A1111_NUMBERS.items():
        if key in pairs:
            found[option] = kind(pairs[key])
    found |= _sampling(pairs.get("Sampler", "").strip(), pairs.get("Schedule type", "").strip())
    if "CFG scale" in pairs:
        found["guidance_scale"] = max(0.0, float(pairs["CFG scale"]) - 1)
    if size := re.fullmatch(r"(\d{2,5})x(\d{2,5})", pairs.get("Size", "")):
        found["image_size"] = [int(size[2]) // 16 * 16, int(size[1]) // 16 * 16]
    return found


def _sampling(sampler: str, schedule: str) -> dict[str, str]:
    """The two by our names, as far as we have them. Older files name both in one: `DPM++ 2M SGM Uniform`."""
    for word in (*_A1111_SCHEDULES.values(), *_OTHER_SCHEDULES):
        if sampler.endswith(f" {word}"):
            sampler, schedule = sampler.removesuffix(f" {word}"), schedule or word
    named = (("sampler", sampler, _A1111_SAMPLERS), ("scheduler", schedule, _A1111_SCHEDULES))
    return {option: ours for option, said, words in named for ours in words if words[ours] == said}


def named_loras(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """LoRAs by name with their strengths; those that are no name and number are left out."""
    kept = [(name, float(value)) for name, value in pairs if isinstance(name, str) and is_number(value)]
    names = [name.replace("\\", "/").rpartition("/")[2] for name, _ in kept]
    return {"lora_weight": names, "lora_multiplier": [value for _, value in kept]} if kept else {}


def is_number(value: object) -> bool:
    """A bool counts as none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
