"""Finetunes of the tiny model: updates in the backward pass, weights that stay, and what is refused."""

import json
import shlex
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import TRANSFORMER, finetune_config, randomise
from torch.utils._python_dispatch import TorchDispatchMode

from zimage_gui import cli
from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import FullMethod
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.train import check, run
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.engine.updates import SingleUpdates
from zimage_gui.errors import UserError
from zimage_gui.events import Note, NullRun, Step, Warning
from zimage_gui.model.saving import transformer_settings
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import load_transformer


def train(config, folder: Path) -> tuple[NullRun, list[Path]]:
    reporter = NullRun(folder)
    return reporter, run(config, reporter)


def texts(reporter: NullRun, kind: type) -> str:
    return "\n".join(event.text for event in reporter.events if isinstance(event, kind))


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_updates_in_the_backward_pass_change_no_bit_of_losses_and_weights(project: Path) -> None:
    options = {"max_grad_norm": 0.0, "save_precision": "fp32", "lr_scheduler": "linear"}
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


def read_elsewhere(path: Path, layout: str, expected: dict[str, torch.Tensor]) -> None:
    """diffusers loads the one layout strictly; the other has ComfyUI's names with q, k and v in one."""
    if layout == "comfy":
        stored = load_file(path)
        fused = torch.cat([expected[f"layers.0.attention.to_{part}.weight"] for part in "qkv"])
        assert torch.equal(stored["layers.0.attention.qkv.weight"], fused) and not any(
            "to_q" in name for name in stored
        )
        assert torch.equal(stored["final_layer.linear.weight"], expected["all_final_layer.2-1.linear.weight"])
        return
    from diffusers import ZImageTransformer2DModel

    folder = path.parent / "transformer"
    folder.mkdir()
    shutil.copy(path, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(transformer_settings(TRANSFORMER)), encoding="utf-8")
    theirs = ZImageTransformer2DModel.from_pretrained(folder).state_dict()
    assert set(theirs) == set(expected) and all(torch.equal(theirs[name], expected[name]) for name in theirs)


PATTERNS = {
    "train_patterns": (r"layers\.1", "all_final_layer"),
    "freeze_patterns": (r".*norm.*", r".*\.w3\.weight"),
}


class Counted:
    """A trainer of the tiny model, as a run builds it, and the bytes of gradients that live at once."""

    def __init__(self, dtype: torch.dtype, autocast: torch.dtype | None, fused: bool, folder: Path) -> None:
        torch.manual_seed(3)
        model = ZImageTransformer(TRANSFORMER)
        randomise(model, 1)
        self.method = FullMethod(model.to(dtype), autocast)
        self.parameters = self.method.parameters()
        self.live: list[int] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._count)
        optimizer = build_optimizer("AdamW", [], 1e-3, self.parameters)
        rounding = dtype is torch.bfloat16
        updates = (
            SingleUpdates(optimizer, 0, in_backward=fused, rounding=rounding) if fused or rounding else None
        )
        settings = LoopSettings(0, 9, 1, max_grad_norm=0.0, gradient_checkpointing=True)
        schedule = build_schedule(ScheduleSpec(), optimizer, 9)
        self.trainer = Trainer(
            self.method, optimizer, schedule, Objective(), settings, NullRun(folder), updates
        )

    def _count(self, _: torch.Tensor) -> None:
        self.live.append(sum(p.grad.nbytes for p in self.parameters if p.grad is not None))

    def trained(self) -> "Counted":
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            captions = [torch.randn(length, 16, generator=generator) for length in (3, 9)]
            self.trainer.update(
                [Batch(torch.randn(2, 16, 4, 6, generator=generator), captions, ["x", "y"], [0, 1])]
            )
        return self


