"""The settings of a ComfyUI graph, as options of `generate`.

    nodes by their ids, {"class_type": …, "inputs": {name: value or [id, output]}}

Knows the nodes that samplers are made of, and links. It must not know files, models or what is done with the
options. No torch.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from zimage_gui.config.generate_parts import SAMPLERS, SCHEDULERS
from zimage_gui.engine.png_foreign import is_number, named_loras
from zimage_gui.engine.png_workflow import graph_of

Graph = Mapping[str, Any]

_PARTS = ("noise", "guider", "sampler", "sigmas")
"""Inputs of SamplerCustomAdvanced and SamplerCustom whose nodes hold what KSampler holds itself."""
_SHIFTS = ("ModelSamplingAuraFlow", "ModelSamplingSD3")
_TEXTS = (
    "populated_text", "user_prompt", "text", "conditioning", "conditioning_1", "string", "value", "prompt"
)  # fmt: skip
"""Inputs that hold a prompt or lead to it, those that say more first."""
_LONGEST_TEXT = 100_000
_MOST_SAMPLERS = 20


def from_comfy(text: str) -> dict[str, Any]:
    """What the sampler of a graph that was run names, directly or through a link."""
    return settings_of_graph(json.loads(text))


def from_workflow(text: str) -> dict[str, Any]:
    """The same of a graph as it is drawn."""
    return settings_of_graph(graph_of(json.loads(text)))


def settings_of_graph(graph: Graph) -> dict[str, Any]:
    nodes = {
        name: node
        for name, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    first = _first_sampler(nodes)
    if first is None:
        return {}
    sampler = {name: _plain(nodes, value) for name, value in _with_parts(nodes, first).items()}
    found: dict[str, Any] = {
        "prompt": _text(nodes, sampler.get("positive", sampler.get("conditioning"))),
        "negative_prompt": _text(nodes, sampler.get("negative")),
        "image_size": _size(nodes, first),
        **_numbers(sampler),
    }
    for node in nodes.values():
        shift = _plain(nodes, node["inputs"].get("shift"))
        if node.get("class_type") in _SHIFTS and is_number(shift):
            found["flow_shift"] = float(shift)
    found |= named_loras(pair for node in nodes.values() for pair in _loras_of(nodes, node["inputs"]))
    return {name: value for name, value in found.items() if value is not None}


def _numbers(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, seed, guidance and the two names, as far as they are there and known here."""
    found: dict[str, Any] = {}
    for option, value in (
        ("infer_steps", sampler.get("steps")), ("seed", sampler.get("seed", sampler.get("noise_seed")))
    ):  # fmt: skip
        found[option] = value if isinstance(value, int) and not isinstance(value, bool) else None
    for option, key, known in (("sampler", "sampler_name", SAMPLERS), ("scheduler", "scheduler", SCHEDULERS)):
        found[option] = sampler.get(key) if sampler.get(key) in known else None
    cfg = sampler.get("cfg", 1.0 if "conditioning" in sampler else None)  # BasicGuider knows no guidance
    if is_number(cfg):
        found["guidance_scale"] = max(0.0, float(cfg) - 1)
    return found


def _first_sampler(nodes: Graph) -> str | None:
    """The sampler that the others begin from, where a picture was refined by more than one."""
    kinds = {name: str(node.get("class_type", "")) for name, node in nodes.items()}
    samplers = [
        name
        for name, kind in kinds.items()
        if kind.startswith(("KSampler", "SamplerCustom")) and kind != "KSamplerSelect"
    ][:_MOST_SAMPLERS]
    for name in samplers:
        if not any(other in samplers for other in _upstream(nodes, name)):
            return name
    return samplers[0] if samplers else None


def _upstream(nodes: Graph, name: str) -> Iterator[str]:
    """The nodes that a sampler's latents come through, nearest first."""
    waiting, seen = [nodes[name]["inputs"].get("latent_image")], {name}
    for link in waiting:
        node = _linked(link)
        if node is None or node in seen or node not in nodes:
            continue
        seen.add(node)
        yield node
        waiting += nodes[node]["inputs"].values()


def _linked(value: object) -> str | None:
    """The id of the node that a value is a link to."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return str(value[0])
    return None


def _with_parts(nodes: Graph, sampler: str) -> dict[str, Any]:
    """A sampler's inputs, with those of the nodes that it is put together from."""
    own: dict[str, Any] = nodes[sampler]["inputs"]
    found: dict[str, Any] = {}
    for part in _PARTS:
        link = _linked(own.get(part))
        for _ in range(4):  # a schedule may have been cut or turned on its way
            inner = nodes.get(link or "", {"inputs": {}})["inputs"]
            found |= inner
            link = _linked(inner.get(part))
    return found | own


def _size(nodes: Graph, sampler: str) -> list[int] | None:
    """Of the latents that the sampler began from, else of any node that has a size."""
    for name in (*_upstream(nodes, sampler), *nodes):
        width, height = (_plain(nodes, nodes[name]["inputs"].get(edge)) for edge in ("width", "height"))
        if isinstance(width, int) and isinstance(height, int):
            return [height // 16 * 16, width // 16 * 16]
    return None


def _loras_of(nodes: Graph, inputs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Names and strengths: one of ComfyUI's loaders, or the rows of rgthree's Power Lora Loader."""
    yield inputs.get("lora_name"), _plain(nodes, inputs.get("strength_model"))
    for row in inputs.values():
        if isinstance(row, dict) and row.get("on") is True:
            yield row.get("lora"), row.get("strength")


def _plain(nodes: Graph, value: object, depth: int = 4) -> Any:
    """A number or text that is linked in from a node which only holds it; anything else as it is."""
    if not isinstance(value, list) or len(value) != 2 or depth == 0:
        return value
    node = nodes.get(str(value[0]))
    for key in ("value", "seed", "int", "float", "number"):
        if node is not None and key in node["inputs"]:
            held = _plain(nodes, node["inputs"][key], depth - 1)
            return value if isinstance(held, list) else held
    return value


def _text(nodes: Graph, link: object, depth: int = 6) -> str | None:
    """Follows a link `[node, output]` to the text it starts from; a conditioning of zeros is no text."""
    if isinstance(link, str):
        return link
    node = nodes.get(_linked(link) or "")
    if node is None or depth == 0:
        return None
    if node.get("class_type") == "ConditioningZeroOut":
        return ""
    inputs = node["inputs"]
    if "string_a" in inputs and "string_b" in inputs:
        parts = [_text(nodes, inputs[part], depth - 1) or "" for part in ("string_a", "string_b")]
        return str(_plain(nodes, inputs.get("delimiter") or "")).join(parts)[:_LONGEST_TEXT]
    for key in _TEXTS:
        if key in inputs and (text := _text(nodes, inputs[key], depth - 1)) is not None:
            return text
    return None
