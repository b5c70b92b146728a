"""The memory estimate against what a counter finds in real steps, and what it says of the released model."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from meta_step import quantised

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import memory

from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.engine.finetuning import updates_of
from zimage_gui.engine.frozen import frozen_names
from zimage_gui.engine.loader import Batch as LoadedBatch
from zimage_gui.engine.memory_estimate import GIB, Batch, Workload, estimate, least_recomputed
from zimage_gui.engine.memory_models import ModelSizes
from zimage_gui.engine.memory_sizes import LARGEST_TABLE, NUMBER_BYTES
from zimage_gui.engine.memory_steps import STATES, recomputed_blocks
from zimage_gui.engine.methods import FullMethod, LoraMethod, Method
from zimage_gui.engine.networks import build_network
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizer_extras import set_training
from zimage_gui.engine.optimizers import OptimizerError, build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.events import NullRun
from zimage_gui.model import attention
from zimage_gui.model.quantise import bytes_per_number
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

TINY = TransformerConfig(dim=256, n_layers=4, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
OWN_LARGEST_TABLE = attention._LARGEST_TABLE
MOVING = ("optimizer", "gradients", "activations")
REAL = ModelSizes()
SQUARE = Workload(Batch(1024, 1024, 128, 1))


@pytest.fixture(autouse=True)
def torchs_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. A CPU trains small half-precision models with a table of attention weights instead."""
    monkeypatch.setattr(attention, "_LARGEST_TABLE", 0)


def counted(config: Any, shape: TransformerConfig, batch: Batch, folder: Path) -> int:
    """The most that two updates hold beside the weights."""
    torch.manual_seed(0)
    config = config.model_copy(update={"seed": 0})
    lora = isinstance(config, TrainLoraConfig)
    low = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    dtype = low if lora or config.full_bf16 else torch.float32
    model = ZImageTransformer(shape).to(dtype)
    method: Method
    if lora:
        if config.base_quant != "none":
            quantised(model, config.base_quant)
        method = LoraMethod(model, build_network(model, config, NullRun(folder)))
    else:
        frozen = frozen_names(config, dict(model.named_parameters()))
        method = FullMethod(model, None if dtype is low else low, frozen=frozen)
    optimizer = build_optimizer(config.optimizer_type, [], 1e-4, method.parameters())
    settings = LoopSettings(
        0, 2, 1, gradient_checkpointing=config.gradient_checkpointing,
        recomputed_blocks=recomputed_blocks(config, shape.n_layers),
    )  # fmt: skip
    schedule = build_schedule(ScheduleSpec(), optimizer, 2)
    updates = updates_of(config, optimizer)
    trainer = Trainer(method, optimizer, schedule, Objective(), settings, NullRun(folder), updates)
    latents = torch.randn(batch.count, 16, batch.height // 8, batch.width // 8)
    captions = [torch.randn(batch.text, shape.cap_feat_dim, dtype=low) for _ in range(batch.count)]
    loaded = LoadedBatch(latents, captions, ["x"] * batch.count, list(range(batch.count)))
    with LiveBytes() as made:
        for _ in range(2):
            trainer.update([loaded] * config.gradient_accumulation_steps)
    return made.peak


def moving(config: Any, batch: Batch, device: str) -> float:
    found = estimate(config, ModelSizes(config=TINY), Workload(batch), device)
    return sum(found.training[name] for name in MOVING)


def lora(**options: Any) -> TrainLoraConfig:
    return TrainLoraConfig(**options)


def full(**options: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"full_bf16": True} | options)