FORMATS = {
    "fp32": (torch.float32, None),
    "mixed": (torch.float32, torch.bfloat16),
    "bf16": (torch.bfloat16, None),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_one_gradient_at_a_time_gives_the_same_bits_in_every_format(tmp_path: Path, kind: str) -> None:
    plain, fused = (Counted(*FORMATS[kind], fused, tmp_path).trained() for fused in (False, True))
    assert max(fused.live) <= max(parameter.nbytes for parameter in fused.parameters)
    assert max(plain.live) == sum(parameter.nbytes for parameter in plain.parameters)
    assert all(torch.equal(*pair) for pair in zip(plain.parameters, fused.parameters, strict=True))
    assert list(plain.trainer.progress.losses) == list(fused.trainer.progress.losses)


class CopiesAlive(TorchDispatchMode):
    """The most bytes of bf16 copies of these weights that lived at once."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights, self.copies, self.most = {weight.data_ptr() for weight in weights}, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.copies.append(weakref.ref(out))
            self.most = max(self.most, sum(copy().nbytes for copy in self.copies if copy() is not None))
        return out


def test_mixed_precision_with_checkpointing_holds_copies_of_one_blocks_weights(tmp_path: Path) -> None:
    counted = Counted(*FORMATS["mixed"], True, tmp_path)
    blocks = counted.method.model.layers
    batch = Batch(torch.randn(1, 16, 4, 4), [torch.randn(5, 16)], ["x"], [0])
    with CopiesAlive(list(blocks.parameters())) as alive:
        loss = counted.trainer.passes.loss(batch, 0)
    assert loss.requires_grad and len(alive.copies) > len(blocks)
    assert 0 < alive.most <= sum(2 * parameter.numel() for parameter in blocks[0].parameters())


def test_time_and_loss_stay_fp32_where_everything_else_is_bf16(tmp_path: Path) -> None:
    counted = Counted(torch.bfloat16, None, True, tmp_path)
    seen: list[torch.Tensor] = []
    counted.method.model.t_embedder.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    batch = Batch(torch.randn(1, 16, 4, 4), [torch.randn(5, 16)], ["x"], [0])
    assert counted.trainer.passes.loss(batch, 0).dtype is torch.float32
    assert [tensor.dtype for tensor in seen] == [torch.float32, torch.bfloat16]
    assert not torch.equal(seen[0], seen[0].bfloat16().float())


def test_a_state_fits_with_and_without_updates_in_the_backward_pass(project: Path) -> None:
    options = {"max_grad_norm": 0.0, "save_precision": "fp32", "save_every_n_steps": 2, "save_state": True}
    _, straight = train(finetune_config(project, output_name="straight", **options), project)
    state = project / "out" / "straight-step00000002-state"
    other = finetune_config(project, output_name="other", resume=state, fused_backward_pass=True, **options)
    reporter, resumed = train(other, project)
    assert equal(straight[-2], resumed[-2]) and "fused_backward_pass was False" in texts(reporter, Warning)
    with pytest.raises(UserError, match="full_bf16"):
        train(other.model_copy(update={"full_bf16": True, "mixed_precision": "bf16"}), project)


@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_frozen_weights_are_in_the_file_as_they_were_and_nowhere_in_the_state(
    project: Path, layout: str
) -> None:
    config = finetune_config(
        project,
        save_layout=layout,
        save_precision="fp32",
        save_state=True,
        fused_backward_pass=True,
        **PATTERNS,
    )
    _, results = train(config, project)
    before = dict(
        load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32).named_parameters()
    )
    after = dict(load_transformer(results[-2], dtype=torch.float32).named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {
        name for name in before
        if name.startswith(("layers.1.", "all_final_layer.")) and "norm" not in name and "w3" not in name
    }  # fmt: skip
    assert changed == wanted
    read_elsewhere(results[-2], layout, after)
    state = load_file(results[-1] / "weights.safetensors")
    assert {name.removeprefix("weights.") for name in state} == wanted
    kept = {
        name.split(".")[3] for name in load_file(results[-1] / "trainer.safetensors") if ".state." in name
    }
    assert len(kept) == len(wanted)


def test_nothing_below_the_first_trained_block_has_a_gradient_or_a_graph(project: Path) -> None:
    model = load_transformer(project / "models" / "dit.safetensors", dtype=torch.float32)
    frozen = frozenset(name for name, _ in model.named_parameters() if not name.startswith("layers.1."))
    method = FullMethod(model, frozen=frozen)
    assert not method.trains_embedding and len(method.parameters()) == len(method.named_parameters()) > 0
    inputs: list[bool] = []
    for block in model.layers:
        block.register_forward_hook(
            lambda _, given, out: inputs.extend((given[0].requires_grad, out.requires_grad))
        )
    model(torch.randn(1, 16, 4, 4), torch.tensor([0.5]), [torch.randn(5, 16)]).square().mean().backward()
    assert inputs == [False, False, False, True]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(
        method.named_parameters()
    )


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
        (
            {"shard_weights": True, "gpus": "2", "optimizer_type": "Prodigy"},
            "shard_weights",
            "all gradients together",
        ),
        (
            {"full_bf16": True, "mixed_precision": "bf16", "optimizer_type": "AdamWScheduleFree"},
            "stochastic_rounding",
            "all gradients together",
        ),
    ],
)
def test_what_cannot_go_together_is_one_sentence(
    project: Path, options: dict, option: str, part: str
) -> None:
    problems = check(finetune_config(project, **options))
    assert [problem.option for problem in problems] == [option] and part in problems[0].sentence()


def test_lost_updates_and_clipping_by_tensor_are_told(project: Path) -> None:
    options = {"max_train_steps": 1, "full_bf16": True, "mixed_precision": "bf16"}
    reporter, _ = train(finetune_config(project, stochastic_rounding=False, **options), project)
    assert "loses every update" in texts(reporter, Warning)
    reporter, _ = train(
        finetune_config(project, fused_backward_pass=True, max_grad_norm=0.5, **options), project
    )
    assert "loses" not in texts(reporter, Warning) and "each weight tensor by itself" in texts(reporter, Note)


def test_a_resumed_run_keeps_the_weights_that_its_state_has(project: Path) -> None:
    _, results = train(finetune_config(project, save_state=True, **PATTERNS), project)
    again = finetune_config(
        project, resume=results[-1], max_train_steps=6, train_patterns=PATTERNS["train_patterns"]
    )
    with pytest.raises(UserError, match="is not in the state"):
        train(again, project)
