"""What every memory mode executes, keeps and moves, counted: the released model's sizes on the meta device, and the
real trainer on a narrow model of as many blocks for what moves between device and CPU memory."""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import FullMethod, LoraMethod, Method
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.engine.updates import SingleUpdates
from zimage_gui.events import NullRun
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.offload import BlockSwap, Trained
from zimage_gui.model.quantise import Quant, stored_bytes
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

sys.path.append(str(Path(__file__).parents[1] / "model"))
from live_bytes import LiveBytes
from meta_step import on_meta, quantised
from page import put_section

GIB = 2**30
CONFIG = TransformerConfig()
NARROW = TransformerConfig(dim=64, n_heads=1, n_refiner_layers=1, cap_feat_dim=16, axes_dims=(16, 24, 24))
PIXELS, TEXT, RANK = 1024, 128, 16
TOKENS = (PIXELS // 16) ** 2 + TEXT
RING = 2
SECTION = "## What each memory mode executes, keeps and moves"
TEXT_OF_SECTION = """{section}

Counted by

    python -m tests.benchmarks counters --write

on {when}, torch {torch}: no time is measured, so any machine gives these figures. One step of the released model (30 blocks,
bf16) at {pixels} px with {text} caption tokens and one picture, on the meta device: shapes alone, by the program's own trainer. *Executed* are
the forward and backward pass, over the useful work (`performance.md` 2.2: the frozen refiners once, gradients of activations in
the 30 blocks, and for finetuning those of the weights; the adapters' own work not counted as useful). *Kept* is what is alive after the forward pass, per token and block, in rows of
the model's width (bound for a LoRA without recomputing: 14). *Peak* is the most that is alive beside the weights during the two
passes, gradients included; attention keeps what a flash kernel keeps.

{table}

What swapping and offloading move in one update once the ring is full, by the real trainer on a narrow model of 30 blocks; in GB, at the
released model's sizes:

{moves}
"""
HEADER = "| | executed | of useful | kept | peak beside weights | weights |\n|---|---|---|---|---|---|"
MOVES = "| | blocks fetched | blocks (or their gradients) sent back | moved at the released size |\n|---|---|---|---|"


@dataclass(frozen=True)
class Mode:
    """One row. recomputed: how many of the 30 blocks; None: none."""

    name: str
    recomputed: int | None = None
    quant: Quant = "none"
    full: bool = False
    single: bool = False


MODES = (
    Mode("LoRA"),
    Mode("LoRA, `gradient_checkpointing_fraction 0.5`", 15),
    Mode("LoRA, `gradient_checkpointing`", 29),
    Mode("LoRA, `base_quant fp8`, `gradient_checkpointing`", 29, "fp8"),
    Mode("LoRA, `base_quant int8`, `gradient_checkpointing`", 29, "int8"),
    Mode("LoRA, `base_quant nf4`, `gradient_checkpointing`", 29, "nf4"),
    Mode("finetune", full=True),
    Mode("finetune, `gradient_checkpointing`", 29, full=True),
    Mode("finetune, `gradient_checkpointing`, `fused_backward_pass`", 29, full=True, single=True),
)
MOVING: tuple[tuple[str, Trained | None, int], ...] = (
    ("LoRA, `blocks_to_swap 8`", None, 8),
    ("LoRA, `blocks_to_swap 28`", None, 28),
    ("LoRA, `blocks_to_swap 30`", None, 30),
    ("finetune, `blocks_to_swap 28`", "gathered", 28),
    ("finetune, `blocks_to_swap 28`, `fused_backward_pass`", "updated", 28),
    ("LoRA, `gradient_checkpointing_cpu_offload`", None, 0),
)


def useful(config: TransformerConfig, full: bool) -> int:
    """FLOPs of forward and backward that no mode can do without.

    A block's weights are 4 d^2 + 3 d f, attention is 4 d L^2 forward and twice that backward. A LoRA needs the
    gradients of activations in the 30 blocks alone; finetuning needs them in the refiners too, and those of all weights.
    """
    weights, image = 4 * config.dim**2 + 3 * config.dim * config.ffn_dim, TOKENS - TEXT
    blocks = 2 * weights * config.n_layers * TOKENS
    refiners = 2 * weights * config.n_refiner_layers * TOKENS
    attended = 4 * config.dim * config.n_layers * TOKENS**2
    refined = 4 * config.dim * config.n_refiner_layers * (image**2 + TEXT**2)
    if full:
        return 3 * (blocks + refiners + attended + refined)
    return 2 * blocks + 3 * attended + refiners + refined


def _step(mode: Mode) -> tuple[Callable[[], torch.Tensor], Method]:
    with torch.device("meta"):
        model = ZImageTransformer(CONFIG).to(torch.bfloat16)
    if mode.quant != "none":
        quantised(model, mode.quant)
    method: Method
    with torch.device("meta"):
        method = FullMethod(model) if mode.full else LoraMethod(model, attach_lora(model, LoraSpec(dim=RANK)))
    optimizer = build_optimizer("SGD", [], 1e-4, method.parameters())
    settings = LoopSettings(
        0, 1, 1, gradient_checkpointing=mode.recomputed is not None, recomputed_blocks=mode.recomputed
    )
    schedule = build_schedule(ScheduleSpec(), optimizer, 1)
    trainer = Trainer(
        method, optimizer, schedule, Objective(), settings, NullRun(Path(tempfile.gettempdir()))
    )
    side = PIXELS // 8
    latents, when = torch.empty(1, 16, side, side, device="meta"), torch.empty(1, device="meta")
    captions = [torch.empty(TEXT, CONFIG.cap_feat_dim, dtype=torch.bfloat16, device="meta")]
    model.train()

    def freed(parameter: torch.Tensor) -> None:
        parameter.grad = None

    if mode.single:
        for parameter in method.parameters():
            parameter.register_post_accumulate_grad_hook(freed)
    return lambda: trainer.passes.predict(latents, when, captions).square().mean(), method


def row(mode: Mode) -> str:
    step, _ = _step(mode)
    with (
        on_meta(flash=False),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        step().backward()
    executed = counter.get_total_flops()
    step, method = _step(mode)
    weights = stored_bytes(method.model)
    with on_meta(), LiveBytes() as made:
        loss = step()
        kept = made.now() / (TOKENS * CONFIG.dim * 2 * CONFIG.n_layers)
        loss.backward()
    share = executed / useful(CONFIG, mode.full)
    return (
        f"| {mode.name} | {executed / 1e12:.1f} TFLOP | {share:.3f} | {kept:.2f} "
        f"| {made.peak / GIB:.2f} GiB | {weights / GIB:.2f} GiB |"
    )


def _narrow(trained: Trained | None, swapped: int) -> Trainer:
    """trained: as `BlockSwap` has it; a LoRA is trained for None. Without swapped blocks, activations are sent away."""
    torch.manual_seed(0)
    model = ZImageTransformer(NARROW)
    method: Method = FullMethod(model) if trained else LoraMethod(model, attach_lora(model, LoraSpec(dim=2)))
    optimizer = build_optimizer("SGD", [], 1e-4, method.parameters())
    settings = LoopSettings(
        0, 3, 1, gradient_checkpointing=True, gradient_checkpointing_cpu_offload=not swapped
    )
    schedule = build_schedule(ScheduleSpec(), optimizer, 3)
    in_backward = trained == "updated"
    updates = SingleUpdates(optimizer, 0, in_backward=True, rounding=False) if in_backward else None
    run = NullRun(Path(tempfile.gettempdir()))
    trainer = Trainer(method, optimizer, schedule, Objective(), settings, run, updates)
    if swapped:
        trainer.swap = BlockSwap(list(model.layers), swapped, torch.device("cpu"), RING, trained)
    return trainer


def moved(name: str, trained: Trained | None, swapped: int) -> str:
    """The third update's: the ring is full when it begins."""
    trainer = _narrow(trained, swapped)
    batch = Batch(torch.randn(1, 16, 8, 8), [torch.randn(32, NARROW.cap_feat_dim)], ["x"], [0])

    def counts() -> tuple[int, int, int]:
        swap, away = trainer.swap, trainer.passes.boundaries
        sent = away.bytes_moved if away else 0
        return (len(swap.loads), swap.bytes_returned, sent) if swap else (0, 0, sent)

    for _ in range(2):
        trainer.update([batch])
    before = counts()
    trainer.update([batch])
    loads, returned, sent = (now - then for now, then in zip(counts(), before, strict=True))
    with torch.device("meta"):
        block = stored_bytes(ZImageTransformer(CONFIG).to(torch.bfloat16).layers[0])
    back = returned / stored_bytes(ZImageTransformer(NARROW).layers[0])
    rows = sent / (48 * NARROW.dim * 4)  # 16 tokens of picture and 32 of caption
    gigabytes = ((loads + back) * block + rows * TOKENS * CONFIG.dim * 2) / 1e9
    return f"| {name} | {loads} | {back:.1f} | {gigabytes:.2f} GB |"


def main(page: Path | None) -> None:
    table = [HEADER]
    for mode in MODES:
        table.append(row(mode))
        print(table[-1], flush=True)
    moves = [MOVES]
    for name, trained, swapped in MOVING:
        moves.append(moved(name, trained, swapped))
        print(moves[-1], flush=True)
    if page is not None:
        text = TEXT_OF_SECTION.format(
            section=SECTION, when=time.strftime("%Y-%m-%d"), torch=torch.__version__, pixels=PIXELS, text=TEXT,
            table="\n".join(table), moves="\n".join(moves),
        )  # fmt: skip
        put_section(page, SECTION, text)
