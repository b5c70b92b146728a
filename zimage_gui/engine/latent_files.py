"""Latent files: generated pictures before the VAE, in the form of the first seed (musubi).

Knows the tensor's name, its shape and the header. It must not know models or runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zimage_gui.engine.png_settings import OWN_KEY, own_settings
from zimage_gui.errors import Problem, UserError
from zimage_gui.files import read_header
from zimage_gui.model.recognise import by_first_bytes
from zimage_gui.model.tensor_files import FLOATS, read_tensor

_CHANNELS = 16


def latent_problems(paths: Sequence[Path]) -> list[Problem]:
    """What keeps these files from being decoded, from their headers."""
    problems: list[Problem] = []
    for path in paths:
        if (found := by_first_bytes(path)) is not None:
            rule = f"is {found.sentence}; it is not opened"
            remedy = "Save the tensor with safetensors, under the name latent"
            problems.append(Problem("latent_path", str(path), rule, remedy))
            continue
        try:
            info = read_header(path, "latent_path").tensors.get("latent")
        except UserError as error:
            problems += error.problems
            continue
        shape = info.shape if info else ()
        if (
            len(shape) not in (3, 4)
            or shape[-3] != _CHANNELS
            or 0 in shape
            or (info and info.dtype not in FLOATS)
        ):
            rule = "holds no tensor named latent with 16 channels"
            problems.append(
                Problem("latent_path", str(path), rule, "Choose a file written with output_type latent")
            )
    return problems


def latent_metadata(settings: dict[str, Any]) -> dict[str, str]:
    """Header of a latent file: musubi's keys, and all settings as JSON."""
    height, width = settings["image_size"]
    metadata = {
        "seeds": str(settings["seed"]),
        "prompt": settings["prompt"],
        "height": str(height),
        "width": str(width),
        "infer_steps": str(settings["infer_steps"]),
        # Musubi writes this number, which acts on nothing, and reads it back.
        "embedded_cfg_scale": "2.5",
        "guidance_scale": str(settings["guidance_scale"]),
        OWN_KEY: json.dumps(settings, ensure_ascii=False),
    }
    if settings["negative_prompt"]:
        metadata["negative_prompt"] = settings["negative_prompt"]
    return metadata


def read_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Latents (B, 16, h, w) fp32 in model space and the header's metadata of a latent file. Raises UserError
    for latents that no picture comes from."""
    header = read_header(path, "latent_path")
    with path.open("rb") as file:
        latents = read_tensor(file, header.tensors["latent"]).float()
    if not bool(torch.isfinite(latents).all()):
        rule, remedy = "holds infinite or undefined numbers", "Make the latents again, or choose another file"
        raise UserError.one("latent_path", path, rule, remedy)
    return (latents if latents.dim() == 4 else latents[None]), header.metadata


def settings_of_latent(metadata: dict[str, str]) -> dict[str, Any]:
    """Options of `generate` that a latent file's header names: our own JSON, else musubi's keys; may be
    empty."""
    try:
        own = own_settings(metadata[OWN_KEY]) if OWN_KEY in metadata else {}
        return own or {
            "prompt": metadata["prompt"],
            "negative_prompt": metadata.get("negative_prompt", ""),
            "image_size": [int(metadata["height"]), int(metadata["width"])],
            "infer_steps": int(metadata["infer_steps"]),
            "guidance_scale": float(metadata["guidance_scale"]),
            "seed": int(metadata["seeds"]),
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
