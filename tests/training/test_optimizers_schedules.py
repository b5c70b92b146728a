"""Optimizers and schedules by name and by dotted path, and what is refused with a sentence."""

import math

import pytest
import torch

from zimage_gui.engine.optimizers import (
    OptimizerError,
    build_optimizer,
    check_optimizer,
    describe,
    parse_assignments,
)
from zimage_gui.engine.schedules import NAMES, ScheduleSpec, build_schedule, check_schedule


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(80, 80)), torch.nn.Parameter(torch.randn(8))]


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("AdamW", ["weight_decay=0.1", "betas=(0.9, 0.99)"], "torch.optim.adamw.AdamW"),
        ("adamw8bit", ["betas=0.9,0.95"], "bitsandbytes.optim.adamw.AdamW8bit"),
        ("Lion8bit", [], "bitsandbytes.optim.lion.Lion8bit"),
        ("Adafactor", [], "transformers.optimization.Adafactor"),
        (
            "adafactor",
            ["relative_step=True", "scale_parameter=True", "warmup_init=True"],
            "transformers.optimization.Adafactor",
        ),
        ("sgd", ["momentum=0.9"], "torch.optim.sgd.SGD"),
        ("torch.optim.RAdam", [], "torch.optim.radam.RAdam"),
    ],
)
def test_an_optimizer_is_built_by_name_takes_its_arguments_and_lowers_the_loss(name, arguments, kind) -> None:
    assert check_optimizer(name, arguments, 1e-2)[1] == []
    trained = parameters()
    optimizer = build_optimizer(name, arguments, 1e-2, trained)
    assert describe(optimizer, arguments) == kind + (f"({','.join(arguments)})" if arguments else "")
    for text, value in parse_assignments(arguments).items():
        assert optimizer.param_groups[0][text] == value
    losses = []
    for _ in range(12):
        loss = sum(parameter.square().mean() for parameter in trained)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_adamw8bit_really_keeps_eight_bit_states_on_the_cpu() -> None:
    trained = parameters()
    optimizer = build_optimizer("AdamW8bit", [], 1e-3, trained)
    sum(parameter.square().sum() for parameter in trained).backward()
    optimizer.step()
    assert optimizer.state[trained[0]]["state1"].dtype is torch.uint8


@pytest.mark.parametrize(
    ("name", "arguments", "option", "part"),
    [
        ("NoSuch", [], "optimizer_type", "torch.optim has no NoSuch"),
        ("Foo8bit", [], "optimizer_type", "bitsandbytes has no optimizer"),
        ("os.system", [], "optimizer_type", "not a subclass"),
        ("no_such_package.Adam", [], "optimizer_type", "cannot be imported"),
        ("torch.nn.Linear", [], "optimizer_type", "not a subclass"),
        ("torch.optim.Optimizer", [], "optimizer_type", "only the base class"),
        ("..AdamW", [], "optimizer_type", "begins with a dot"),
        ("LBFGS", [], "optimizer_type", "its step needs closure"),
        ("SparseAdam", [], "optimizer_type", "sparse gradients"),
        ("AdamW", ["momentum=1"], "optimizer_args", "refuses its arguments"),
        ("AdamW", ["betas=(0.9,"], "optimizer_args", "Python literal"),
        ("AdamW", ["weight_decay=__import__('os')"], "optimizer_args", "Python literal"),
        ("AdamW", ["weight decay=1"], "optimizer_args", "name=value"),
        ("AdamW", ["eps"], "optimizer_args", "name=value"),
        ("AdamW", ["lr=-1"], "optimizer_args", "refuses its arguments"),
    ],
)
def test_a_wrong_optimizer_is_refused_with_its_option_and_reason(name, arguments, option, part) -> None:
    _, problems = check_optimizer(name, arguments, 1e-3)
    assert [problem.option for problem in problems] == [option] and part in problems[0].sentence()


def test_an_optimizer_of_matrices_only_is_refused_where_vectors_are_trained() -> None:
    assert check_optimizer("Muon", [], 1e-3)[1] == []
    assert [problem.option for problem in check_optimizer("Muon", [], 1e-3, vectors=True)[1]] == [
        "optimizer_type"
    ]


