"""LoRA files in every dialect, made here from random factors, with the weights they must give.

Written from the producers' descriptions, without the code under test: names and formulas are spelled out.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, HIDDEN = 24, 36
KINDS = ("lora", "loha", "lokr", "lokr_low", "mixed")
_BLOCK = {
    "attention.to_q": (DIM, DIM), "attention.to_k": (DIM, DIM), "attention.to_v": (DIM, DIM),
    "attention.to_out.0": (DIM, DIM), "feed_forward.w1": (HIDDEN, DIM), "feed_forward.w2": (DIM, HIDDEN),
    "feed_forward.w3": (HIDDEN, DIM),
}  # fmt: skip
_PLACES = ("layers.0", "layers.11", "noise_refiner.0", "context_refiner.1")
BLOCKS = {f"{place}.{name}": shape for place in _PLACES for name, shape in _BLOCK.items()}
SHAPES = BLOCKS | {
    "layers.0.adaLN_modulation.0": (4 * DIM, 16), "noise_refiner.0.adaLN_modulation.0": (4 * DIM, 16),
    "all_x_embedder.2-1": (DIM, 12), "all_final_layer.2-1.linear": (12, DIM),
    "all_final_layer.2-1.adaLN_modulation.1": (DIM, 16), "cap_embedder.1": (DIM, 20),
    "t_embedder.mlp.0": (20, 16), "t_embedder.mlp.2": (16, 20),
}  # fmt: skip
_OUTER = {
    "all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}  # fmt: skip
_QKV = ("attention.to_q", "attention.to_k", "attention.to_v")


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {f"{path}.weight": torch.randn(*shape, generator=generator) / 8 for path, shape in SHAPES.items()}


class Maker:
    """Collects the tensors of one file and the changes of the weights they stand for."""

    def __init__(
        self, seed: int, shapes: dict[str, tuple[int, int]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.shapes = shapes
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.tensors: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        self.sidecars: dict[str, object] = {}

    def random(self, *shape: int) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) / 4).to(self.dtype)

    def put(self, path: str, change: Tensor) -> None:
        if path.endswith(".qkv"):
            for target, part in zip(_QKV, change.chunk(3), strict=True):
                self.changes[path.removesuffix("attention.qkv") + target] = part
        else:
            self.changes[path] = change

    def lora(
        self, path: str, shape: tuple[int, int], down: str, up: str, *, rank: int = 3, scale: float = 1.0
    ) -> None:
        a, b = self.random(rank, shape[1]), self.random(shape[0], rank)
        self.tensors[down], self.tensors[up] = a, b
        self.put(path, scale * b.float() @ a.float())


def _fused(paths: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """{fused path: shape}, with our own path for what is not fused."""
    found = {}
    for path, (rows, columns) in paths.items():
        if path.endswith("to_q"):
            found[path.replace("to_q", "qkv")] = (3 * rows, columns)
        elif not path.endswith(("to_k", "to_v")):
            found[path] = (rows, columns)
    return found


def _comfy_name(path: str) -> str:
    return _OUTER.get(path, path.replace("to_out.0", "out"))


def _split(
    maker: Maker, prefix: str, down: str, up: str, alpha: str = "", under: bool = False, mixed: bool = False
) -> None:
    """Split names with one pair of suffixes; alpha "": none; "alpha": a tensor."""
    for index, (path, shape) in enumerate(maker.shapes.items()):
        name = prefix + (path.replace(".", "_") if under else path)
        rank = 2 + index % 3
        value = [1.0, 0.5, 6.0][index % 3]
        has = bool(alpha) and not (mixed and index % 2)
        maker.lora(path, shape, name + down, name + up, rank=rank, scale=value / rank if has else 1.0)
        if has:
            made = torch.tensor(value) if index % 4 else torch.tensor([value])
            maker.tensors[f"{name}.alpha"] = made.to(torch.int64) if value == 6 and index % 2 else made


def _fused_names(maker: Maker, prefix: str, down: str, up: str, under: bool) -> None:
    for path, shape in _fused(maker.shapes).items():
        name = _comfy_name(path)
        name = prefix + (name.replace(".", "_") if under else name)
        maker.lora(path, shape, name + down, name + up, rank=4, scale=0.5)
        maker.tensors[f"{name}.alpha"] = torch.tensor(2.0)


def _peft(maker: Maker, rslora: bool = False) -> None:
    _split(maker, "transformer.", ".lora_A.weight", ".lora_B.weight")
    alphas = {path: 3.0 if path.endswith("to_k") else 2.0 for path in maker.shapes}
    for path, change in maker.changes.items():
        rank = maker.tensors[f"transformer.{path}.lora_A.weight"].shape[0]
        maker.changes[path] = change * alphas[path] / (rank**0.5 if rslora else rank)
    values = {"r": 3, "lora_alpha": 2, "alpha_pattern": {"^.*attention.to_k$"[3:]: 3.0}, "use_rslora": rslora}
    maker.metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{k}": v for k, v in values.items()})


def _rust(maker: Maker) -> None:
    for path, shape in _fused(BLOCKS).items():
        name = path.replace("to_out.0", "to_out")
        maker.lora(path, shape, f"{name}.lora_a", f"{name}.lora_b", rank=3, scale=1.5 / 3)
    maker.sidecars["{stem}.lora.json"] = {"rank": 3, "alpha": 1.5, "target_attention": True}


def _peft_folder(maker: Maker) -> None:
    _split(maker, "base_model.model.", ".lora_A.weight", ".lora_B.weight")
    for path, change in maker.changes.items():
        rank = maker.tensors[f"base_model.model.{path}.lora_A.weight"].shape[0]
        maker.changes[path] = change * 5 / rank
    maker.sidecars["adapter_config.json"] = {"r": 3, "lora_alpha": 5, "alpha_pattern": {}}


def _loha(maker: Maker, name: str, path: str, shape: tuple[int, int]) -> None:
    rank, alpha = 2, 1.0
    parts = [maker.random(*size) for size in ((shape[0], rank), (rank, shape[1])) * 2]
    for suffix, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), parts, strict=True):
        maker.tensors[f"{name}.hada_{suffix}"] = part
    maker.tensors[f"{name}.alpha"] = torch.tensor(alpha)
    a, b, c, d = (part.float() for part in parts)
    maker.put(path, (a @ b) * (c @ d) * alpha / rank)


def _lokr(maker: Maker, name: str, path: str, shape: tuple[int, int], low: bool, first: int = 4) -> None:
    w1 = maker.random(first, 4)
    maker.tensors[f"{name}.lokr_w1"] = w1
    rows, columns = shape[0] // first, shape[1] // 4
    if low:
        a, b = maker.random(rows, 2), maker.random(2, columns)
        maker.tensors[f"{name}.lokr_w2_a"], maker.tensors[f"{name}.lokr_w2_b"] = a, b
        w2, scale = a.float() @ b.float(), 3.0 / 2
        maker.tensors[f"{name}.alpha"] = torch.tensor(3.0)
    else:
        w2, scale = maker.random(rows, columns).float(), 1.0
        maker.tensors[f"{name}.lokr_w2"] = w2.to(maker.dtype)
        maker.tensors[f"{name}.alpha"] = torch.tensor(99.0)
    maker.put(path, torch.kron(w1.float(), w2) * scale)


def _kinds(maker: Maker, kind: str, prefix: str, under: bool) -> None:
    for index, (path, shape) in enumerate(BLOCKS.items()):
        name = prefix + (path.replace(".", "_") if under else path)
        which = ("lora", "loha", "lokr", "lokr_low")[index % 4] if kind == "mixed" else kind
        if which == "lora":
            rank = 2 if index % 2 else 4
            maker.lora(
                path, shape, f"{name}.lora_down.weight", f"{name}.lora_up.weight", rank=rank, scale=1 / rank
            )
            maker.tensors[f"{name}.alpha"] = torch.tensor(1.0)
        elif which == "loha":
            _loha(maker, name, path, shape)
        else:
            _lokr(maker, name, path, shape, which == "lokr_low")


def _fused_kinds(maker: Maker, kind: str, first: int = 4) -> None:
    for path, shape in _fused(BLOCKS).items():
        name = "diffusion_model." + _comfy_name(path)
        if kind == "loha":
            _loha(maker, name, path, shape)
        else:
            _lokr(maker, name, path, shape, kind == "lokr_low", first)


def _dora(maker: Maker, prefix: str, suffix: str) -> None:
    base = weights()
    for path, shape in BLOCKS.items():
        maker.lora(path, shape, f"{prefix}{path}.lora_A.weight", f"{prefix}{path}.lora_B.weight")
        magnitude = maker.random(shape[0]).float().abs() + 1
        maker.tensors[f"{prefix}{path}{suffix}"] = (
            magnitude[:, None] if suffix == ".dora_scale" else magnitude
        )
        weight = base[f"{path}.weight"]
        direction = weight + maker.changes[path]
        norm = direction.norm(dim=1, keepdim=True)
        maker.changes[path] = magnitude[:, None] * direction / norm - weight


_AB, _DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
_SPLIT_FORMS = {
    "musubi": ("lora_unet_", *_DOWN_UP, "alpha", True),
    "musubi missing alpha": ("lora_unet_", *_DOWN_UP, "", True),
    "ai-toolkit": ("diffusion_model.", *_AB, "", False),
    "OneTrainer diffusion_model": ("diffusion_model.", *_AB, "alpha", False),
    "OneTrainer bare": ("", *_AB, "alpha", False),
    "OneTrainer legacy": ("transformer.", *_DOWN_UP, "alpha", False),
    "OneTrainer kohya": ("lora_transformer_", *_DOWN_UP, "alpha", True),
    "diffusers folded": ("transformer.", *_AB, "", False),
    "lycoris": ("lycoris_", *_DOWN_UP, "alpha", True),
    "DiffSynth": ("", ".lora_A.default.weight", ".lora_B.default.weight", "", False),
    "diffusion_model default": ("diffusion_model.", ".lora_A.default.weight", ".lora_B.default.weight", "", False),
    "PEFT wrapped": ("base_model.model.transformer.", ".lora_A.style.weight", ".lora_B.style.weight", "", False),
    "PEFT bare": ("base_model.model.", *_AB, "", False),
    "whole checkpoint": ("model.diffusion_model.", *_DOWN_UP, "alpha", False),
    "compiled": ("_orig_mod.", *_AB, "alpha", False),
    "dotted": ("transformer.", ".lora.down.weight", ".lora.up.weight", "", False),
}  # fmt: skip


_TO_Q = "diffusion_model.layers.0.attention.to_q"
_SPECIAL = {
    **dict.fromkeys(
        ("mixed alpha", "bf16", "fp16"), lambda m: _split(m, "diffusion_model.", *_AB, "alpha", mixed=True)
    ),
    "only to_q": lambda m: m.lora(_TO_Q[16:], (DIM, DIM), *(_TO_Q + suffix for suffix in _AB)),
    "fused kohya": lambda m: _fused_names(m, "lora_unet_", *_DOWN_UP, under=True),
    "fused diffusion_model": lambda m: _fused_names(m, "diffusion_model.", *_AB, under=False),
    "peft header": _peft,
    "peft rslora": lambda m: _peft(m, rslora=True),
    "rust": _rust,
    "PEFT folder": _peft_folder,
    "fused loha": lambda m: _fused_kinds(m, "loha"),
    "fused lokr": lambda m: _fused_kinds(m, "lokr", first=12),
    "fused lokr_low": lambda m: _fused_kinds(m, "lokr_low", first=12),
    "fused lokr uneven": lambda m: _fused_kinds(m, "lokr", first=4),
    "dora peft": lambda m: _dora(m, "transformer.", ".lora_magnitude_vector"),
    "dora scale": lambda m: _dora(m, "diffusion_model.", ".dora_scale"),
}


def dialects() -> list[str]:
    return [*_SPLIT_FORMS, *_SPECIAL, *[f"native {kind}" for kind in KINDS], "dm loha", "dm lokr_low"]


def make(
    dialect: str, folder: Path, shapes: dict[str, tuple[int, int]] = SHAPES
) -> tuple[Path, dict[str, Tensor]]:
    """The file, and {weight name: merged weight}; `shapes` leave out modules of the dialects that have all."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dialect, torch.float32)
    maker = Maker(sum(map(ord, dialect)), shapes, half)
    kind = dialect.rpartition(" ")[2]
    if dialect in _SPLIT_FORMS:
        _split(maker, *_SPLIT_FORMS[dialect])
    elif dialect in _SPECIAL:
        _SPECIAL[dialect](maker)
    else:
        _kinds(
            maker,
            kind,
            *(("lora_unet_", True) if dialect.startswith("native") else ("diffusion_model.", False)),
        )
    path = folder / "source.safetensors"
    save_file(maker.tensors, path, metadata=maker.metadata or None)
    for name, content in maker.sidecars.items():
        (folder / name.replace("{stem}", path.stem)).write_text(json.dumps(content), encoding="utf-8")
    base = weights()
    return path, {f"{name}.weight": base[f"{name}.weight"] + change for name, change in maker.changes.items()}
