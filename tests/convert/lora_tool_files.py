"""Small LoRA files for the tools, and what a tool makes of and says about them."""

from pathlib import Path

import torch

from zimage_gui.events import NullRun
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_files import read_lora, write_lora

DATA = Path(__file__).parents[1] / "data"
DIALECTS = DATA / "lora_dialects"
HUB = DATA / "reference" / "hub"
MAIN = DIALECTS / "main_kohya_split.safetensors"


def texts_of(run):
    return " | ".join(getattr(event, "text", "") for event in run.events)


def deltas(path):
    return {n: e.delta(torch.zeros(e.shape)) for n, e in read_lora(path).entries.items()}


def run_tool(module, config, folder):
    run = NullRun(folder)
    made = module.run(config, run)
    return (made[0] if made else None), texts_of(run)


def write_small_lora(
    path,
    seed=0,
    rank=4,
    modules=("layers.0.attention.to_q", "layers.0.feed_forward.w1"),
    size=(40, 30),
    alpha=2.0,
):
    generator = torch.Generator().manual_seed(seed)
    entries = {
        name: LowRank(
            torch.randn(rank, size[1], generator=generator),
            torch.randn(size[0], rank, generator=generator),
            alpha,
        )
        for name in modules
    }
    write_lora(path, entries, "native", {"ss_network_dim": str(rank), "modelspec.title": "old"})
    return path