@pytest.mark.parametrize(
    "config",
    [
        lora(gradient_checkpointing=False),
        lora(gradient_checkpointing_fraction="0.5"),
        full(fused_backward_pass=True),
        full(optimizer_type="AdamW", gradient_accumulation_steps=2, gradient_checkpointing=False),
        lora(network_module="dora", gradient_checkpointing=False),
        full(train_patterns=(r"layers\.3",)),
        *(
            pytest.param(config, marks=pytest.mark.slow)
            for config in (
                lora(),
                lora(mixed_precision="no", gradient_checkpointing=False),
                full(gradient_checkpointing=False),
                full(fused_backward_pass=True, gradient_checkpointing=False),
                full(full_bf16=False, optimizer_type="AdamW"),
                full(freeze_patterns=(r"layers\.[0-2]",)),
                full(train_patterns=(r"layers\.\d+\.attention\..*",), optimizer_type="AdamW"),
                lora(network_module="lokr", gradient_checkpointing=False),
                lora(network_module="loha"),
                lora(base_quant="int8"),
                lora(base_quant="nf4", gradient_checkpointing=False),
                lora(include_patterns=(r".*",)),
            )
        ),
    ],
    ids=lambda config: " ".join(str(value) for value in config.model_dump(exclude_defaults=True).values()),
)
def test_the_estimate_of_a_step_is_within_a_tenth_of_what_is_counted(config: Any, tmp_path: Path) -> None:
    batch = Batch(256, 256, 32, 1)
    assert moving(config, batch, "cuda") == pytest.approx(counted(config, TINY, batch, tmp_path), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("recomputing", [True, False])
def test_the_table_of_attention_weights_that_a_cpu_keeps_in_half_precision_counts(
    recomputing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_LARGEST_TABLE", LARGEST_TABLE)
    batch, config = Batch(256, 320, 32, 1), lora(gradient_checkpointing=recomputing)
    found = counted(config, TINY, batch, tmp_path)
    assert moving(config, batch, "cpu") == pytest.approx(found, rel=0.1)
    assert recomputing or moving(config, batch, "cuda") < 0.93 * found


def test_the_table_is_as_large_as_attention_lets_it_be() -> None:
    assert OWN_LARGEST_TABLE == LARGEST_TABLE


def test_processes_that_share_out_the_weights_need_their_share_and_a_few_whole_blocks() -> None:
    one, two, many = (
        estimate(
            full(gpus=gpus, shard_weights=bool(gpus)),
            ModelSizes(),
            Workload(Batch(1024, 1024, 128, 1)),
            "cuda",
        ).training
        for gpus in ("", "2", "8")
    )
    for part in ("transformer", "optimizer", "gradients"):
        assert (two[part], many[part]) == (one[part] / 2, one[part] / 8)
    assert one["activations"] == two["activations"] and "blocks while they are whole" not in one
    assert two["blocks while they are whole"] == many["blocks while they are whole"] < one["transformer"] / 4


@pytest.mark.parametrize("mode", memory.MODES, ids=lambda mode: mode.name)
def test_so_it_is_at_the_released_models_width(mode: memory.Mode, tmp_path: Path) -> None:
    """The whole model: `python -m tests.benchmarks memory`."""
    batch, shape = Batch(1024, 1024, 128, 2), TransformerConfig(n_layers=3, n_refiner_layers=1)
    found = memory.counted(mode, shape, batch, tmp_path)
    assert memory.expected(mode, shape, batch) == pytest.approx(found, rel=0.1)


def test_numbers_of_models_are_those_of_the_released_ones() -> None:
    assert REAL.transformer.all == 6_154_908_736
    assert REAL.text_encoder.all == pytest.approx(3.92e9, rel=0.01)


@pytest.mark.parametrize("quant", ["fp8", "int8", "nf4"])
def test_bytes_of_a_quantised_number_are_those_of_the_layer(quant: Any) -> None:
    assert NUMBER_BYTES[quant] == bytes_per_number(quant, torch.bfloat16)


@pytest.mark.parametrize("name", [name for name in STATES if not name.startswith("paged")])
def test_bytes_of_an_optimizers_state_are_what_it_makes(name: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(128, 512))
    try:
        optimizer = build_optimizer(name, ["momentum=0.9"] if name == "sgd" else [], 1e-3, [parameter])
        set_training(optimizer)
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    except (OptimizerError, RuntimeError, NotImplementedError) as error:
        pytest.skip(f"{name} is not to be had here: {error}")
    kept = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    size = sum(value.numel() * value.element_size() for value in kept if value.numel() > 256)
    assert STATES[name] == pytest.approx(size / parameter.numel(), abs=0.2)


def test_every_saving_option_saves_where_it_should() -> None:
    peaks = [
        estimate(lora(**options), REAL, SQUARE, "cuda").peak / GIB
        for options in (
            {"gradient_checkpointing": False},
            {"gradient_checkpointing_fraction": "0.5"},
            {},
            {"base_quant": "int8"},
            {"base_quant": "nf4"},
            {"base_quant": "nf4", "fp8_llm": True},
            {"base_quant": "nf4", "fp8_llm": True, "blocks_to_swap": 28},
        )
    ]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 24 and 12 < peaks[2] < 16 and peaks[-1] < 6


def test_a_finetune_with_swapped_blocks_keeps_their_gradients_and_states_in_ram() -> None:
    plain, swapped = (
        estimate(full(optimizer_type="AdamW", blocks_to_swap=count), REAL, SQUARE, "cuda")
        for count in (0, 30)
    )
    assert swapped.peak < 0.3 * plain.peak and swapped.ram_peak > 0.8 * plain.peak


def test_auto_takes_the_least_recomputation_that_fits() -> None:
    config = lora(gradient_checkpointing_fraction="auto")
    counts = [least_recomputed(config, REAL, SQUARE, "cuda", free * GIB) for free in (80, 20, 16, 1)]
    assert counts[0] == 0 < counts[1] < counts[2] < counts[3] == 29
    share = lora(gradient_checkpointing_fraction=str(counts[1] / 30))
    fewer = lora(gradient_checkpointing_fraction=str((counts[1] - 1) / 30))
    assert estimate(share, REAL, SQUARE, "cuda").peak <= 20 * GIB
    assert estimate(fewer, REAL, SQUARE, "cuda").peak > 20 * GIB


def test_on_a_cpu_what_waits_in_ram_is_part_of_the_same_memory() -> None:
    config = lora(blocks_to_swap=20, base_quant="int8", sample_prompts=Path("prompts.txt"))
    gpu, cpu = (estimate(config, REAL, SQUARE, device) for device in ("cuda", "cpu"))
    assert cpu.training["swapped blocks"] > 3 * GIB and "swapped blocks" not in gpu.training
    assert {"program"} <= cpu.ram.keys() and "swapped blocks" not in cpu.ram
    block = cpu.training["swapped blocks"] / 20
    assert gpu.ram["swapped blocks"] == 20 * 2 ** math.ceil(math.log2(block))  # torch pins powers of two
