"""A ComfyUI workflow as it is drawn, brought into the form of one that is run.

Knows nodes, links, subgraphs and the order of the widgets of the few nodes that matter here. It must not know
what their values mean. No torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
    "SamplerCustom": ("", "noise_seed", "", "cfg"),
    "ModelSamplingAuraFlow": ("shift",),
    "ModelSamplingSD3": ("shift",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeLumina2": ("", "user_prompt"),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "EmptySD3LatentImage": ("width", "height"),
    "EmptyLatentImage": ("width", "height"),
    "LoraLoader": ("lora_name", "strength_model"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}
_INPUT = "-10"
"""Where the links of a subgraph begin that come in from outside."""
_LEFT_OUT = (2, 4)
"""Modes of nodes that are muted or bypassed."""
_DEEPEST = 8
_MOST_NODES = 10_000
"""Nodes that are looked at: subgraphs within subgraphs can make a thousand million of a few lines."""


def graph_of(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes by ids (`outer:inner` inside subgraphs) with their inputs; what cannot be read is left out.

    Raises ValueError when there are more than any drawing has.
    """
    parts = workflow.get("definitions")
    subgraphs = parts.get("subgraphs") if isinstance(parts, dict) else None
    known = {part["id"]: part for part in subgraphs or () if isinstance(part, dict) and "id" in part}
    return dict(_nodes(workflow, known, "", {}, _DEEPEST, iter(range(_MOST_NODES))))


def _nodes(
    scope: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    prefix: str,
    given: Mapping[str, Any],
    depth: int,
    left: Iterator[int],
) -> Iterator[tuple[str, Any]]:
    """The nodes of a scope and of the subgraphs in it. `given`: values at the scope's own inputs by name;
    `left`: one for each node that may still be looked at."""
    links = dict(_links(scope))
    names = [str(one.get("name")) for one in scope.get("inputs", ()) if isinstance(one, dict)]
    for node in scope.get("nodes", ()):
        if next(left, None) is None:
            raise ValueError("more nodes than a workflow has")
        if not isinstance(node, dict) or node.get("mode") in _LEFT_OUT:
            continue
        own = f"{prefix}{node.get('id')}"
        kind = str(node.get("type"))
        if kind in known and depth:
            inside, overrides = _outside_values(node)
            for name, inner in _nodes(known[kind], known, f"{own}:", inside, depth - 1, left):
                inner["inputs"] |= overrides.get(name.rpartition(":")[2], {})
                yield name, inner
            continue
        inputs = _widget_values(kind, node.get("widgets_values"))
        for one in node.get("inputs") or ():
            origin = links.get(one.get("link")) if isinstance(one, dict) else None
            if origin is None:
                continue
            begin, slot = origin
            if begin != _INPUT:
                inputs[str(one.get("name"))] = [f"{prefix}{begin}", slot]
            elif slot < len(names) and names[slot] in given:
                inputs[str(one.get("name"))] = given[names[slot]]
        yield own, {"class_type": kind, "inputs": inputs}


def _links(scope: Mapping[str, Any]) -> Iterator[tuple[object, tuple[str, int]]]:
    """Link id -> (node it begins at, its output); written as a list at the top, as a table in a subgraph."""
    for link in scope.get("links", ()):
        if isinstance(link, list) and len(link) > 2 and isinstance(link[2], int):
            yield link[0], (str(link[1]), link[2])
        elif isinstance(link, dict) and isinstance(link.get("origin_slot"), int):
            yield link.get("id"), (str(link.get("origin_id")), link["origin_slot"])


def _widget_values(kind: str, values: object) -> dict[str, Any]:
    if not isinstance(values, list):
        return {}
    found = {name: value for name, value in zip(_WIDGETS.get(kind, ()), values, strict=False) if name}
    rows = (value for value in values if isinstance(value, dict) and "lora" in value)
    return found | {f"lora_{number}": row for number, row in enumerate(rows, 1)}


def _outside_values(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a subgraph's node shows on its outside: values at its inputs, and values of nodes inside by id."""
    properties = node.get("properties")
    shown = properties.get("proxyWidgets") if isinstance(properties, dict) else None
    values = node.get("widgets_values")
    inputs: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for place, value in zip(shown or (), values if isinstance(values, list) else (), strict=False):
        if not isinstance(place, list) or len(place) != 2 or value is None:
            continue
        owner, name = str(place[0]), str(place[1])
        if owner == "-1":
            inputs[name] = value
        else:
            inner.setdefault(owner, {})[name] = value
    return inputs, inner
