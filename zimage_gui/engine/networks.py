"""The network of a run: from options and a file to adapters on a model, and what is wrong with them before.

Knows options and LoRA files. It must not know the loop, the optimizer or where results go.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zimage_gui.errors import Problem, UserError
from zimage_gui.events import Note, Run
from zimage_gui.model.adapter import LoraSpec, matching
from zimage_gui.model.lora import LoraNetwork, target_paths
from zimage_gui.model.lora_forms import form_problems
from zimage_gui.model.lora_merge import linear_shapes
from zimage_gui.model.lora_read import LoraFile, fit_problems, read_lora
from zimage_gui.model.networks import (
    KINDS,
    attach_network,
    read_start,
    sized_by,
    start_misfits,
    start_network,
)

_START = "network_weights"


def network_spec(config: Any, start: LoraFile | None = None) -> LoraSpec:
    """The adapters that the options describe; `start`: the file that `network_weights` names."""
    spec = LoraSpec(
        dim=config.network_dim, alpha=config.network_alpha or 0.0, dropout=config.network_dropout,
        rank_dropout=config.rank_dropout, module_dropout=config.module_dropout,
        include=config.include_patterns, exclude=config.exclude_patterns, kind=config.network_module,
        rslora=config.use_rslora, dims=config.reg_dims, factor=config.lokr_factor, full=config.lokr_full,
    )  # fmt: skip
    return sized_by(spec, start.entries) if start is not None and config.dim_from_weights else spec


def build_network(model: nn.Module, config: Any, run: Run) -> LoraNetwork:
    """Attaches the adapters and starts them from the file; a resumed run brings its own numbers."""
    start = read_start(Path(config.network_weights), _START) if config.network_weights is not None else None
    network = attach_network(model, network_spec(config, start), config.seed)
    if start is not None and config.resume is None:
        count = start_network(network, start.entries)
        rest = len(network.modules) - count
        text = f"training goes on from {start.path.name}: {count} layers"
        run.emit(Note(text=text + (f"; {rest} others begin afresh" if rest else "")))
    return network


def network_problems(config: Any, model: nn.Module) -> list[Problem]:
    """What is wrong with the network's options for `model`, which may be on the meta device and is not to be
    used afterwards. Reads the LoRA files."""
    shapes = linear_shapes(model)
    problems: list[Problem] = []
    for path in config.base_weights:
        problems += _file_problems(Path(path), shapes, "base_weights")
    problems += _form_problems(config)
    start = None
    if config.network_weights is not None:
        found = _file_problems(Path(config.network_weights), shapes, _START)
        problems += found
        start = None if found else read_start(Path(config.network_weights), _START)
    spec = network_spec(config, start)
    try:
        paths = target_paths(model, spec)
    except ValueError as error:
        option = "include_patterns" if config.include_patterns else "exclude_patterns"
        shown = " ".join(getattr(config, option))
        return [*problems, Problem(option, shown, str(error), "Correct the patterns")]
    problems += _pattern_problems(config, paths)
    if start is not None:
        problems += _start_problems(attach_network(model, spec), start)
    return problems


def _file_problems(path: Path, shapes: Mapping[str, Sequence[int]], option: str) -> list[Problem]:
    try:
        return fit_problems(read_lora(path, option), shapes, option)
    except UserError as error:
        return list(error.problems)


def _form_problems(config: Any) -> list[Problem]:
    """The writer's own words about a kind that the form cannot say."""
    layer = nn.Linear(2, 2, bias=False)
    entry = KINDS[config.network_module](layer, LoraSpec(dim=1, kind=config.network_module)).entry()
    return [
        Problem("lora_format", config.lora_format, f"cannot be: each layer{problem.rule}", "Set it to peft")
        for problem in form_problems({"": entry}, config.lora_format)
    ]


def _pattern_problems(config: Any, paths: Sequence[str]) -> list[Problem]:
    return [
        Problem(option, pattern, "matches the whole name of no trained layer", f"A name is {paths[0]}")
        for option, pairs in (("network_reg_dims", config.reg_dims), ("network_reg_lrs", config.reg_lrs))
        for pattern, _ in pairs
        if not any(matching(((pattern, 1),), path) for path in paths)
    ]


def _start_problems(network: LoraNetwork, start: LoraFile) -> list[Problem]:
    remedy = "Set dim_from_weights for its ranks and layers, or fit network_module and network_dim to it"
    return [
        Problem(_START, str(start.path), f"does not fit: {misfit}", remedy)
        for misfit in start_misfits(network, start.entries)
    ]


def parameter_groups(config: Any, network: LoraNetwork | None, parameters: list[nn.Parameter]) -> Any:
    """What the optimizer is made of: `parameters` as they are, or groups of one learning rate each, the
    commonest (learning_rate itself) first. A group with a rate of its own is marked `own_rate`."""
    ratio = getattr(config, "loraplus_lr_ratio", None)
    if network is None or (ratio is None and not config.reg_lrs):
        return parameters
    common = (float(config.learning_rate), False)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {common: []}
    for path, module in network.modules.items():
        own = matching(config.reg_lrs, path)
        rate = common[0] if own is None else own
        for name, parameter in module.trained().items():
            plus = ratio if ratio is not None and name == "lora_up" else 1.0
            groups.setdefault((rate * plus, own is not None), []).append(parameter)
    return [
        {"params": members, "lr": rate} | ({"own_rate": True} if own else {})
        for (rate, own), members in groups.items()
        if members
    ]


def rate_problems(config: Any, optimizer: torch.optim.Optimizer | None) -> list[Problem]:
    """Rates that an optimizer which works out its own would not look at."""
    if optimizer is None or optimizer.param_groups[0]["lr"] is not None:
        return []
    given = [name for name in ("loraplus_lr_ratio", "network_reg_lrs") if getattr(config, name, None)]
    rule = "has no effect: this optimizer works out its own rate"
    return [Problem(name, "", rule, "Leave it out, or use another optimizer") for name in given]


class NormLimit:
    """Scales down what a step made larger than `most`: the Frobenius norm of each layer's change."""

    def __init__(self, network: LoraNetwork, most: float) -> None:
        self.modules = list(network.modules.values())
        self.most = most

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """The number of layers that were scaled, as a tensor on their device."""
        norms = torch.stack([module.norm() for module in self.modules])
        ratios = (self.most / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        for module, ratio in zip(self.modules, ratios, strict=True):
            factors = module.factors()
            share = ratio ** (1.0 / len(factors))
            for factor in factors:
                factor.mul_(share)
        return (ratios < 1 - 1e-5).sum()
