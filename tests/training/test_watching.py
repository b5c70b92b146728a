"""What watches over a run: held-out pictures, the average of the weights, an early end."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_project import finetune_config, lora_config, write_pictures

from zimage_gui.config.build import build
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.engine.averages import WeightAverage, decay_at
from zimage_gui.engine.caches import ensure_caches
from zimage_gui.engine.state import load_state
from zimage_gui.engine.train import run
from zimage_gui.engine.validation import Patience
from zimage_gui.errors import UserError
from zimage_gui.events import Note, NullRun, Step, Validation

MAKERS = [lora_config, finetune_config]


def train(config) -> tuple[NullRun, list[Path]]:
    reporter = NullRun(Path(config.output_dir) / "run")
    return reporter, run(config, reporter)


def of(reporter: NullRun, kind: type) -> list:
    return [event for event in reporter.events if isinstance(event, kind)]


def losses(reporter: NullRun) -> list[float]:
    return [step.loss for step in of(reporter, Step)]


def test_the_average_follows_its_formula_and_leaves_the_weights_as_they_were() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    average = WeightAverage({"w": weight}, 0.5)
    expected = 1.0
    for number, value in enumerate((3.0, 7.0, 2.0)):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert average.state()["averages"]["w"].item() == pytest.approx(expected, rel=1e-6)
    with average.in_place():
        assert weight.item() == torch.tensor(expected).bfloat16().item()
    assert weight.item() == 2.0 and weight.requires_grad
    assert [decay_at(0.99, n) for n in (0, 90)] == [0.1, 0.91] and decay_at(0.99, 10_000) == 0.99


@pytest.mark.parametrize("make", MAKERS)
def test_the_result_is_the_average_and_the_training_is_the_same_without(project: Path, make) -> None:
    options = {"max_train_steps": 5, "save_state_on_train_end": True, "save_precision": "fp32"}
    plain_run, plain = train(make(project, output_name="plain", **options))
    run_, results = train(make(project, output_name="ema", ema_decay=0.9, ema_device="cpu", **options))
    assert losses(run_) == losses(plain_run)
    values, others = load_state(results[-1]).values, load_state(plain[-1]).values
    weights, averages = values["weights"], values["trainer"]["average"]["averages"]
    assert all(torch.equal(weights[name], others["weights"][name]) for name in weights)
    assert averages.keys() == weights.keys()
    saved, raw = load_file(results[-2]), load_file(plain[-2])
    assert any(not torch.equal(saved[name], raw[name]) for name in saved)
    sums = [sum(float(tensor.double().abs().sum()) for tensor in one.values()) for one in (saved, averages)]
    if make is finetune_config:  # a LoRA file folds its alpha in
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_held_out_pictures_are_measured_at_fixed_noise_and_disturb_nothing(project: Path, make) -> None:
    write_pictures(project / "held", 2, (32, 48))
    options = (
        {"max_train_steps": 6, "network_dropout": 0.2} if make is lora_config else {"max_train_steps": 6}
    )
    bare, straight = train(make(project, output_name="bare", **options))
    held = options | {"validation_dataset": project / "held", "validate_every_n_steps": 2}
    watched, results = train(make(project, output_name="watched", **held))
    assert losses(bare) == losses(watched)
    one, other = load_file(straight[-1]), load_file(results[-1])
    assert all(torch.equal(one[name], other[name]) for name in one)
    found = of(watched, Validation)
    assert [event.step for event in found] == [0, 2, 3, 4, 6] and {event.pictures for event in found} == {2}
    assert len({event.loss for event in found}) > 1
    again, _ = train(make(project, output_name="again", **held | {"seed": 8, "validation_levels": 4}))
    finer, _ = train(make(project, output_name="finer", **held | {"validation_levels": 8}))
    first, same, fine = (of(reporter, Validation)[0].loss for reporter in (watched, again, finer))
    assert first == same != fine  # nothing is trained before the first: the seed does not matter


def test_a_share_of_the_pictures_is_held_out_and_never_trained(project: Path) -> None:
    config = lora_config(project, validation_split=0.4)
    index = ensure_caches(config, NullRun(project))
    assert len(index.items) == 3 and len(index.held_out) == 2 and not set(index.items) & set(index.held_out)
    other = ensure_caches(config.with_(seed=99), NullRun(project))
    assert other.held_out == index.held_out
    (project / "pictures" / "9.png").write_bytes((project / "pictures" / "0.png").read_bytes())
    (project / "pictures" / "9.txt").write_text("one more", encoding="utf-8")
    assert len(set(ensure_caches(config, NullRun(project)).held_out) & set(index.held_out)) >= 1
    for name in ("1", "2", "3", "4", "9"):
        (project / "pictures" / f"{name}.png").unlink()
    with pytest.raises(UserError, match="leaves no picture to train"):
        ensure_caches(config, NullRun(project))


def test_a_held_out_folder_that_is_trained_too_or_empty_is_refused(project: Path) -> None:
    (project / "none").mkdir()
    for folder, words in (("pictures", "trained too"), ("none", "could be encoded")):
        with pytest.raises(UserError, match=words) as refused:
            train(lora_config(project, validation_dataset=project / folder))
        assert refused.value.problems[0].option == "validation_dataset"
    shutil.copytree(project / "pictures", project / "other")
    (project / "held.toml").write_text(
        '[[datasets]]\nimage_directory = "other"\nresolution = 32\n', encoding="utf-8"
    )
    index = ensure_caches(lora_config(project, validation_dataset=project / "held.toml"), NullRun(project))
    assert len(index.items) == len(index.held_out) == 5 and len(index.sources) == 1


@pytest.mark.parametrize("make", MAKERS)
def test_a_run_that_gets_no_better_on_held_out_pictures_ends_early_with_its_result(
    project: Path, make
) -> None:
    options = {"validation_split": 0.2, "validate_every_n_steps": 1, "early_stop": "validation"}
    config = make(project, max_train_steps=50, learning_rate=0.0, early_stop_patience=3, **options)
    reporter, results = train(config)
    assert len(losses(reporter)) == 3 and [path.name for path in results] == ["zimage.safetensors"]
    assert any("ended early at step 3: the lowest was" in note.text for note in of(reporter, Note))


def test_a_run_whose_mean_loss_stops_falling_ends_early(project: Path) -> None:
    config = lora_config(
        project, max_train_steps=420, learning_rate=0.0, early_stop="loss", early_stop_patience=15
    )
    reporter, _ = train(config)
    assert 215 <= len(losses(reporter)) < 420


def test_patience_begins_anew_with_each_lowest_value_and_takes_nan_for_none() -> None:
    patience = Patience(10)
    for step, value in ((0, 3.0), (9, float("nan")), (9, 2.0), (18, 2.5)):
        patience.look(step, value)
        assert not patience.over
    patience.look(19, 2.0)
    assert patience.over and (patience.lowest, patience.lowest_step) == (2.0, 9)
    later = Patience(10)
    later.restore(patience.state())
    later.look(20, 1.0)
    assert not later.over and later.lowest_step == 20


def test_pictures_during_training_are_made_with_the_average(project: Path) -> None:
    (project / "prompts.txt").write_text("a red picture --w 32 --h 32 --s 2 --d 1", encoding="utf-8")
    pictures = []
    for name, decay in (("plain", 0.0), ("ema", 0.9)):
        options = {"sample_prompts": project / "prompts.txt", "sample_every_n_steps": 4, "learning_rate": 0.5}
        train(finetune_config(project, output_name=name, ema_decay=decay, **options))
        (path,) = (project / "out" / "sample").glob(f"{name}_*.png")
        with Image.open(path) as image:
            pictures.append(image.tobytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("kind", [TrainLoraConfig, FinetuneConfig])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"validation_split": 0.95}, "validation_split"),
        ({"validation_split": 0.1, "validation_dataset": "x"}, "validation_split"),
        ({"validation_split": 0.1, "validate_every_n_epochs": 0}, "validation_split"),
        ({"validate_every_n_steps": 5}, "validate_every_n_steps"),
        ({"validation_levels": 8}, "validation_levels"),
        ({"early_stop": "validation"}, "early_stop"),
        ({"early_stop_patience": 9}, "early_stop_patience"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_device": "cpu"}, "ema_device"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kind, options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as refused:
        build(kind, {"dit": "d", "dataset": "p", **options})
    assert [problem.option for problem in refused.value.problems] == [named]
