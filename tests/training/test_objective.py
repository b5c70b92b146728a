"""Noise levels, weights and the loss: one convention, and a pure function of (seed, epoch, sample)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_gui.engine.losses import LossSpec, flow_loss, loss_weights
from zimage_gui.engine.objective import (
    MIXTURES,
    SAMPLINGS,
    WEIGHTINGS,
    Draws,
    Objective,
    draw,
    resolution_shift,
    sample_sigmas,
    strata,
)

SHAPE = (16, 4, 4)


def sigmas(count: int = 4000, image_tokens: int = 1024, **options: object) -> torch.Tensor:
    objective = Objective(**options)  # type: ignore[arg-type]
    return sample_sigmas(objective, draw(objective, 0, 0, list(range(count)), (1, 1, 1)), image_tokens)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SAMPLINGS),
    st.sampled_from(WEIGHTINGS),
    st.floats(0.1, 20),
    st.floats(0.1, 5),
    st.floats(-3, 3),
    st.floats(0.1, 3),
    st.floats(-5, 5),
    st.integers(0, 999),
    st.integers(1, 1000),
    st.booleans(),
    st.integers(1, 20000),
)
def test_every_noise_level_lies_between_the_limits_whatever_the_options(
    mode, scheme, shift, scale, mean, std, mode_scale, low, span, keep, tokens
) -> None:  # fmt: skip
    high = min(1000, low + span)
    sigma = sigmas(
        16, tokens, timestep_sampling=mode, weighting_scheme=scheme, discrete_flow_shift=shift, sigmoid_scale=scale,
        logit_mean=mean, logit_std=std, mode_scale=mode_scale, min_timestep=low, max_timestep=high,
        preserve_distribution_shape=keep,
    )  # fmt: skip
    assert sigma.shape == (16,) and sigma.dtype is torch.float32
    assert bool(((sigma >= low / 1000 - 1e-6) & (sigma <= high / 1000 + 1e-6)).all())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 1000),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True),
)
def test_a_sample_gets_the_same_numbers_in_any_batch(seed: int, epoch: int, indices: list[int]) -> None:
    together = draw(Objective(), seed, epoch, indices, SHAPE)
    for row, index in enumerate(indices):
        alone = draw(Objective(), seed, epoch, [index], SHAPE)
        assert torch.equal(together.noise[row], alone.noise[0])
        assert torch.equal(together.normal[row], alone.normal[0]) and torch.equal(
            together.uniform[row], alone.uniform[0]
        )


def test_another_seed_epoch_or_sample_gets_unrelated_noise() -> None:
    base, *others = (
        draw(Objective(), seed, epoch, [index], (16, 16, 16)).noise.flatten()
        for seed, epoch, index in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)]
    )
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 0.08


def test_noise_is_standard_normal() -> None:
    noise = draw(Objective(), 0, 0, list(range(1000)), SHAPE).noise
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("options", "median"),
    [
        ({"timestep_sampling": "uniform"}, 0.5),
        ({"timestep_sampling": "sigma"}, 0.5),
        ({"timestep_sampling": "sigmoid"}, 0.5),
        ({"timestep_sampling": "shift", "discrete_flow_shift": 3.0}, 0.75),
        ({"timestep_sampling": "flux_shift"}, math.exp(0.63) / (1 + math.exp(0.63))),
        ({"timestep_sampling": "logsnr", "logit_mean": 2.0}, 1 / (1 + math.e)),
        ({"timestep_sampling": "ideogram4_shift"}, 2 / 3),  # 1024 tokens count as four times 512 x 512
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": 1.0},
            1 / (1 + math.exp(-1)),
        ),
    ],
)
def test_the_median_noise_level_is_what_the_formula_says(options: dict[str, object], median: float) -> None:
    assert float(sigmas(**options).median()) == pytest.approx(median, abs=0.02)


def test_more_shift_means_more_noise_and_a_wider_sigmoid_more_extremes() -> None:
    medians = [
        float(sigmas(timestep_sampling="shift", discrete_flow_shift=k).median()) for k in (0.5, 1.0, 3.0, 6.0)
    ]
    assert medians == sorted(medians)
    narrow, wide = (sigmas(timestep_sampling="sigmoid", sigmoid_scale=scale) for scale in (0.5, 2.0))
    assert narrow.std() < wide.std()


def test_mode_density_prefers_the_middle() -> None:
    sigma = sigmas(timestep_sampling="sigma", weighting_scheme="mode", mode_scale=1.29)
    middle = float(((sigma > 0.25) & (sigma < 0.75)).float().mean())
    assert middle > 0.6


def test_resolution_shifts_pass_through_their_two_points() -> None:
    points = {
        ("flux_shift", 256): 0.5,
        ("flux_shift", 4096): 1.15,
        ("qwen_shift", 256): 0.5,
        ("qwen_shift", 8192): 0.9,
        ("krea2_shift", 6400): 1.15,
        ("flux2_shift", 1024): 1.15,
    }
    for (mode, tokens), mu in points.items():
        assert math.log(resolution_shift(mode, tokens)) == pytest.approx(mu)


def test_limits_squeeze_or_cut_the_distribution() -> None:
    squeezed = sigmas(timestep_sampling="sigmoid", min_timestep=500)
    cut = sigmas(timestep_sampling="sigmoid", min_timestep=500, preserve_distribution_shape=True)
    assert float(squeezed.median()) == pytest.approx(0.75, abs=0.02)
    above = torch.sigmoid(torch.randn(20000).abs()).median()
    assert float(cut.median()) == pytest.approx(float(above), abs=0.02)


def test_weights_follow_their_formulas_for_each_sample_of_any_batch() -> None:
    sigma = torch.tensor([0.05, 0.5, 1.0])
    assert torch.equal(loss_weights("none", sigma), torch.ones(3))
    torch.testing.assert_close(loss_weights("sigma_sqrt", sigma), torch.tensor([400.0, 4.0, 1.0]))
    torch.testing.assert_close(
        loss_weights("cosmap", sigma),
        torch.tensor([2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in sigma.tolist()]),
    )
    assert float(loss_weights("sigma_sqrt", torch.zeros(1))) == pytest.approx(1e6)


@pytest.mark.parametrize("scheme", WEIGHTINGS)
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(scheme: str) -> None:
    torch.manual_seed(0)
    prediction, latents, noise = torch.randn(3, 5, *SHAPE)
    sigma = torch.rand(5)
    spec = LossSpec(weighting_scheme=scheme)
    whole = flow_loss(prediction, latents, noise, sigma, spec)
    rows = (slice(i, i + 1) for i in range(5))
    single = [flow_loss(prediction[i], latents[i], noise[i], sigma[i], spec) for i in rows]
    torch.testing.assert_close(whole, torch.stack(single).mean())


def test_the_target_is_the_direction_from_noise_to_picture() -> None:
    latents, noise = torch.randn(2, 2, *SHAPE)
    assert float(flow_loss(latents - noise, latents, noise, torch.ones(2), LossSpec())) == 0.0
    assert float(flow_loss(noise - latents, latents, noise, torch.ones(2), LossSpec())) > 1.0


def test_an_unknown_sampling_is_an_error() -> None:
    with pytest.raises(ValueError, match="timestep_sampling"):
        sample_sigmas(Objective(timestep_sampling="nonsense"), Draws(*torch.zeros(3, 1, 1)), 4)


def stratified(
    mode: str, buckets: int | None, samples: int, epoch: int = 0, **options: object
) -> torch.Tensor:
    objective = Objective(timestep_sampling=mode, num_timestep_buckets=buckets, **options)  # type: ignore[arg-type]
    return sample_sigmas(objective, draw(objective, 3, epoch, list(range(samples)), (1, 1, 1), samples), 1024)


@pytest.mark.parametrize(
    ("buckets", "mode"), [(None, "qinglong_flux"), (2, "qinglong_flux"), (2, "qinglong_qwen")]
)
def test_a_mixture_has_its_shares_of_nearly_clean_pictures(buckets: int | None, mode: str) -> None:
    sigma = stratified(mode, buckets, 20_000, logit_mean=-6.0, logit_std=0.1)
    shares = {"qinglong_flux": (0.10, 0.11), "qinglong_qwen": (0.05, 0.0)}[mode]
    base = stratified(mode.removeprefix("qinglong_") + "_shift", buckets, 20_000)
    clean, noisy = (sigma < 0.25), (sigma > 0.945) & (sigma < 0.96)
    assert float(clean.float().mean()) == pytest.approx(
        shares[0] + (1 - sum(shares)) * float((base < 0.25).float().mean()), abs=0.01
    )
    extra = float(((base > 0.945) & (base < 0.96)).float().mean()) * (1 - sum(shares))
    assert float(noisy.float().mean()) == pytest.approx(shares[1] + extra, abs=0.012)


@pytest.mark.parametrize("mode", sorted({*SAMPLINGS} - {*MIXTURES}))
def test_strata_give_each_equal_part_of_the_density_its_share_of_an_epoch(mode: str) -> None:
    dense = stratified(mode, 1_000, 20_000).sort().values
    edges = dense[[2_000 * part for part in range(1, 10)]].contiguous()
    counts = torch.bincount(torch.bucketize(stratified(mode, 10, 200), edges), minlength=10)
    free = torch.bincount(torch.bucketize(stratified(mode, None, 200), edges), minlength=10)
    assert bool(((counts - 20).abs() <= 1).all()) and int((free - 20).abs().max()) > 2


def test_fewer_samples_than_strata_still_get_parts_of_their_own_and_others_each_epoch() -> None:
    first, second = (strata(3, epoch, 5, 20).tolist() for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 5 and first != second


def test_strata_do_not_depend_on_the_batch_and_leave_the_noise_alone() -> None:
    objective = Objective(num_timestep_buckets=4)
    together = draw(objective, 1, 2, [0, 5, 6], SHAPE, 9)
    alone = draw(objective, 1, 2, [5], SHAPE, 9)
    assert torch.equal(together.normal[1], alone.normal[0])
    assert torch.equal(together.noise, draw(Objective(), 1, 2, [0, 5, 6], SHAPE).noise)


def test_strata_and_a_kept_distribution_still_give_the_cut_density() -> None:
    options = {"min_timestep": 600, "preserve_distribution_shape": True}
    cut, free = (stratified("sigmoid", buckets, 4_000, **options) for buckets in (8, None))
    assert float(cut.min()) >= 0.6 and float(cut.median()) == pytest.approx(float(free.median()), abs=0.01)


def test_a_noise_offset_shifts_each_channel_of_a_sample_and_changes_nothing_else() -> None:
    plain, shifted = (draw(Objective(noise_offset=size), 0, 0, [4, 9], (16, 8, 8)) for size in (0.0, 0.1))
    change = shifted.noise - plain.noise
    assert float((change - change.mean((2, 3), keepdim=True)).abs().max()) < 1e-5
    assert 0.05 < float(change.mean((2, 3)).std()) < 0.2
    assert torch.equal(plain.normal, shifted.normal) and torch.equal(plain.uniform, shifted.uniform)
