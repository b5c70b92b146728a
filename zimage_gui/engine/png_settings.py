"""The settings written into a picture, and read back from ours and other programs' pictures.

Knows PNG text chunks and our own form in them. It must not know models, and imports no torch: the window
reads settings back with it.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from zimage_gui import __version__
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine.dataset.images import PictureProblem, read_texts
from zimage_gui.engine.png_comfy import from_comfy, from_workflow
from zimage_gui.engine.png_foreign import a1111_text, from_a1111
from zimage_gui.errors import UserError

OWN_KEY = "zimage_gui"
_A1111_KEY = "parameters"
_COMFY_KEY = "prompt"
_WORKFLOW_KEY = "workflow"
_LONGEST_TEXT = 1_000_000


def png_info(settings: Mapping[str, Any]) -> PngInfo:
    """Text chunks for a picture: all `settings` as JSON, and A1111's `parameters` text for other programs.

    `settings` are options of `generate` by name with plain values; the path options are shown by file name
    only.
    """
    info = PngInfo()
    info.add_itxt(OWN_KEY, json.dumps({"version": __version__, **settings}, ensure_ascii=False))
    info.add_text(_A1111_KEY, a1111_text(settings))
    return info


def png_bytes(image: Image.Image, settings: Mapping[str, Any] | None) -> bytes:
    """The picture as a PNG file; without metadata when there are no `settings`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=png_info(settings) if settings else None)
    return buffer.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """Options of `generate` found in a picture, by name; empty when it carries none that are known.

    Reads ours, A1111's `parameters`, and the sampler of a ComfyUI graph, as it was run (`prompt`) or as it is
    drawn (`workflow`). Values that their option does not take are left out. Raises UserError when the file is
    no picture.
    """
    return {name: value for name, value in settings_in(_texts(path)).items() if _is_taken(name, value)}


def _is_taken(name: str, value: object) -> bool:
    try:
        str(value).encode()  # half a character (a lone surrogate) is valid in JSON and nowhere else
        GenerateConfig(**{name: value})
    except (ValidationError, UnicodeEncodeError):
        return False
    return True


_Reader = Callable[[str], dict[str, Any]]


def settings_in(texts: Mapping[str, object]) -> dict[str, Any]:
    """The same from the text chunks of a picture."""
    for key, reader in _READERS:
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
    if not path.exists():
        raise UserError.one("picture", path, "does not exist", "Check the path")
    try:
        return read_texts(path)
    except PictureProblem as problem:
        raise UserError.one(
            "picture", path, "is not a picture that can be read", "Choose a PNG file"
        ) from problem


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
    "grid_x": str,
    "grid_y": str,
    "grid_z": str,
    "compare_lora": bool,
}


def own_settings(text: str) -> dict[str, Any]:
    """Known options out of the JSON this program writes; values of another type are left out."""
    found = json.loads(text)
    return {
        name: value
        for name, kind in _OWN_TYPES.items()
        if isinstance(value := found.get(name), kind) and (kind is bool or not isinstance(value, bool))
    }


_READERS: tuple[tuple[str, _Reader], ...] = (
    (OWN_KEY, own_settings),
    (_A1111_KEY, from_a1111),
    (_COMFY_KEY, from_comfy),
    (_WORKFLOW_KEY, from_workflow),
)
