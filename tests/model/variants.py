"""Makes files of other layouts and foreign formats from the golden reference."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from golden import REFERENCE
from safetensors.torch import load_file, save_file

FUSED = REFERENCE / "single" / "z_image_fused.safetensors"
LDM = REFERENCE / "single" / "ae.safetensors"
QWEN = REFERENCE / "single" / "qwen_3.safetensors"
HUB = REFERENCE / "hub"

Tensors = Mapping[str, torch.Tensor]


@cache
def tensors(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write(path: Path, state: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata)
    return path


def renamed(state: Tensors, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {rename(name): tensor for name, tensor in state.items()}
