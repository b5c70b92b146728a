"""Optimizers and schedules by name and by dotted path, and what is refused with a sentence."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from tiny_project import lora_config

from zimage_gui.engine.optimizer_extras import effective_rate, meant_weights, set_training
from zimage_gui.engine.optimizers import (
    OptimizerError,
    build_optimizer,
    check_optimizer,
    describe,
    parse_assignments,
)
from zimage_gui.engine.schedules import NAMES, ScheduleSpec, build_schedule, check_schedule
from zimage_gui.engine.train import check


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
        ("Prodigy", ["d0=1e-3"], "prodigyopt.prodigy.Prodigy"),
        ("AdamWScheduleFree", ["weight_decay=0.1"], "schedulefree.adamw_schedulefree.AdamWScheduleFree"),
        ("RAdamScheduleFree", [], "schedulefree.radam_schedulefree.RAdamScheduleFree"),
        ("SGDScheduleFree", [], "schedulefree.sgd_schedulefree.SGDScheduleFree"),
        ("lion", [], "lion_pytorch.lion_pytorch.Lion"),
        ("CAME", [], "came_pytorch.CAME.CAME"),
        ("Muon", ["momentum=0.9"], "zimage_gui.engine.optimizer_extras.MuonWithAdamW"),
    ],
)
def test_an_optimizer_is_built_by_name_takes_its_arguments_and_lowers_the_loss(name, arguments, kind) -> None:
    assert check_optimizer(name, arguments, 1e-2)[1] == []
    trained = parameters()
    optimizer = build_optimizer(name, arguments, 1e-2, trained)
    set_training(optimizer)
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
    path = "torch.optim.Muon"
    assert check_optimizer(path, [], 1e-3)[1] == []
    assert [problem.option for problem in check_optimizer(path, [], 1e-3, vectors=True)[1]] == [
        "optimizer_type"
    ]
    assert check_optimizer("Muon", [], 1e-3, vectors=True)[1] == []


def steps(
    optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter], count: int, look: bool
) -> None:
    for step in range(count):
        for number, parameter in enumerate(trained):
            parameter.grad = torch.cos(parameter.detach() * (step + 2) + number)
        optimizer.step()
        if look:
            with meant_weights(optimizer):
                pass


def test_muon_moves_matrices_as_torch_does_and_vectors_as_adamw_and_goes_on_from_its_state() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = build_optimizer("Muon", ["weight_decay=0.0"], 1e-2, ours)
    apart = (
        torch.optim.Muon(theirs[:1], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[1:], lr=1e-2, weight_decay=0.0),
    )
    steps(optimizer, ours, 3, look=False)
    for one, part in zip(apart, (theirs[:1], theirs[1:]), strict=True):
        for step in range(3):
            for parameter in part:
                parameter.grad = torch.cos(parameter.detach() * (step + 2) + (parameter.ndim == 1))
            one.step()
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    again = build_optimizer("Muon", ["weight_decay=0.0"], 1e-2, copies)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, part in ((optimizer, ours), (again, copies)):
        steps(one, part, 2, look=False)
    assert all(torch.equal(*pair) for pair in zip(ours, copies, strict=True))


def test_looking_at_the_weights_that_schedule_free_means_changes_nothing() -> None:
    looked, blind = parameters(), parameters()
    optimizers = [build_optimizer("AdamWScheduleFree", [], 1e-2, one) for one in (looked, blind)]
    for optimizer, trained, look in zip(optimizers, (looked, blind), (True, False), strict=True):
        set_training(optimizer)
        steps(optimizer, trained, 5, look)
    assert all(torch.equal(*pair) for pair in zip(looked, blind, strict=True))
    with meant_weights(optimizers[0]):
        assert not torch.equal(looked[0], blind[0])


def test_the_rate_told_of_prodigy_is_the_one_it_found() -> None:
    trained = parameters()
    optimizer = build_optimizer("Prodigy", ["d0=1e-3"], 1.0, trained)
    assert effective_rate(optimizer) == 1e-3
    steps(optimizer, trained, 4, look=False)
    assert effective_rate(optimizer) == optimizer.param_groups[0]["d"] > 1e-3


def test_a_paged_optimizer_is_refused_without_a_gpu(project: Path) -> None:
    for name in ("PagedAdamW8bit", "bitsandbytes.optim.PagedAdEMAMix8bit"):
        (problem,) = check(lora_config(project, optimizer_type=name))
        assert problem.option == "optimizer_type" and "the device is cpu" in problem.rule
    assert not check(lora_config(project, optimizer_type="AdEMAMix8bit"))


def test_an_optimizer_whose_package_is_missing_is_refused_with_the_way_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    (problem,) = check_optimizer("Prodigy", [], 1.0)[1]
    assert problem.option == "optimizer_type" and "pip install prodigyopt" in problem.sentence()


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


def test_rex_stays_high_and_falls_late_and_a_stair_has_its_steps() -> None:
    rex = rates(lr_scheduler="rex", lr_warmup_steps=10, lr_scheduler_min_lr_ratio=0.2)
    assert rex[0] == pytest.approx(0.2) and rex[5] == pytest.approx(0.6) and rex[10] == 1.0
    assert rex[55] == pytest.approx(0.2 + 0.8 * 0.5 / (0.1 + 0.9 * 0.5)) and rex[-1] > 0.2
    other = rates(lr_scheduler="rex", lr_scheduler_args=("rex_alpha=0.5", "rex_beta=0.5"))
    assert other[50] == pytest.approx(0.01 + 0.99 * 0.5 / 0.75)
    stair = rates(lr_scheduler="piecewise_constant", lr_scheduler_args=("step_rules='1:10,0.5:30,0.1'",))
    assert (stair[9], stair[10], stair[29], stair[30], stair[99]) == (1.0, 0.5, 0.5, 0.1, 0.1)


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
        shape = ("step_rules='1:9,0.1'",) if name == "piecewise_constant" else ()
        spec = ScheduleSpec(lr_scheduler=name, lr_scheduler_args=shape)
        assert check_schedule(spec, optimizer) == [], name


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
        ({"lr_scheduler": "rex", "lr_scheduler_args": ("gamma=1",)}, "lr_scheduler"),
        ({"lr_scheduler": "rex", "lr_scheduler_args": ("rex_alpha=0",)}, "lr_scheduler"),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler"),
        (
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ("step_rules='1:9,2:3,1'",)},
            "lr_scheduler",
        ),
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
