"""`network_args` and LyCORIS names, as the first seed and sd-scripts spell them, turned into options.

Knows those spellings. It must not know what an option does.
"""

from __future__ import annotations

import ast
import re
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
_WITHOUT_MEANING = frozenset({"conv_dim", "conv_alpha", "verbose"})
"""There are no convolutions in Z-Image."""
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dora": "dora"}
_KNOWN = (*dict.fromkeys([*_OPTIONS, *_PATTERNS, *_PAIRS]),)


def expanded(values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """`values` without `network_args`; an option that is given by itself counts before the same in there."""
    given = values.get("network_args", ())
    given = (given,) if isinstance(given, str) else given
    if not isinstance(given, list | tuple):
        return values, []
    found = {name: value for name, value in values.items() if name != "network_args"}
    problems = []
    module = str(found.get("network_module", "")).lower()
    arguments = {
        name.strip(): value.strip() for name, _, value in (str(item).partition("=") for item in given)
    }
    if module == "lycoris" or module.startswith("lycoris."):
        problems += _lycoris(found, arguments)
    for name, value in arguments.items():
        if name in _OPTIONS:
            found.setdefault(_OPTIONS[name], value)
        elif name in _PATTERNS:
            found.setdefault(name, _list_of(value))
        elif name in _PAIRS:
            found.setdefault(name, _pairs_of(value))
        elif name not in _WITHOUT_MEANING:
            rule = f"must set one of {', '.join(_KNOWN)}"
            problems.append(Problem("network_args", f"{name}={value}", rule, "Leave it out"))
    return found, problems


def _lycoris(found: dict[str, Any], arguments: dict[str, str]) -> list[Problem]:
    """The kind that LyCORIS's words mean, where it is built in; the words are taken out of `arguments`."""
    name = found["network_module"]
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
