"""The memory estimate beside what is found: the released model's steps counted on the meta device, and whole runs
on this machine, each in a process of its own, whose tensors and whose memory are measured."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef

from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.engine import train
from zimage_gui.engine.frozen import frozen_names
from zimage_gui.engine.memory_estimate import _AT_WORK, _TOKENIZER, GIB, Batch, Workload, estimate
from zimage_gui.engine.memory_models import ModelSizes
from zimage_gui.engine.memory_steps import recomputed_blocks
from zimage_gui.engine.methods import FullMethod, LoraMethod, Method
from zimage_gui.engine.networks import build_network
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.events import Note, NullRun
from zimage_gui.model.quantise import stored_bytes
from zimage_gui.model.saving import save_transformer
from zimage_gui.model.sizes import TextEncoderConfig
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

sys.path.append(str(Path(__file__).parents[1] / "model"))
sys.path.append(str(Path(__file__).parents[1] / "training"))
from live_bytes import LiveBytes, _storages
from meta_step import on_meta, quantised
from page import put_section
from tiny_project import write_models

PIXELS, TEXT = 1024, 128
CAPTION = "a photograph of a small brown dog that sleeps on a blue blanket beside an open window " * 4
SAID = "memory at the fullest"
SECTION = "## The memory estimate and what is found"
TEXT_OF_SECTION = """{section}

Measured by

    python -m tests.benchmarks memory --write

on {when}, torch {torch}. GiB.

The released model (30 blocks) at {pixels} px with {text} caption tokens and one picture, on the meta device: the bytes of all tensors that a
step holds at its fullest, weights and gradients included, counted, beside the same parts of the estimate.

{counted}

