"""Finetunes of the tiny model: updates in the backward pass, weights that stay, and what is refused."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import finetune_config

from zimage_gui import cli
from zimage_gui.engine.methods import FullMethod
from zimage_gui.engine.train import check, run
from zimage_gui.errors import UserError
from zimage_gui.events import Note, NullRun, Step, Warning
from zimage_gui.model.weights import load_transformer


def train(config, folder: Path) -> tuple[NullRun, list[Path]]:
    reporter = NullRun(folder)
    return reporter, run(config, reporter)


def texts(reporter: NullRun, kind: type) -> str:
    return "\n".join(event.text for event in reporter.events if isinstance(event, kind))


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
def test_updates_in_the_backward_pass_change_no_bit_of_losses_and_weights(project: Path, optimizer: str) -> None:
    options = {"optimizer_type": optimizer, "max_grad_norm": 0.0, "save_precision": "fp32", "lr_scheduler": "linear"}
    plain, fused = (
        train(finetune_config(project, output_name=f"f{on}", fused_backward_pass=on, gradient_checkpointing=on, **options), project)
        for on in (False, True)
    )  # fmt: skip
    losses, norms = (
        [[getattr(event, what) for event in reporter.events if isinstance(event, Step)] for reporter in (plain[0], fused[0])]
        for what in ("loss", "grad_norm")
    )  # fmt: skip
    assert losses[0] == losses[1] and equal(plain[1][-1], fused[1][-1])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and min(norms[0]) > 0


def test_the_first_seeds_command_line_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = project / "dataset.toml"
    dataset.write_text(
        f"[general]\nresolution = 32\ncaption_extension = '.txt'\n[[datasets]]\nimage_directory = {str(project / 'pictures')!r}\n",
        encoding="utf-8",
    )
    models = project / "models"
    line = f"""
    finetune --num_cpu_threads_per_process 1
    --dit '{models / "dit.safetensors"}' --vae '{models / "vae.safetensors"}' --text_encoder '{models / "te.safetensors"}'
    --dataset_config '{dataset}'
    --sdpa --mixed_precision bf16 --gradient_checkpointing
    --optimizer_type adafactor --learning_rate 1e-6 --fused_backward_pass
    --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"
    --max_grad_norm 0 --lr_scheduler constant_with_warmup --lr_warmup_steps 10
    --max_data_loader_n_workers 2 --persistent_data_loader_workers
    --max_train_epochs 2 --save_every_n_epochs 1 --seed 42
    --output_dir '{project / "out"}' --output_name name-of-model --runs_dir '{project / "runs"}'
    """
    assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
    saved = sorted(path.name for path in (project / "out").glob("*.safetensors"))
    assert saved == ["name-of-model-000001.safetensors", "name-of-model.safetensors"]


PATTERNS = {"train_patterns": (r"layers\.1", "all_final_layer"), "freeze_patterns": (r".*norm.*", r".*\.w3\.weight")}


@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_frozen_weights_are_in_the_file_as_they_were_and_nowhere_in_the_state(project: Path, layout: str) -> None:
    config = finetune_config(
        project, save_layout=layout, save_precision="fp32", save_state=True, fused_backward_pass=True, **PATTERNS
    )
    _, results = train(config, project)
    before = dict(load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32).named_parameters())
    after = dict(load_transformer(results[-2], dtype=torch.float32).named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {
        name for name in before
        if name.startswith(("layers.1.", "all_final_layer.")) and "norm" not in name and "w3" not in name
    }  # fmt: skip
    assert changed == wanted
    state = load_file(results[-1] / "weights.safetensors")
    assert {name.removeprefix("weights.") for name in state} == wanted
    kept = {name.split(".")[3] for name in load_file(results[-1] / "trainer.safetensors") if ".state." in name}
    assert len(kept) == len(wanted)


def test_nothing_below_the_first_trained_block_has_a_gradient_or_a_graph(project: Path) -> None:
    model = load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32)
    frozen = frozenset(name for name, _ in model.named_parameters() if not name.startswith("layers.1."))
    method = FullMethod(model, frozen=frozen)
    assert not method.trains_embedding and len(method.parameters()) == len(method.named_parameters()) > 0
    inputs: list[bool] = []
    for block in model.layers:
        block.register_forward_hook(lambda _, given, out: inputs.extend((given[0].requires_grad, out.requires_grad)))
    model(torch.randn(1, 16, 4, 4), torch.tensor([0.5]), [torch.randn(5, 16)]).square().mean().backward()
    assert inputs == [False, False, False, True]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(method.named_parameters())


@pytest.mark.parametrize(
    ("options", "option", "part"),
    [
        ({"train_patterns": ("layers.9",)}, "train_patterns", "matches no weight"),
        ({"freeze_patterns": ("layer",)}, "freeze_patterns", "matches no weight"),
        ({"freeze_patterns": (".*",)}, "freeze_patterns", "leaves no weight"),
        (
            {"fused_backward_pass": True, "gradient_accumulation_steps": 2},
            "fused_backward_pass",
            "gradient_accumulation_steps to 1",
        ),
        ({"fused_backward_pass": True, "mixed_precision": "fp16"}, "fused_backward_pass", "fp16 overflowed"),
        (
            {"fused_backward_pass": True, "optimizer_type": "test_updates.Joint"},
            "fused_backward_pass",
            "all gradients together",
        ),
        (
            {"full_bf16": True, "mixed_precision": "bf16", "optimizer_type": "test_updates.Joint"},
            "stochastic_rounding",
            "all gradients together",
        ),
    ],
)
def test_what_cannot_go_together_is_one_sentence(project: Path, options: dict, option: str, part: str) -> None:
    problems = check(finetune_config(project, **options))
    assert [problem.option for problem in problems] == [option] and part in problems[0].sentence()


def test_lost_updates_and_clipping_by_tensor_are_told(project: Path) -> None:
    options = {"max_train_steps": 1, "full_bf16": True, "mixed_precision": "bf16"}
    reporter, _ = train(finetune_config(project, stochastic_rounding=False, **options), project)
    assert "loses every update" in texts(reporter, Warning)
    reporter, _ = train(finetune_config(project, fused_backward_pass=True, max_grad_norm=0.5, **options), project)
    assert "loses" not in texts(reporter, Warning) and "each weight tensor by itself" in texts(reporter, Note)


def test_a_resumed_run_keeps_the_weights_that_its_state_has(project: Path) -> None:
    _, results = train(finetune_config(project, save_state=True, **PATTERNS), project)
    again = finetune_config(project, resume=results[-1], max_train_steps=6, train_patterns=PATTERNS["train_patterns"])
    with pytest.raises(UserError, match="is not in the state"):
        train(again, project)
