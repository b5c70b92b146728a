"""The forms in which A1111 and ComfyUI write settings into a picture, as options of `generate`.

Knows these texts. It must not know files, models or what is done with the options. No torch.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zimage_gui.config.generate_parts import SAMPLERS, SCHEDULERS
from zimage_gui.engine.png_workflow import graph_of

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
_LORA_TAG = re.compile(r"(?<!\s)\s*<lora:([^<>:]{1,300}):(-?\d{1,3}(?:\.\d{1,9})?)(?::[^<>]*)?>")


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
    pairs = dict(re.findall(r"([A-Z][\w \-/]{0,40}): ([^,\"]{1,200})(?:,|$)", last))
    if "Steps" not in pairs:
        return {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    found: dict[str, Any] = {
        "prompt": _LORA_TAG.sub("", prompt).strip(),
        "negative_prompt": negative.strip(),
        **_loras((name, float(value)) for name, value in _LORA_TAG.findall(prompt)),
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


def _loras(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """LoRAs by name with their strengths; those that are no name and number are left out."""
    kept = [(name, float(value)) for name, value in pairs if isinstance(name, str) and _is_number(value)]
    names = [name.replace("\\", "/").rpartition("/")[2] for name, _ in kept]
    return {"lora_weight": names, "lora_multiplier": [value for _, value in kept]} if kept else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- ComfyUI: nodes by their ids, {"class_type": …, "inputs": {name: value or [id, output]}} ---------------

Graph = Mapping[str, Any]


def from_comfy(text: str) -> dict[str, Any]:
    """What the sampler of a graph that was run names, directly or through a link."""
    return settings_of_graph(json.loads(text))


def from_workflow(text: str) -> dict[str, Any]:
    """The same of a graph as it is drawn."""
    return settings_of_graph(graph_of(json.loads(text)))


def settings_of_graph(graph: Graph) -> dict[str, Any]:
    nodes = [
        node for node in graph.values() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    ]
    samplers = [node["inputs"] for node in nodes if str(node.get("class_type", "")).startswith("KSampler")]
    if not samplers:
        return {}
    sampler = {name: _plain(graph, value) for name, value in samplers[0].items()}
    found: dict[str, Any] = {
        "prompt": _comfy_text(graph, sampler.get("positive")),
        "negative_prompt": _comfy_text(graph, sampler.get("negative")),
    }
    for option, value in (
        ("infer_steps", sampler.get("steps")), ("seed", sampler.get("seed", sampler.get("noise_seed")))
    ):  # fmt: skip
        found[option] = value if isinstance(value, int) and not isinstance(value, bool) else None
    for option, key, known in (("sampler", "sampler_name", SAMPLERS), ("scheduler", "scheduler", SCHEDULERS)):
        found[option] = sampler.get(key) if sampler.get(key) in known else None
    if _is_number(sampler.get("cfg")):
        found["guidance_scale"] = max(0.0, float(sampler["cfg"]) - 1)
    for node in nodes:
        inputs = {name: _plain(graph, value) for name, value in node["inputs"].items()}
        if node.get("class_type") == "ModelSamplingAuraFlow" and _is_number(inputs.get("shift")):
            found["flow_shift"] = float(inputs["shift"])
        if isinstance(inputs.get("width"), int) and isinstance(inputs.get("height"), int):
            found["image_size"] = [inputs["height"] // 16 * 16, inputs["width"] // 16 * 16]
    found |= _loras(
        (inputs.get("lora_name"), _plain(graph, inputs.get("strength_model")))
        for inputs in (node["inputs"] for node in nodes)
    )
    return {name: value for name, value in found.items() if value is not None}


def _plain(graph: Graph, value: object, depth: int = 4) -> Any:
    """A number or text that is linked in from a node which only holds it; anything else as it is."""
    if not isinstance(value, list) or len(value) != 2 or depth == 0:
        return value
    node = graph.get(str(value[0]))
    inputs = node.get("inputs") if isinstance(node, dict) else None
    for key in ("value", "seed", "int", "float", "number"):
        if isinstance(inputs, dict) and key in inputs:
            held = _plain(graph, inputs[key], depth - 1)
            return value if isinstance(held, list) else held
    return value


def _comfy_text(graph: Graph, link: object, depth: int = 6) -> str | None:
    """Follows a link `[node, output]` to the text it starts from."""
    if isinstance(link, str):
        return link
    if not isinstance(link, list) or not link or depth == 0:
        return None
    node = graph.get(str(link[0]))
    inputs = node.get("inputs") if isinstance(node, dict) else None
    for key in ("text", "conditioning", "conditioning_1", "string", "value", "prompt"):
        if isinstance(inputs, dict) and (text := _comfy_text(graph, inputs.get(key), depth - 1)) is not None:
            return text
    return None
