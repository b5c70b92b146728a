"""Ways to save memory that change no number: swapped blocks, checkpointed inputs on the CPU."""

from pathlib import Path

import pytest
import torch
from run_helpers import equal, train
from safetensors.torch import load_file
from tiny_project import TRANSFORMER, finetune_config, lora_config

from zimage_gui.config.build import build, read
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.engine import generate
from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import LoraMethod
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.train import check
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.errors import UserError
from zimage_gui.events import Note, NullRun
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.transformer import ZImageTransformer

MODES = {
    "swapped": {"blocks_to_swap": 2},
    "swapped and recomputed": {"blocks_to_swap": 2, "gradient_checkpointing": True},
    "swapped one by one": {"blocks_to_swap": 1, "block_swap_ring_size": 1, "gradient_checkpointing": True},
    "inputs on the CPU": {"gradient_checkpointing": True, "gradient_checkpointing_cpu_offload": True},
    "half of them computed twice": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_fraction": "0.5",
    },
    "as many as there is room for": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_fraction": "auto",
    },
    "all": {
        "blocks_to_swap": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_cpu_offload": True,
        "base_quant": "int8",
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_a_run_in_less_memory_ends_bit_for_bit_as_without_and_so_does_a_resumed_one(
    project: Path, mode: str
) -> None:
    options = MODES[mode]
    same = {name: options[name] for name in ("gradient_checkpointing", "base_quant") if name in options}
    prompts = project / "prompts.txt"
    prompts.write_text("a red picture --w 32 --h 32 --s 2\n", encoding="utf-8")
    same |= {"sample_prompts": prompts, "sample_every_n_steps": 2}
    plain = train(lora_config(project, output_name="plain", **same))[1]
    reporter, saving = train(lora_config(project, output_name="saving", **options | same))
    assert equal(plain[-1], saving[-1])
    stopped = train(lora_config(project, output_name="part", **options | same), stop_at=2)[1]
    resumed = train(lora_config(project, output_name="part", resume=stopped[-1], **options | same))[1]
    assert equal(plain[-1], resumed[-1])
    notes = [event.text for event in reporter.events if isinstance(event, Note)]
    assert any("wait in CPU memory" in text for text in notes) == ("blocks_to_swap" in options)
    assert any("memory at the fullest" in text and "RAM" in text for text in notes)
    assert any(text.startswith("memory at the fullest: estimated") and "really" in text for text in notes)
    told = any("0 of 2 blocks are computed twice" in text for text in notes)
    assert told == (options.get("gradient_checkpointing_fraction") == "auto")


FINETUNES = {
    "updated while there": {"fused_backward_pass": True, "optimizer_type": "Adafactor"},
    "updated while there, recomputed": {
        "fused_backward_pass": True,
        "full_bf16": True,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "block_swap_ring_size": 1,
    },
    "updated at home": {"gradient_accumulation_steps": 2, "max_train_steps": 3},
    "averaged": {"ema_decay": 0.9, "validation_split": 0.2, "validate_every_n_steps": 1},
    "averaged, updated while there": {
        "ema_decay": 0.9,
        "fused_backward_pass": True,
        "gradient_checkpointing": True,
    },
    "partly frozen": {"freeze_patterns": (r"layers\.0",), "gradient_checkpointing": True},
}


@pytest.mark.parametrize("mode", FINETUNES)
def test_swapped_weights_are_trained_bit_for_bit_as_without_and_so_are_resumed_ones(
    project: Path, mode: str
) -> None:
    options = {"save_state_on_train_end": True} | FINETUNES[mode]
    swapping = options | {"blocks_to_swap": 2}
    plain_options = {name: value for name, value in options.items() if name != "block_swap_ring_size"}
    plain = train(finetune_config(project, output_name="plain", **plain_options))[1]
    saving = train(finetune_config(project, output_name="saving", **swapping))[1]
    stopped = train(finetune_config(project, output_name="part", **swapping), stop_at=2)[1]
    resumed = train(finetune_config(project, output_name="part", resume=stopped[-1], **swapping))[1]
    for other in (saving, resumed):
        for one, two in zip(_files(plain), _files(other), strict=True):
            assert equal(one, two)


def _files(results: list[Path]) -> list[Path]:
    """The model and all of its state at the end: optimizer, weights, random numbers."""
    model = next(path for path in reversed(results) if path.suffix == ".safetensors")
    state = next(path for path in reversed(results) if path.is_dir())
    return [model, *sorted(state.glob("*.safetensors"))]


def test_the_inputs_of_all_blocks_but_the_last_go_away_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ZImageTransformer(TRANSFORMER)
    method = LoraMethod(model, attach_lora(model, LoraSpec(dim=2)))
    optimizer = build_optimizer("AdamW", [], 1e-4, method.parameters())
    settings = LoopSettings(0, 1, 1, gradient_checkpointing=True, gradient_checkpointing_cpu_offload=True)
    schedule = build_schedule(ScheduleSpec(), optimizer, 1)
    trainer = Trainer(method, optimizer, schedule, Objective(), settings, NullRun(tmp_path))
    trainer.update([Batch(torch.randn(1, 16, 8, 8), [torch.randn(20, 16)], ["x"], [0])])
    tokens = 32 + 32
    assert trainer.passes.boundaries is not None
    assert trainer.passes.boundaries.bytes_moved == 2 * tokens * TRANSFORMER.dim * 4 * (TRANSFORMER.n_layers - 1)


def test_what_cannot_be_is_refused_with_the_way_out(project: Path) -> None:
    (problem,) = check(lora_config(project, blocks_to_swap=3))
    assert "more than the 2 blocks" in problem.sentence() and problem.remedy == "Give at most 2"
    (problem,) = check(
        finetune_config(project, gradient_checkpointing=False, gradient_checkpointing_cpu_offload=True)
    )
    assert "needs gradient_checkpointing" in problem.sentence()
    (problem,) = check(
        lora_config(project, gradient_checkpointing=False, gradient_checkpointing_fraction="auto")
    )
    assert "needs gradient_checkpointing" in problem.sentence()
    with pytest.raises(UserError, match="from 0 to 1, or auto"):
        build(FinetuneConfig, {"gradient_checkpointing_fraction": "1.5"})
    (problem,) = check(finetune_config(project, blocks_to_swap=3))
    assert "more than the 2 blocks" in problem.sentence()
    for name, value, why in (
        ("mixed_precision", "fp16", "gradients of fp16"),
        ("compile_mode", "reduce-overhead", "CUDA graphs"),
    ):
        with pytest.raises(UserError, match=why):
            build(
                FinetuneConfig,
                {"dit": "a", "dataset": "b", "blocks_to_swap": 2, "compile": True, name: value},
            )


def test_the_first_seeds_switches_around_swapping_are_accepted_with_the_reason() -> None:
    given = [
        ("use_pinned_memory_for_block_swap", True),
        ("block_swap_h2d_only", True),
        ("blocks_to_swap", "28"),
    ]
    found = read(TrainLoraConfig, given, None)
    assert not found.problems and found.values == {"blocks_to_swap": "28"}
    assert "always go one way" in "\n".join(found.notes)


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_pictures_of_a_swapped_model_are_the_same_with_a_lora_and_without(
    project: Path, tmp_path: Path, quant: str
) -> None:
    models = {"dit": "dit", "vae": "vae", "text_encoder": "te"}
    paths = {name: project / "models" / f"{file}.safetensors" for name, file in models.items()}
    torch.manual_seed(3)
    lora = tmp_path / "l.safetensors"
    write_lora(lora, {"layers.0.attention.to_q": LowRank(torch.randn(2, 32), torch.randn(32, 2), 2.0)})

    def latents(resident: generate.Resident, **options: object) -> torch.Tensor:
        values = {"prompt": "a red picture", "image_size": (32, 32), "infer_steps": 2, "seed": 1}
        values |= {"mixed_precision": "no", "device": "cpu", "output_type": "latent", "base_quant": quant}
        (file,) = resident.run(GenerateConfig(**values | paths | options), NullRun(tmp_path / "run"))
        return load_file(file)["latent"].clone()

    plain, swapped = generate.Resident(), generate.Resident()
    for loras in ((), (lora,), ()):
        wanted = latents(plain, lora_weight=loras)
        found = latents(swapped, lora_weight=loras, blocks_to_swap=2)
        # a swapped block computes its modulation at each step, the others that of the whole schedule at once
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="more than the 2 blocks"):
        latents(plain, blocks_to_swap=5)
