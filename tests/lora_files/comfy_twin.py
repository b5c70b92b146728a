"""ComfyUI's way of applying a LoRA to Z-Image, written anew from what is known of its rules: which names it
maps to which rows of its fused model, and what each kind of adapter adds. Names it does not map are returned.
"""

import torch
from torch import Tensor

_OUTER = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
_PARTS = {"attention.to_q": 0, "attention.to_k": 1, "attention.to_v": 2}
_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"))


def fused_model(split: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's weights of a model with diffusers' names (Linear layers only)."""
    fused: dict[str, Tensor] = {}
    for name, tensor in split.items():
        path = name.removesuffix(".weight")
        if path.endswith("attention.to_q"):
            block = path.removesuffix("to_q")
            thirds = [split[f"{block}{part}.weight"] for part in ("to_q", "to_k", "to_v")]
            fused[f"{block}qkv"] = torch.cat(thirds)
        elif not path.endswith(("attention.to_k", "attention.to_v")):
            fused[_comfy(path)] = tensor
    return fused


def _comfy(path: str) -> str:
    return _OUTER.get(path, path.replace("attention.to_out.0", "attention.out"))


def _key_map(split: dict[str, Tensor]) -> dict[str, tuple[str, int | None]]:
    """{name in a file: (weight of the fused model, third of its rows)}."""
    keys: dict[str, tuple[str, int | None]] = {}
    for name in fused_model(split):
        keys[f"diffusion_model.{name}"] = (name, None)
        keys["lora_unet_" + name.replace(".", "_")] = (name, None)
    for name in split:
        path = name.removesuffix(".weight")
        third = next((index for part, index in _PARTS.items() if path.endswith(part)), None)
        target = _comfy(path) if third is None else path[: -len("to_q")] + "qkv"
        for prefix in ("diffusion_model.", "transformer.", ""):
            keys[prefix + path] = (target, third)
        keys["lycoris_" + path.replace(".", "_")] = (target, third)
    return keys


def apply(split: dict[str, Tensor], lora: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The fused weights with the LoRA merged at strength 1, and the names that were not used."""
    model = {name: tensor.clone() for name, tensor in fused_model(split).items()}
    unused = set(lora)
    for stem, (target, third) in _key_map(split).items():
        found = {name[len(stem) + 1 :]: t.float() for name, t in lora.items() if name.startswith(f"{stem}.")}
        change = _change(found)
        if change is None:
            continue
        unused -= {f"{stem}.{part}" for part in found}
        rows = len(model[target]) // 3
        start, stop = (0, len(model[target])) if third is None else (third * rows, (third + 1) * rows)
        model[target][start:stop] += change
    return model, unused


def _change(found: dict[str, Tensor]) -> Tensor | None:
    alpha = found.get("alpha")
    for down, up in _PAIRS:
        if down in found and up in found:
            scale = 1.0 if alpha is None else float(alpha) / found[down].shape[0]
            return found[up] @ found[down] * scale
    if "hada_w1_a" in found:
        a, b, c, d = (found[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return (a @ b) * (c @ d) * (1.0 if alpha is None else float(alpha) / b.shape[0])
    if any(name.startswith("lokr") for name in found):
        rank = next((found[n].shape[0] for n in ("lokr_w2_b", "lokr_w1_b") if n in found), None)
        w1, w2 = (
            found[f"lokr_{w}"] if f"lokr_{w}" in found else found[f"lokr_{w}_a"] @ found[f"lokr_{w}_b"]
            for w in ("w1", "w2")
        )
        return torch.kron(w1, w2) * (float(alpha) / rank if rank and alpha is not None else 1.0)
    return None
