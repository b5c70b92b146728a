"""The golden reference files: tiny random Z-Image in every layout, and what diffusers computed from it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
LAYOUTS = {
    "hub": (REFERENCE / "hub",) * 3,
    "single": tuple(
        REFERENCE / "single" / name
        for name in ("z_image_fused.safetensors", "ae.safetensors", "qwen_3.safetensors")
    ),
}


@cache
def expected() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "expected.safetensors")


@cache
def manifest() -> dict[str, Any]:
    return json.loads((REFERENCE / "manifest.json").read_text(encoding="utf-8"))


def worst(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    assert actual.shape == wanted.shape
    return float((actual - wanted).abs().max())