Whole runs (`train-lora`, `finetune`) on this machine: {where}. A model of the released width with {layers} main blocks (and {refiners}
refiners of either kind), random weights. *Tensors* is what the tensors of the run come to at their fullest, each counted once (its ratio leaves the
tokenizer and torch's own 0.03 GiB out);
*in use* is what the run itself prints at its end: {meaning}.

{runs}
"""
MEANING = {
    "cpu": "what the C library had handed out beyond what it had when the run began; *the process grew* by the memory that the "
    "library keeps for reuse as well, and by code that came in from files",
    "cuda": "what torch had reserved of the GPU at most; tensors are not counted there",
}


@dataclass(frozen=True)
class Mode:
    """One row. options: of the command; pixels: of the square pictures of the whole run; steps: of it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    full: bool = False
    pixels: int = 256
    steps: int = 1

    def config(self, **more: Any) -> Any:
        kind = FinetuneConfig if self.full else TrainLoraConfig
        return kind(**self.options | more)


PLAIN = {"gradient_checkpointing": False}
MODES = (
    Mode("LoRA", PLAIN),
    Mode("LoRA, half of the blocks recomputed", {"gradient_checkpointing_fraction": "0.5"}),
    Mode("LoRA, `gradient_checkpointing`"),
    *(Mode(f"LoRA, `base_quant {quant}`", {"base_quant": quant}) for quant in ("fp8", "int8", "nf4")),
    Mode("DoRA", {"network_module": "dora"} | PLAIN),
    Mode("LoHa", {"network_module": "loha"}),
    Mode("LoKr", {"network_module": "lokr"} | PLAIN),
    Mode("finetune, bf16", {"full_bf16": True} | PLAIN, full=True),
    Mode("finetune, bf16, `gradient_checkpointing`", {"full_bf16": True}, full=True),
    Mode(
        "finetune of the last block", {"full_bf16": True, "train_patterns": (r"layers\.(2|29)",)}, full=True
    ),
)
"""Counted at the released size."""
RUNS = (
    Mode("LoRA, 512 px", PLAIN, pixels=512),
    Mode("LoRA, 512 px, `gradient_checkpointing`", pixels=512),
    Mode("LoRA, `gradient_checkpointing_cpu_offload`", {"gradient_checkpointing_cpu_offload": True}),
    Mode("LoRA, `blocks_to_swap`", {"blocks_to_swap": 2}),
    *(Mode(f"LoRA, `base_quant {quant}`", {"base_quant": quant}) for quant in ("fp8", "int8", "nf4")),
    Mode("LoHa", {"network_module": "loha"}),
    Mode(
        "finetune, fp32, Adafactor, `fused_backward_pass`",
        {"optimizer_type": "Adafactor", "fused_backward_pass": True},
        full=True,
        steps=2,
    ),
    Mode(
        "finetune, fp32, AdamW, one block",
        {"optimizer_type": "AdamW", "train_patterns": (r"layers\.1",)},
        full=True,
        steps=2,
    ),
    Mode(
        "finetune, bf16, Adafactor, `fused_backward_pass`",
        {
            "optimizer_type": "Adafactor",
            "fused_backward_pass": True,
            "full_bf16": True,
            "mixed_precision": "bf16",
        },
        full=True,
        steps=2,
    ),
)
"""Run on this machine, in fp32 where nothing else is said."""


class EveryByte(LiveBytes):
    """Counts what comes in as well: weights that were there before are found when they are first used."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for storage in _storages((args, kwargs, result)):
            known = self._alive.get(storage._cdata)
            if storage.device.type != "meta" and (known is None or known[0].expired()):
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.now())
        return result


def counted(mode: Mode, shape: TransformerConfig, batch: Batch, folder: Path) -> float:
    """Bytes of all tensors at the fullest of a step without its update, on the meta device."""
    config = mode.config(seed=0)
    with torch.device("meta"):
        model = ZImageTransformer(shape).to(torch.bfloat16)
    if not mode.full and config.base_quant != "none":
        quantised(model, config.base_quant)
    method: Method
    if mode.full:
        method = FullMethod(model, frozen=frozen_names(config, dict(model.named_parameters())))
    else:
        with torch.device("meta"):
            method = LoraMethod(model, build_network(model, config, NullRun(folder)))
    optimizer = build_optimizer("SGD", [], 1e-4, method.parameters())
    settings = LoopSettings(
        0, 1, 1, gradient_checkpointing=config.gradient_checkpointing,
        recomputed_blocks=recomputed_blocks(config, shape.n_layers),
    )  # fmt: skip
    schedule = build_schedule(ScheduleSpec(), optimizer, 1)
    trainer = Trainer(method, optimizer, schedule, Objective(), settings, NullRun(folder))
    latents = torch.empty(batch.count, 16, batch.height // 8, batch.width // 8, device="meta")
    captions = [
        torch.empty(batch.text, shape.cap_feat_dim, dtype=torch.bfloat16, device="meta")
    ] * batch.count
    model.train()
    with on_meta(), LiveBytes() as made:
        loss = trainer.passes.predict(latents, torch.empty(batch.count, device="meta"), captions)
        loss.square().mean().backward()
    return stored_bytes(model) + made.peak


def expected(mode: Mode, shape: TransformerConfig, batch: Batch) -> float:
    """The same of the estimate."""
    found = estimate(mode.config(), ModelSizes(config=shape), Workload(batch), "cuda").training
    return sum(found.get(name, 0.0) for name in ("transformer", "LoRA", "gradients", "activations"))


def counted_rows(modes: tuple[Mode, ...] = MODES, shape: TransformerConfig | None = None) -> Iterator[str]:
    shape, batch = shape or TransformerConfig(), Batch(PIXELS, PIXELS, TEXT, 1)
    yield "| | estimated | counted | ratio |\n|---|---|---|---|"
    for mode in modes:
        ours, real = expected(mode, shape, batch), counted(mode, shape, batch, Path(tempfile.gettempdir()))
        yield f"| {mode.name} | {ours / GIB:.2f} | {real / GIB:.2f} | **{ours / real:.3f}** |"


def write_project(folder: Path, layers: int, refiners: int) -> None:
    """Models of the released width with few blocks, and two captioned pictures of each size."""
    write_models(folder / "models")
    shape = TransformerConfig(n_layers=layers, n_refiner_layers=refiners, cap_feat_dim=16)
    with torch.device("meta"):
        tensors = dict(ZImageTransformer(shape).named_parameters())

    def values(name: str) -> torch.Tensor:
        made = torch.empty(tensors[name].shape, dtype=torch.bfloat16).normal_(0, 0.02)
        return made + 1 if "norm" in name else made

    shapes = {name: tensor.detach() for name, tensor in tensors.items()}
    save_transformer(shapes, folder / "models" / "dit.safetensors", dtype=torch.bfloat16, whole=values)
    for pixels in {mode.pixels for mode in RUNS}:
        (folder / str(pixels)).mkdir()
        for number in range(2):
            Image.new("RGB", (pixels, pixels), (90 * number, 60, 30)).save(
                folder / str(pixels) / f"{number}.png"
            )
            (folder / str(pixels) / f"{number}.txt").write_text(CAPTION, encoding="utf-8")


def one_run(mode: Mode, project: Path, device: str) -> dict[str, float]:
    """GiB that the run expected and found; tensors are counted on a CPU, where the counter costs nothing else."""
    models = project / "models"
    options = {"mixed_precision": "no"} if device == "cpu" else {}
    config = mode.config(
        **options | {
            "dit": models / "dit.safetensors", "vae": models / "vae.safetensors",
            "text_encoder": models / "te.safetensors", "dataset": project / str(mode.pixels),
            "resolution": (mode.pixels, mode.pixels), "batch_size": 1, "max_train_steps": mode.steps, "seed": 1,
            "output_dir": project / "out", "device": device, "max_data_loader_n_workers": 0,
        } | mode.options
    )  # fmt: skip
    run = NullRun(project / "run")
    real = EveryByte()
    with real if device == "cpu" else nullcontext():
        train.run(config, run)
    said = next(
        event.text for event in reversed(run.events) if isinstance(event, Note) and SAID in event.text
    )
    numbers = re.search(r"training ([\d.]+) and ([\d.]+)", said)
    grown = re.search(r"grew by ([\d.]+)", said)
    assert numbers is not None
    beside = (_AT_WORK + _TOKENIZER * TextEncoderConfig().vocab_size) / GIB
    return {
        "expected": float(numbers[1]), "expected of tensors": float(numbers[1]) - beside, "in use": float(numbers[2]), "tensors": real.peak / GIB,
        "grown": float(grown[1]) if grown else 0.0,
    }  # fmt: skip


def run_rows(project: Path, device: str, modes: tuple[Mode, ...] = RUNS) -> Iterator[str]:
    """Each mode in its own process."""
    yield (
        "| | estimated | tensors | ratio | in use | ratio | the process grew |\n|---|---|---|---|---|---|---|"
        if device == "cpu"
        else "| | estimated | reserved | ratio |\n|---|---|---|---|"
    )
    for mode in modes:
        found = alone(mode, project, device)
        cells = [f"{found['expected']:.2f}"]
        for name in ("tensors", "in use") if device == "cpu" else ("in use",):
            ours = found["expected of tensors" if name == "tensors" else "expected"]
            cells += [f"{found[name]:.2f}", f"**{ours / found[name]:.3f}**"]
        if device == "cpu":
            cells.append(f"{found['grown']:.2f}")
        yield f"| {mode.name} | {' | '.join(cells)} |"


def alone(mode: Mode, project: Path, device: str) -> dict[str, float]:
    arguments = [str(RUNS.index(mode)), str(project), device]
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=os.environ | here, capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(page: Path | None, folder: Path | None, layers: int | None, device: str, where: str) -> None:
    few = device == "cpu"
    layers, refiners = layers or (2 if few else 30), 0 if few else 2
    counted_table, runs = [], []
    for line in counted_rows():
        counted_table.append(line)
        print(line, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        project = Path(place)
        write_project(project, layers, refiners)
        for line in run_rows(project, device):
            runs.append(line)
            print(line, flush=True)
    if page is not None:
        text = TEXT_OF_SECTION.format(
            section=SECTION + (" (GPU)" if device != "cpu" else ""), when=time.strftime("%Y-%m-%d"), torch=torch.__version__,
            pixels=PIXELS, text=TEXT, counted="\n".join(counted_table), runs="\n".join(runs), where=where,
            layers=layers, refiners=refiners or "no", meaning=MEANING[torch.device(device).type],
        )  # fmt: skip
        put_section(page, text.splitlines()[0], text)


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    number, project, device = sys.argv[1:]
    print(json.dumps(one_run(RUNS[int(number)], Path(project), device)))
