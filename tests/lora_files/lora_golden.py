"""Where the golden LoRA files are, and what a model with one of them computes."""

import json
from pathlib import Path

import torch
from torch import Tensor

from zimage_gui.model.transformer import ZImageTransformer

DATA = Path(__file__).parents[1] / "data"
DIALECTS = DATA / "lora_dialects"
HUB = DATA / "reference" / "hub"
MANIFEST = json.loads((DIALECTS / "manifest.json").read_text(encoding="utf-8"))


def golden_files(broken: bool) -> list[str]:
    return [name for name, info in MANIFEST["files"].items() if (info["content"] is None) == broken]


@torch.no_grad()
def output_of(model: ZImageTransformer, probe: dict[str, Tensor]) -> Tensor:
    latents = probe["x"].reshape(1, 16, *probe["x"].shape[-2:])
    return model(latents, probe["t"].reshape(1), [probe["cap"]])[0].reshape(probe["out/base"].shape)