def rates(total: int = 100, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(ScheduleSpec(**options), optimizer, total)  # type: ignore[arg-type]
    values = []
    for _ in range(total):
        values.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return values


def test_schedules_have_the_shape_their_name_says() -> None:
    assert set(rates()) == {1.0}
    warm = rates(lr_scheduler="constant_with_warmup", lr_warmup_steps=0.1)
    assert warm[0] == 0 and warm[5] == pytest.approx(0.5) and set(warm[10:]) == {1.0}
    linear = rates(lr_scheduler="linear", lr_warmup_steps=10)
    assert linear[10] == 1.0 and linear[55] == pytest.approx(0.5)
    assert rates(lr_scheduler="cosine")[50] == pytest.approx(0.5)
    restarts = rates(lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles=2)
    assert restarts[49] < 0.01 and restarts[50] == 1.0
    assert rates(lr_scheduler="polynomial", lr_scheduler_power=2.0)[50] == pytest.approx(0.25, abs=1e-3)
    assert rates(lr_scheduler="inverse_sqrt", lr_scheduler_timescale=1)[8] == pytest.approx(1 / 3)
    floor = rates(lr_scheduler="cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.2)
    assert min(floor) >= 0.2 and floor[50] == pytest.approx(0.6)
    stable = rates(
        lr_scheduler="warmup_stable_decay",
        lr_warmup_steps=0.1,
        lr_decay_steps=20,
        lr_scheduler_min_lr_ratio=0.1,
    )
    assert set(stable[10:80]) == {1.0} and stable[-1] < 0.2


def test_a_scheduler_by_dotted_path_takes_its_arguments() -> None:
    values = rates(lr_scheduler_type="StepLR", lr_scheduler_args=("step_size=10", "gamma=0.5"))
    assert values[9] == 1.0 and values[10] == 0.5 and values[99] == pytest.approx(0.5**9)
    assert values == rates(
        lr_scheduler_type="torch.optim.lr_scheduler.StepLR", lr_scheduler_args=("step_size=10", "gamma=0.5")
    )


def test_every_named_schedule_passes_its_check() -> None:
    for name in NAMES:
        arguments = ["relative_step=True"] if name == "adafactor" else []
        optimizer = build_optimizer("adafactor", arguments, 1.0, parameters())
        assert check_schedule(ScheduleSpec(lr_scheduler=name), optimizer) == [], name


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"lr_scheduler": "sideways"}, "lr_scheduler"),
        ({"lr_warmup_steps": 10}, "lr_warmup_steps"),
        ({"lr_scheduler": "adafactor"}, "lr_scheduler"),
        ({"lr_scheduler_type": "os.path.join"}, "lr_scheduler_type"),
        ({"lr_scheduler_type": "StepLR"}, "lr_scheduler_type"),
        ({"lr_scheduler_type": "ReduceLROnPlateau"}, "lr_scheduler_type"),
        ({"lr_scheduler_type": "LRScheduler"}, "lr_scheduler_type"),
        (
            {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ("max_lr=1", "total_steps=9")},
            "lr_scheduler_type",
        ),
        (
            {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ("step_size=9",), "lr_warmup_steps": 5},
            "lr_warmup_steps",
        ),
        ({"lr_scheduler_args": ("gamma=1",)}, "lr_scheduler_args"),
    ],
)
def test_a_wrong_schedule_is_refused(options, option) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    assert option in [problem.option for problem in check_schedule(ScheduleSpec(**options), optimizer, 10)]


def test_adafactor_with_relative_steps_reports_its_own_rate() -> None:
    trained = parameters()
    optimizer = build_optimizer("adafactor", ["relative_step=True"], 1e-3, trained)
    schedule = build_schedule(ScheduleSpec(), optimizer, 10)
    sum(parameter.square().mean() for parameter in trained).backward()
    optimizer.step()
    schedule.step()
    assert math.isfinite(schedule.get_last_lr()[0])


def test_arguments_are_literals_only() -> None:
    parsed = parse_assignments(["a=1e-3", "b=None", "c='x=y'", "d=(1, 2)", "e=True"])
    assert parsed == {"a": 1e-3, "b": None, "c": "x=y", "d": (1, 2), "e": True}
    with pytest.raises(OptimizerError, match="name=value"):
        parse_assignments(["=1"])
