"""The command `ema-lora`: a weighted average of the checkpoints of one training, after the training.

    W <- beta W + (1 - beta) W_next, file by file; beta is constant, or runs evenly from beta to beta2, or is
    (1 - 1/t)^(gamma + 1) with gamma from sigma_rel (Karras et al. 2024, arXiv 2312.02696, algorithm 2)

Knows files and weights. The tensors keep their names, so that any dialect stays what it is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zimage_gui.config.lora_tools import EmaLoraConfig
from zimage_gui.engine.lora_io import output_problems, read_input, sidecar_of
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Note, Run
from zimage_gui.files import read_header, sweep_temp_files
from zimage_gui.model.lora_alphas import sidecar_path
from zimage_gui.model.lora_read import load_tensors
from zimage_gui.model.lora_write import write_tensors

_SHOWN = 6


def betas(count: int, beta: float, beta2: float | None, sigma_rel: float | None) -> list[float]:
    """The part of itself that the average keeps at each of the `count` files after the first."""
    if sigma_rel is not None:
        power = gamma(sigma_rel) + 1
        return [(1 - 1 / t) ** power for t in range(1, count + 1)]
    last = beta if beta2 is None else beta2
    return [beta + (last - beta) * (i / (count - 1) if count > 1 else 0.0) for i in range(count)]


def gamma(sigma_rel: float) -> float:
    """The exponent whose average is `sigma_rel` wide: the largest root of
    gamma³ + 7 gamma² + (16 - sigma_rel⁻²) gamma + (12 - sigma_rel⁻²)."""
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def check(config: EmaLoraConfig) -> list[Problem]:
    """Everything that keeps the files from being averaged; reads them, writes nothing."""
    problems = config.problems()
    if config.output_file is not None:
        for problem in output_problems(config.output_file, config.path, config.overwrite):
            problems.append(Problem("output_file", problem.value, problem.rule, problem.remedy))
    first: dict[str, Tensor] = {}
    for path in config.path:
        try:
            read_input(path, "path")
            tensors = _tensors(path)
        except UserError as error:
            problems += error.problems
            continue
        first = first or tensors
        if wrong := _unlike(first, tensors):
            remedy = "Give the checkpoints of one training"
            problems.append(Problem("path", str(path), wrong, remedy))
    return problems


def run(config: EmaLoraConfig, run: Run) -> list[Path]:
    """Averages, proves the file, and says the weight of each checkpoint."""
    raise_if_any(check(config))
    assert config.output_file is not None  # `check` has seen to it
    paths = list(config.path) if config.no_sort else sorted(config.path, key=lambda p: p.stat().st_mtime)
    kept = betas(len(paths) - 1, config.beta, config.beta2, config.sigma_rel)
    first = _tensors(paths[0])
    average = {name: tensor.float() for name, tensor in first.items()}
    for path, beta in zip(paths[1:], kept, strict=True):
        for name, tensor in _tensors(path).items():
            if not name.endswith(".alpha"):
                average[name].mul_(beta).add_(tensor.float(), alpha=1 - beta)
    tensors = {name: average[name].to(tensor.dtype) for name, tensor in first.items()}
    sweep_temp_files(config.output_file.parent)
    sidecar = sidecar_of(paths[-1], first)
    write_tensors(config.output_file, tensors, read_header(paths[-1], "path").metadata, sidecar)
    read_input(config.output_file, "output_file")
    shares = ", ".join(f"{path.name} {share:.1%}" for path, share in zip(paths, _shares(kept), strict=True))
    run.emit(Note(text=f"shares: {shares}"))
    run.emit(Note(text=f"{len(tensors)} tensors averaged over {len(paths)} files: {config.output_file.name}"))
    return [config.output_file, *([sidecar_path(config.output_file)] if sidecar else [])]


def _tensors(path: Path) -> dict[str, Tensor]:
    return load_tensors(path, read_header(path, "path"), "path")


def _shares(kept: Sequence[float]) -> list[float]:
    shares = [1.0]
    for beta in kept:
        shares = [share * beta for share in shares] + [1 - beta]
    return shares


def _unlike(first: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """Why two files are not checkpoints of one LoRA; empty when they are."""
    names = sorted(first.keys() ^ other.keys())
    if names:
        shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
        return f"has other tensors than the first file: {shown}"
    for name, tensor in first.items():
        if tensor.shape != other[name].shape:
            return f"{name} is {list(other[name].shape)}, in the first file {list(tensor.shape)}"
        if name.endswith(".alpha") and not torch.allclose(tensor.float(), other[name].float()):
            return f"{name} is {float(other[name]):g}, in the first file {float(tensor):g}"
    return ""
