"""Losses against their formulas, and each of their options in a whole run."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_project import finetune_config, lora_config

from zimage_gui.config.build import build
from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.engine.losses import (
    LossSpec,
    flow_loss,
    huber_thresholds,
    masked_mean,
    min_snr_weights,
    pointwise,
    sample_weights,
)
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.show_timesteps import as_text, histogram
from zimage_gui.engine.train import run
from zimage_gui.errors import UserError
from zimage_gui.events import Note, NullRun, Step

SIGMA = torch.tensor([0.0, 0.25, 0.5, 1.0])


def of(error: float, sigma: float = 0.5, **options: object) -> float:
    return float(pointwise(LossSpec(**options), torch.full((1, 1, 1, 1), error), torch.tensor([sigma])))  # type: ignore[arg-type]


def test_hubers_are_squared_near_zero_and_straight_far_from_it() -> None:
    assert of(1e-4, loss_type="huber") == pytest.approx(1e-8, rel=1e-3)
    assert of(1e-4, loss_type="smooth_l1") == pytest.approx(1e-7, rel=1e-3)
    assert of(50.0, loss_type="huber") == pytest.approx(2 * 0.1 * (50 - 0.1), rel=1e-3)
    assert of(-50.0, loss_type="smooth_l1") == pytest.approx(2 * (50 - 0.1), rel=1e-3)
    assert of(0.3, loss_type="huber", huber_c=0.2) == pytest.approx(0.4 * (math.sqrt(0.13) - 0.2), rel=1e-5)
    assert of(-3.0, loss_type="l1") == 3.0 and of(-3.0) == 9.0


def test_huber_schedules_run_from_one_to_the_threshold() -> None:
    torch.testing.assert_close(huber_thresholds("exponential", 0.1, SIGMA), 0.1**SIGMA)
    torch.testing.assert_close(huber_thresholds("snr", 0.1, SIGMA), torch.tensor([1.0, 0.60625, 0.325, 0.1]))
    assert huber_thresholds("constant", 0.3, SIGMA).unique().tolist() == pytest.approx([0.3])
    assert of(2.0, 0.0, loss_type="huber", huber_schedule="snr") > of(
        2.0, 1.0, loss_type="huber", huber_schedule="snr"
    )


def test_min_snr_weighs_the_error_of_the_picture_by_the_capped_ratio() -> None:
    for sigma, weight in zip(SIGMA[1:], min_snr_weights(SIGMA[1:], 5.0), strict=True):
        ratio = ((1 - sigma) / sigma) ** 2
        assert float(weight) == pytest.approx(float(min(ratio, 5.0) * sigma**2), abs=1e-6)
    assert sample_weights(LossSpec(min_snr_gamma=5.0), torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_a_mask_weighs_its_parts_and_a_small_one_counts_no_less() -> None:
    losses = torch.ones(2, 16, 4, 4)
    losses[:, :, :, 2:] = 5.0
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, :, :2], masks[1, :, :1, :1] = 1.0, 1.0
    assert masked_mean(losses, masks, 0.0).tolist() == [1.0, 1.0]
    assert masked_mean(losses, masks, 1.0).tolist() == [3.0, 3.0]
    assert float(masked_mean(losses, masks, 0.5)[0]) == pytest.approx((1 + 0.5 * 5) / 1.5)
    assert torch.equal(masked_mean(losses, None, 0.0), losses.flatten(1).mean(1))


@pytest.mark.parametrize("options", [{"loss_type": "huber", "huber_schedule": "snr"}, {"min_snr_gamma": 5.0}])
def test_every_loss_of_a_batch_is_the_mean_of_its_samples(options: dict[str, object]) -> None:
    prediction, latents, noise = torch.randn(3, 4, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    spec = LossSpec(**options)  # type: ignore[arg-type]
    rows = (slice(i, i + 1) for i in range(4))
    single = [flow_loss(prediction[i], latents[i], noise[i], SIGMA[i], spec) for i in rows]
    torch.testing.assert_close(flow_loss(prediction, latents, noise, SIGMA, spec), torch.stack(single).mean())


@pytest.mark.slow  # the walk over every option sees the same
@pytest.mark.parametrize("make", [lora_config, finetune_config])
def test_each_option_changes_the_losses_of_a_run(project: Path, make) -> None:
    seen = {}
    for name, options in {
        "plain": {}, "huber": {"loss_type": "huber"}, "wide": {"loss_type": "huber", "huber_c": 0.5},
        "scheduled": {"loss_type": "huber", "huber_schedule": "exponential"}, "smooth": {"loss_type": "smooth_l1"},
        "l1": {"loss_type": "l1"}, "snr": {"min_snr_gamma": 5.0}, "offset": {"noise_offset": 0.3},
        "strata": {"num_timestep_buckets": 5},
    }.items():  # fmt: skip
        reporter = NullRun(project / "run")
        run(make(project, max_train_steps=2, output_name=name, **options), reporter)
        seen[name] = tuple(event.loss for event in reporter.events if isinstance(event, Step))
    assert len(set(seen.values())) == len(seen)
    assert all(math.isfinite(loss) for losses in seen.values() for loss in losses)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"huber_c": 0.2}, "huber_c"),
        ({"huber_schedule": "snr"}, "huber_schedule"),
        ({"loss_type": "huber", "huber_c": 2, "huber_schedule": "snr"}, "huber_c"),
        ({"loss_type": "l3"}, "loss_type"),
        ({"min_snr_gamma": -1}, "min_snr_gamma"),
        ({"min_snr_gamma": 5, "weighting_scheme": "cosmap"}, "min_snr_gamma"),
        ({"noise_offset": -1}, "noise_offset"),
        ({"num_timestep_buckets": -1}, "num_timestep_buckets"),
        ({"show_timesteps": "plot"}, "show_timesteps"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as refused:
        build(TrainLoraConfig, {"dit": "d", "dataset": "p", **options})
    assert named in [problem.option for problem in refused.value.problems]


def test_the_picture_of_timesteps_needs_no_model_and_trains_nothing(tmp_path: Path) -> None:
    reporter = NullRun(tmp_path)
    (path,) = run(build(TrainLoraConfig, {"show_timesteps": "image", "min_timestep": 500}), reporter)
    with Image.open(path) as image:
        columns = [image.getpixel((x, image.height - 75)) for x in (200, 800)]
    assert columns[0] == (255, 255, 255) != columns[1]  # nothing below timestep 500
    assert not [event for event in reporter.events if isinstance(event, Step)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["timesteps.png"]


def test_the_text_of_timesteps_has_shares_and_weights(tmp_path: Path) -> None:
    reporter = NullRun(tmp_path)
    config = build(TrainLoraConfig, {"show_timesteps": "console", "weighting_scheme": "sigma_sqrt"})
    assert run(config, reporter) == []
    (text,) = [event.text for event in reporter.events if isinstance(event, Note)]
    rows = [line.split() for line in text.splitlines()[1:]]
    shares = [float(word.rstrip("%")) for row in rows for word in row if word.endswith("%")]
    assert len(rows) == 40 and sum(shares) == pytest.approx(100, abs=0.5)
    shown = histogram(Objective(weighting_scheme="sigma_sqrt"), 0, [(1024, 1024)])
    assert shown.weights[0] / shown.weights[-1] > 1000 and as_text(shown) == text


def test_a_resolution_shift_is_drawn_for_each_size_of_the_dataset() -> None:
    small, large, both = (
        histogram(Objective(timestep_sampling="flux_shift"), 0, sizes).shares[-1]
        for sizes in ([(256, 256)], [(1024, 1024)], [(256, 256), (1024, 1024)])
    )
    assert small < both < large
