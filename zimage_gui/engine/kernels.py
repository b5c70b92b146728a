"""How fast the GPU's kernels are made to be: compiled blocks and CUDA's switches, as the options say. Knows
options and where compiled code is kept; must not know what a model computes.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch

from zimage_gui.errors import Problem
from zimage_gui.model.compiling import Compiler, why_not
from zimage_gui.model.transformer import ZImageTransformer

_DYNAMIC = {"auto": None, "true": True, "false": False}


def compiler_of(config: Any) -> Compiler | None:
    """None when nothing is to be compiled."""
    if config.compiled_with is None:
        return None
    return Compiler(
        config.compiled_with,
        config.compile_mode,
        _DYNAMIC[config.compile_dynamic],
        config.compile_fullgraph,
        config.compile_cache_size_limit,
    )


def compile_blocks(model: ZImageTransformer, compiler: Compiler) -> None:
    """All three kinds of blocks. Call it when adapters are attached: code is compiled at the first step."""
    compiler.apply([*model.noise_refiner, *model.context_refiner, *model.layers], code_folder())


def code_folder() -> Path:
    """The user's folder of compiled code, kept between runs."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "zimage_gui" / "compiled"


def compile_problems(config: Any, device: torch.device) -> list[Problem]:
    """What keeps the blocks from being compiled on this machine."""
    if (backend := config.compiled_with) is None or (found := why_not(backend, device)) is None:
        return []
    option = "compile_backend" if config.compile else "dynamo_backend"
    return [Problem(option, backend, *found)]


def graph_problems(config: Any, device: torch.device) -> list[Problem]:
    """What keeps passes from being recorded on this machine."""
    if not config.cuda_graphs or device.type == "cuda":
        return []
    rule = f"needs a CUDA device, and the device is {device}"
    return [Problem("cuda_graphs", "true", rule, "Leave it out")]


def switches_now() -> tuple[Hashable, ...]:
    """The process's switches that choose kernels."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark


def set_cuda_switches(config: Any) -> None:
    """torch's switches are the process's: without the options they are set back to torch's own defaults."""
    torch.set_float32_matmul_precision("high" if config.cuda_allow_tf32 else "highest")
    torch.backends.cudnn.benchmark = config.cuda_cudnn_benchmark
