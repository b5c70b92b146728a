"""`network_args` and LyCORIS names, as the first seed and sd-scripts spell them, turned into options.

Knows those spellings. It must not know what an option does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from zimage_gui.errors import Problem

_OPTIONS = {
    "dropout": "network_dropout", "rank_dropout": "rank_dropout", "module_dropout": "module_dropout",
    "loraplus_lr_ratio": "loraplus_lr_ratio", "factor": "lokr_factor", "full_matrix": "lokr_full",
    "rs_lora": "use_rslora", "use_rslora": "use_rslora", "rslora": "use_rslora",
    "scale_weight_norms": "scale_weight_norms",
}  # fmt: skip
_PATTERNS = ("include_patterns", "exclude_patterns")
_PAIRS = ("network_reg_dims", "network_reg_lrs")
WITHOUT_MEANING = {
    "conv_dim": "Z-Image has no convolutions",
    "conv_alpha": "Z-Image has no convolutions",
    "verbose": "inspect lists the layers of a LoRA",
}
MEANINGS = _OPTIONS | {name: name for name in (*_PATTERNS, *_PAIRS)}
"""Argument -> the option it sets."""
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dora": "dora"}


def _arguments(values: Mapping[str, Any]) -> dict[str, str] | None:
    """`network_args` by name; None for what is no list of them."""
    given = values.get("network_args", ())
    given = ((given,) if given.strip() else ()) if isinstance(given, str) else given
    if not isinstance(given, list | tuple):
        return None
    return {name.strip(): value.strip() for name, _, value in (str(item).partition("=") for item in given)}


def without_meaning(values: Mapping[str, Any]) -> list[str]:
    """One line for each argument that does nothing here."""
    given = _arguments(values) or {}
    return [
        f"{name} in network_args does nothing here: {WITHOUT_MEANING[name]}."
        for name in given
        if name in WITHOUT_MEANING
    ]


def expanded(values: dict[str, Any], over_all: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """`values` without `network_args`; an option that is given by itself counts before the same in there.
    over_all: what all sources say, of which `values` are one's: the last list of arguments is the one."""
    arguments = _arguments(over_all)
    if arguments is None or _arguments(values) is None:
        return values, []
    found = {name: value for name, value in values.items() if name != "network_args"}
    problems = []
    if any(_is_lycoris(one) for one in (values, over_all)) and {"network_module", "network_args"} & set(
        values
    ):
        problems += _lycoris(found, str(over_all["network_module"]), arguments)
    if "network_args" not in values:
        arguments = {}
    for name, value in arguments.items():
        if name in _OPTIONS:
            found.setdefault(_OPTIONS[name], value)
        elif name in _PATTERNS:
            found.setdefault(name, _list_of(value))
        elif name in _PAIRS:
            found.setdefault(name, _pairs_of(value))
        elif name not in WITHOUT_MEANING:
            rule = f"must set one of {', '.join(MEANINGS)}"
            problems.append(Problem("network_args", f"{name}={value}", rule, "Leave it out"))
    return found, problems


def _is_lycoris(values: Mapping[str, Any]) -> bool:
    module = str(values.get("network_module", "")).lower()
    return module == "lycoris" or module.startswith("lycoris.")


def _lycoris(found: dict[str, Any], name: str, arguments: dict[str, str]) -> list[Problem]:
    """The kind that the words of LyCORIS's module `name` mean, where it is built in; the words are taken out
    of `arguments`."""
    algorithm = arguments.pop("algo", "lora").lower()
    weighted = _true(arguments.pop("dora_wd", "False"))
    problems = []
    kind = _ALGORITHMS.get(algorithm)
    if kind is None or (weighted and kind not in ("lora", "dora")):
        what = f"algo={algorithm}" + (" dora_wd=True" if weighted else "")
        rule = f"of {name} needs the LyCORIS package, which is not part of this program"
        problems.append(
            Problem("network_args", what, rule, "Use lora, dora, loha or lokr, which are built in")
        )
        kind = "lora"
    found["network_module"] = "dora" if weighted else kind
    if arguments.pop("preset", "attn-mlp").lower() != "attn-mlp":
        rule = "of LyCORIS is not known; attention and feed-forward are trained, as attn-mlp says"
        problems.append(Problem("network_args", "preset", rule, "Use include_patterns for other layers"))
    for switch in ("decompose_both", "use_tucker", "use_scalar", "train_norm", "bypass_mode", "wd_on_output"):
        if _true(arguments.pop(switch, "False")):
            rule = "of LyCORIS is not built in"
            problems.append(Problem("network_args", f"{switch}=True", rule, "Leave it out"))
    return problems


def _true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _list_of(value: str) -> object:
    """A list as the first seed writes it, "['a', 'b']"; a bare word is one pattern."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return (value,)
    return tuple(map(str, parsed)) if isinstance(parsed, list | tuple) else (value,)


def _pairs_of(value: str) -> tuple[str, ...]:
    """sd-scripts' "pattern=16,other=8". A comma belongs to a pattern unless a number ends before it."""
    pairs = re.findall(r"(.+?=\s*[-+.\deE]+\s*)(?:,|$)", value)
    return tuple(pair.strip() for pair in pairs) if "".join(pairs) else (value,)
