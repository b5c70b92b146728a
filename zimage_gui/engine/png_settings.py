"""The settings written into a picture, and read back from ours and other programs' pictures.

Knows PNG text chunks and the forms programs write there. It must not know models, and imports no torch: the
window reads settings back with it.
"""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from zimage_gui import __version__
from zimage_gui.config.generate_parts import SAMPLERS, SCHEDULERS
from zimage_gui.errors import UserError

OWN_KEY = "zimage_gui"
_A1111_KEY = "parameters"
_COMFY_KEY = "prompt"
_LONGEST_TEXT = 1_000_000
_A1111_SAMPLERS = {
    "euler": "Euler", "heun": "Heun", "dpmpp_2m": "DPM++ 2M", "res_multistep": "Res Multistep"
}  # fmt: skip
_A1111_SCHEDULES = {
    "simple": "Simple", "normal": "Normal", "sgm_uniform": "SGM Uniform", "beta": "Beta",
    "linear_quadratic": "Linear Quadratic",
}  # fmt: skip
# Option of `generate` <- key of A1111's last line. CFG there is the common c = g + 1.
_A1111_NUMBERS = {"Steps": ("infer_steps", int), "Seed": ("seed", int), "Shift": ("flow_shift", float)}


def png_info(settings: Mapping[str, Any]) -> PngInfo:
    """Text chunks for a picture: all `settings` as JSON, and A1111's `parameters` text for other programs.

    `settings` are options of `generate` by name with plain values; the path options are shown by file name
    only.
    """
    info = PngInfo()
    info.add_itxt(OWN_KEY, json.dumps({"version": __version__, **settings}, ensure_ascii=False))
    info.add_text(_A1111_KEY, a1111_text(settings))
    return info


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


def png_bytes(image: Image.Image, settings: Mapping[str, Any] | None) -> bytes:
    """The picture as a PNG file; without metadata when there are no `settings`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=png_info(settings) if settings else None)
    return buffer.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """Options of `generate` found in a picture, by name; empty when it carries none that are known.

    Reads ours, A1111's `parameters`, and the plain sampler nodes of a ComfyUI graph. Raises UserError when
    the file is no picture.
    """
    return settings_in(_texts(path))


def settings_in(texts: Mapping[str, object]) -> dict[str, Any]:
    """The same from the text chunks of a picture."""
    for key, reader in ((OWN_KEY, own_settings), (_A1111_KEY, _from_a1111), (_COMFY_KEY, _from_comfy)):
        text = texts.get(key)
        if isinstance(text, str) and len(text) <= _LONGEST_TEXT:
            try:
                found = reader(text)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
            if found:
                return found
    return {}


def _texts(path: Path) -> Mapping[str, object]:
    try:
        with Image.open(path) as image:
            image.load()
            return {str(key): value for key, value in image.info.items()}
    except FileNotFoundError:
        raise UserError.one("picture", path, "does not exist", "Check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError.one(
            "picture", path, "is not a picture that can be read", "Choose a PNG file"
        ) from error


_OWN_TYPES: dict[str, type | tuple[type, ...]] = {
    "prompt": str,
    "negative_prompt": str,
    "infer_steps": int,
    "guidance_scale": (int, float),
    "flow_shift": (int, float),
    "seed": int,
    "cpu_noise": bool,
    "sampler": str,
    "scheduler": str,
    "cfg_truncation": (int, float),
    "cfg_normalization": (int, float),
    "image_path": str,
    "mask_path": str,
    "strength": (int, float),
    "mixed_precision": str,
    "image_size": list,
    "lora_weight": list,
    "lora_multiplier": list,
}


def own_settings(text: str) -> dict[str, Any]:
    """Known options out of the JSON this program writes; values of another type are left out."""
    found = json.loads(text)
    return {
        name: value
        for name, kind in _OWN_TYPES.items()
        if isinstance(value := found.get(name), kind) and (kind is bool or not isinstance(value, bool))
    }


def _from_a1111(text: str) -> dict[str, Any]:
    """prompt lines, an optional `Negative prompt:`, then one line of `Key: value, …`."""
    *lines, last = text.strip().split("\n")
    pairs = dict(re.findall(r"\s*([A-Z][\w \-/]{0,40}): ([^,\"]{1,200})(?:,|$)", last))
    if "Steps" not in pairs:
        return {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    found: dict[str, Any] = {
        "prompt": _without_lora_tags(prompt.strip()),
        "negative_prompt": negative.strip(),
    }
    for key, (option, kind) in _A1111_NUMBERS.items():
        if key in pairs:
            found[option] = kind(pairs[key])
    found |= _named(pairs, "Sampler", "sampler", _A1111_SAMPLERS)
    found |= _named(pairs, "Schedule type", "scheduler", _A1111_SCHEDULES)
    if "CFG scale" in pairs:
        found["guidance_scale"] = max(0.0, float(pairs["CFG scale"]) - 1)
    if size := re.fullmatch(r"(\d{2,5})x(\d{2,5})", pairs.get("Size", "")):
        found["image_size"] = [int(size[2]) // 16 * 16, int(size[1]) // 16 * 16]
    return found


def _named(pairs: Mapping[str, str], key: str, option: str, words: Mapping[str, str]) -> dict[str, str]:
    """The option under the name that A1111 gives its value, when it is one of ours."""
    said = pairs.get(key, "").strip()
    return {option: name for name in words if words[name] == said}  # noqa: B035 - at most one


def _without_lora_tags(prompt: str) -> str:
    return re.sub(r"\s*<lora:[^<>]{1,300}>", "", prompt)


def _from_comfy(text: str) -> dict[str, Any]:
    """Sampler, size and prompt of a ComfyUI graph whose sampler node names them directly."""
    graph = json.loads(text)
    nodes = [
        node for node in graph.values() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    ]
    samplers = [node["inputs"] for node in nodes if str(node.get("class_type", "")).startswith("KSampler")]
    if not samplers:
        return {}
    sampler = samplers[0]
    found: dict[str, Any] = {
        "prompt": _comfy_text(graph, sampler.get("positive")),
        "negative_prompt": _comfy_text(graph, sampler.get("negative")),
        "infer_steps": sampler.get("steps"),
        "seed": sampler.get("seed", sampler.get("noise_seed")),
    }
    for option, key, known in (("sampler", "sampler_name", SAMPLERS), ("scheduler", "scheduler", SCHEDULERS)):
        if sampler.get(key) in known:
            found[option] = sampler[key]
    if isinstance(sampler.get("cfg"), int | float):
        found["guidance_scale"] = max(0.0, float(sampler["cfg"]) - 1)
    for node in nodes:
        inputs = node["inputs"]
        if node.get("class_type") == "ModelSamplingAuraFlow" and isinstance(inputs.get("shift"), int | float):
            found["flow_shift"] = float(inputs["shift"])
        if isinstance(inputs.get("width"), int) and isinstance(inputs.get("height"), int):
            found["image_size"] = [inputs["height"] // 16 * 16, inputs["width"] // 16 * 16]
    return {name: value for name, value in found.items() if value is not None and not isinstance(value, dict)}


def _comfy_text(graph: Mapping[str, Any], link: object, depth: int = 4) -> str | None:
    """Follows a link `[node, output]` to the text it starts from."""
    if not isinstance(link, list) or not link or depth == 0:
        return None
    node = graph.get(str(link[0]))
    inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
    for key in ("text", "conditioning", "string"):
        value = inputs.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and (text := _comfy_text(graph, value, depth - 1)) is not None:
            return text
    return None
