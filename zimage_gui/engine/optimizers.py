"""The optimizer of a run, by its usual name or by a dotted path. Knows constructors and their arguments; must
not know what is trained or how steps are counted.
"""

import ast
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from zimage_gui.engine.optimizer_extras import EXTRAS, MuonWithAdamW, load_extra
from zimage_gui.errors import Problem

_PATH_EXAMPLES = (
    "AdamW, AdamW8bit, Adafactor, Prodigy, AdamWScheduleFree, Lion, CAME, Muon, a class of torch.optim "
    "such as SGD, or a path such as package.module.Class"
)


class OptimizerError(ValueError):
    """A name or argument that gives no optimizer or scheduler; the message is a rule for a `Problem`."""


def parse_assignments(items: Iterable[str]) -> dict[str, Any]:
    """`["weight_decay=0.01", "betas=(0.9, 0.99)"]` as keyword arguments; values are Python literals and
    nothing is run.

    Raises `OptimizerError` naming the item.
    """
    arguments: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.partition("=")
        name = name.strip()
        if not separator or not name.isidentifier():
            raise OptimizerError(f"{item!r} must have the form name=value")
        try:
            arguments[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise OptimizerError(
                f"the value in {item!r} must be a Python literal (number, True, None, 'text', tuple)"
            ) from error
    return arguments


def load_class(path: str, home: str, base: type) -> type:
    """The class named by a dotted `path`, or by a bare name inside the module `home`; it must be a subclass
    of `base`."""
    module_name, _, name = path.rpartition(".")
    if path.startswith("."):
        raise OptimizerError(f"{path} is no dotted path: it begins with a dot")
    try:
        found = getattr(importlib.import_module(module_name or home), name)
    except ImportError as error:
        raise OptimizerError(f"the module {module_name or home} cannot be imported ({error})") from error
    except AttributeError as error:
        raise OptimizerError(f"{module_name or home} has no {name}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise OptimizerError(f"{path} is not a subclass of {base.__module__}.{base.__qualname__}")
    if required := _required(getattr(found, "step", lambda self: None)):
        raise OptimizerError(f"{path} cannot be used here: its step needs {', '.join(required)}")
    return found


def _required(method: Callable[..., object]) -> list[str]:
    """The arguments a method cannot do without: LBFGS wants a closure, ReduceLROnPlateau the loss."""
    arguments = list(inspect.signature(method).parameters.values())[1:]
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [a.name for a in arguments if a.default is a.empty and a.kind not in collecting]


def optimizer_factory(
    name: str, arguments: dict[str, Any], learning_rate: float
) -> Callable[..., torch.optim.Optimizer]:
    """A function from parameters to the optimizer called `name`. Raises `OptimizerError`."""
    lowered = name.lower()
    if lowered == "adamw":
        # one fused kernel over all tensors, on the CPU too: a loop over hundreds of adapters costs more
        return _bind(torch.optim.AdamW, {"lr": learning_rate, "fused": True} | arguments)
    if lowered == "adafactor":
        return _adafactor(arguments, learning_rate)
    if lowered.endswith("8bit") and "." not in name:
        return _bind(_eight_bit(lowered), {"lr": learning_rate} | arguments)
    if lowered in EXTRAS:
        return _bind(_extra(lowered), {"lr": learning_rate} | arguments)
    if lowered == "muon":
        return _bind(MuonWithAdamW, {"lr": learning_rate} | arguments)
    if "." not in name:
        name = next((known for known in dir(torch.optim) if known.lower() == lowered), name)
    found = load_class(name, "torch.optim", torch.optim.Optimizer)
    if found is torch.optim.Optimizer:
        raise OptimizerError(f"{name} is only the base class; known are {_PATH_EXAMPLES}")
    if issubclass(found, torch.optim.SparseAdam):
        raise OptimizerError(f"{name} takes sparse gradients only, which no layer here has")
    return _bind(found, {"lr": learning_rate} | arguments)


def quiet_bitsandbytes() -> None:
    """transformers imports bitsandbytes, which then complains of optional kernels that nothing here uses."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _adafactor(arguments: dict[str, Any], learning_rate: float) -> Callable[..., torch.optim.Optimizer]:
    quiet_bitsandbytes()
    from transformers.optimization import Adafactor

    defaults: dict[str, Any] = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    chosen = defaults | arguments
    # with relative steps Adafactor works out its own rate and refuses one from outside
    return _bind(Adafactor, {"lr": None if chosen["relative_step"] else learning_rate} | chosen)


def _eight_bit(lowered: str) -> type:
    quiet_bitsandbytes()
    import bitsandbytes.optim as optimizers

    found = next((known for known in dir(optimizers) if known.lower() == lowered), None)
    if found is None:
        raise OptimizerError(f"bitsandbytes has no optimizer {lowered}; known are {_PATH_EXAMPLES}")
    return load_class(found, "bitsandbytes.optim", torch.optim.Optimizer)


def _extra(lowered: str) -> type:
    try:
        return load_extra(EXTRAS[lowered])
    except ImportError as error:
        raise OptimizerError(str(error)) from error


def _bind(cls: type, arguments: dict[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    def build(parameters: Any) -> torch.optim.Optimizer:
        try:
            optimizer = cls(parameters, **arguments)
        except (TypeError, ValueError) as error:
            raise OptimizerError(f"{cls.__name__} refuses its arguments {arguments}: {error}") from error
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    return build


def build_optimizer(
    name: str, argument_texts: Iterable[str], learning_rate: float, parameters: ParamsT
) -> torch.optim.Optimizer:
    """The optimizer of a run, of parameters or of groups with rates of their own. Raises
    `OptimizerError`."""
    return optimizer_factory(name, parse_assignments(argument_texts), learning_rate)(parameters)


def check_optimizer(
    name: str, argument_texts: list[str], learning_rate: float, vectors: bool = False
) -> tuple[torch.optim.Optimizer | None, list[Problem]]:
    """Build it once on a dummy matrix, so that every mistake shows before any weights are loaded; with
    `vectors` also on a vector, which some optimizers refuse."""
    shown = " ".join(argument_texts)
    try:
        arguments = parse_assignments(argument_texts)
    except OptimizerError as error:
        return None, [Problem("optimizer_args", shown, str(error), "For example weight_decay=0.01")]
    try:
        factory = optimizer_factory(name, arguments, learning_rate)
    except OptimizerError as error:
        return None, [Problem("optimizer_type", name, str(error), f"Use {_PATH_EXAMPLES}")]
    dummies = [nn.Parameter(torch.zeros(2, 2))]
    try:
        optimizer = factory(dummies)
    except OptimizerError as error:
        return None, [Problem("optimizer_args", shown, str(error), f"See the arguments of {name}")]
    if vectors:
        try:
            factory([*dummies, nn.Parameter(torch.zeros(2))])
        except OptimizerError as error:
            return None, [Problem("optimizer_type", name, str(error), f"Use {_PATH_EXAMPLES}")]
    return optimizer, []


def describe(optimizer: torch.optim.Optimizer, argument_texts: Iterable[str]) -> str:
    """`package.module.Class(name=value,…)`, as sd-scripts writes it into LoRA metadata."""
    cls = type(optimizer)
    arguments = ",".join(argument_texts)
    return f"{cls.__module__}.{cls.__qualname__}" + (f"({arguments})" if arguments else "")
