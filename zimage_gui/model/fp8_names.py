"""Names of scaled fp8 checkpoints: which tensor scales which weight, and which weights programs quantise.

Knows the spellings of ComfyUI (old: `scale_weight` and a `scaled_fp8` mark; new: `weight_scale` and
`comfy_quant`) and of musubi-tuner (`scale_weight` per block). Must not know torch or files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from zimage_gui.files import TensorInfo

FP8 = ("F8_E4M3", "F8_E5M2")
BLOCK = 64
"""Numbers of a row that share a scale in musubi-tuner's form."""
MARK = "scaled_fp8"

_SCALES = (".scale_weight", ".weight_scale")
# Scales of activations and descriptions: nothing in them changes a weight.
_BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
_SCALE_DTYPES = ("F32", "BF16", "F16")
_NUMBER = re.compile(r"\.\d+\.")
_TARGETS = {
    "transformer": re.compile(
        r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])\.weight"
    ),
    "text_encoder": re.compile(r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"),
}


@dataclass(frozen=True)
class Fp8Parts:
    """plain: the tensors that are weights; scales: {weight: its scale}; beside: names that are neither."""

    plain: tuple[str, ...]
    scales: Mapping[str, str]
    beside: tuple[str, ...]

    @property
    def quantised(self) -> bool:
        return bool(self.scales)


def fp8_parts(infos: Mapping[str, TensorInfo]) -> Fp8Parts:
    """Takes a checkpoint apart. Raises ValueError (the rest of a sentence) when a scale fits no weight."""
    scales: dict[str, str] = {}
    beside = []
    for name in infos:
        suffix = next((suffix for suffix in _SCALES if name.endswith(suffix)), None)
        if suffix is not None:
            scales[_scaled(name, suffix, infos, scales)] = name
        elif name.endswith(_BESIDE) or name == MARK or name.endswith("." + MARK):
            beside.append(name)
    _refuse_bare(infos, scales)
    taken = {*scales.values(), *beside}
    return Fp8Parts(tuple(name for name in infos if name not in taken), scales, tuple(beside))


def _refuse_bare(infos: Mapping[str, TensorInfo], scales: Mapping[str, str]) -> None:
    """An fp8 weight whose like in other blocks has a scale has lost its own: 1 would be far from it. (Other
    parts of one file may well be plain fp8.)"""
    kinds = {_NUMBER.sub(".N.", weight) for weight in scales}
    for name, info in infos.items():
        if info.dtype in FP8 and name not in scales and _NUMBER.sub(".N.", name) in kinds:
            raise ValueError(f"has {name} in fp8 without its scale, while other blocks have theirs")


def _scaled(name: str, suffix: str, infos: Mapping[str, TensorInfo], scales: Mapping[str, str]) -> str:
    weight = name.removesuffix(suffix) + ".weight"
    if weight not in infos or weight in scales:
        raise ValueError(f"has {name}, which is no scale of exactly one weight")
    scale = infos[name]
    if scale.dtype not in _SCALE_DTYPES or infos[weight].dtype not in (*FP8, *_SCALE_DTYPES):
        raise ValueError(f"has {name} of a quantisation this program does not read ({infos[weight].dtype})")
    if scale_grid(infos[weight].shape, scale.shape) is None:
        shapes = f"{list(scale.shape)} for {list(infos[weight].shape)}"
        raise ValueError(f"has {name} with a shape that scales neither tensor, rows nor blocks ({shapes})")
    return weight


def scale_grid(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """(rows, blocks per row) of a scale; None when it does not fit the weight."""
    count = math.prod(scale)
    if count == 1:
        return (1, 1)
    if len(weight) != 2 or scale[0] != weight[0] or count % weight[0]:
        return None
    blocks = count // weight[0]
    return (weight[0], blocks) if weight[1] % blocks == 0 else None


def is_fp8_target(name: str, part: str) -> bool:
    """Whether programs quantise this weight (ours, bare): the blocks' matrices, nothing that steers them."""
    pattern = _TARGETS.get(part)
    return pattern is not None and pattern.fullmatch(name) is not None


def block_scale_shape(weight: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of musubi-tuner's scale: per block of 64, per row where the width is no multiple of that."""
    rows, width = weight
    return (rows, width // BLOCK, 1) if width % BLOCK == 0 else (rows, 1)
