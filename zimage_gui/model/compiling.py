"""Blocks compiled one by one by torch.compile. Knows torch's compiler and what it needs; must not know what a
block computes or who runs it.

Each block keeps its parameters, hooks and names; only its forward is compiled. What runs around it
(checkpointing, swapping) stays as it is. Blocks of one kind share one piece of compiled code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

_LEAST_KINDS = 64
"""Pieces of code kept per function: a picture size, a caption length and a kind of block each need one."""

_PACKAGES = {
    "tvm": "tvm", "tensorrt": "torch_tensorrt", "torch_tensorrt": "torch_tensorrt", "openxla": "torch_xla",
    "openxla_eval": "torch_xla",
}  # fmt: skip
"""Backends that torch names and others bring."""


@dataclass(frozen=True)
class Compiler:
    """How to compile; the options' meanings. dynamic: None lets torch decide; kept: 0 for our number."""

    backend: str = "inductor"
    mode: str = "default"
    dynamic: bool | None = None
    fullgraph: bool = False
    kept: int = 0

    def apply(self, blocks: Iterable[nn.Module], cache: Path | None = None) -> None:
        """Have the forward of each block compiled when it is first run. cache: folder that keeps compiled
        code for the next run."""
        if cache is not None:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        torch._dynamo.config.recompile_limit = self.kept or _LEAST_KINDS
        mode: dict[str, Any] = {} if self.mode == "default" else {"mode": self.mode}
        for block in blocks:
            block.forward = torch.compile(
                block.forward, backend=self.backend, dynamic=self.dynamic, fullgraph=self.fullgraph, **mode
            )


def why_not(backend: str, device: torch.device) -> tuple[str, str] | None:
    """(rule, remedy) when the backend cannot work on this machine, found without compiling anything."""
    if backend not in torch._dynamo.list_backends(exclude_tags=()):
        usual = ", ".join(["eager", "aot_eager", *sorted(torch._dynamo.list_backends())])
        return "is no backend of torch.compile", f"Use one of {usual}"
    if (needed := _PACKAGES.get(backend)) is not None and find_spec(needed) is None:
        return f"needs the package {needed}, which is not installed", "Install it, or use inductor"
    if backend != "inductor":
        return None
    if device.type == "cuda" and find_spec("triton") is None:
        package = "triton-windows" if os.name == "nt" else "triton"
        remedy = f"Install it (pip install {package}), or leave compile out"
        return "needs the package triton on a GPU", remedy
    compiler = os.environ.get("CXX") or ("cl" if os.name == "nt" else "g++")
    if device.type == "cpu" and not any(map(shutil.which, (compiler, "clang++", "c++"))):
        return f"needs a C++ compiler ({compiler}) on a CPU", "Install one, or leave compile out"
    return None
