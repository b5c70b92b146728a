"""The transformer equals diffusers' on the same random weights, for any sizes, caption lengths and batches."""

import pytest
import torch
from diffusers_twin import SMALL, reference_outputs, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer, padded

OURS, REFERENCE = twins()

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
samples = st.tuples(sizes, st.integers(1, 70), st.floats(0, 1, width=32))


def relative(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


def random_inputs(
    drawn: list[tuple[tuple[int, int], int, float]],
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(len(drawn))
    latents = [torch.randn(16, 2 * h, 2 * w, generator=generator) for (h, w), _, _ in drawn]
    captions = [torch.randn(length, SMALL.cap_feat_dim, generator=generator) for _, length, _ in drawn]
    return latents, torch.tensor([time for _, _, time in drawn]), captions


@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(samples, min_size=1, max_size=3))
@torch.no_grad()
def test_any_batch_equals_diffusers(drawn: list[tuple[tuple[int, int], int, float]]) -> None:
    inputs = random_inputs(drawn)
    for ours, wanted in zip(OURS.forward_any(*inputs), reference_outputs(REFERENCE, *inputs), strict=True):
        assert relative(ours, wanted) < 1e-5


@settings(max_examples=20, deadline=None)
@given(size=sizes, lengths=st.lists(st.integers(33, 64), min_size=2, max_size=4))
@torch.no_grad()
def test_a_batch_equals_its_samples_one_by_one(size: tuple[int, int], lengths: list[int]) -> None:
    latents, time, captions = random_inputs([(size, length, 0.1 + i / 5) for i, length in enumerate(lengths)])
    together = OURS(torch.stack(latents), time, captions)
    for i in range(len(lengths)):
        alone = OURS(latents[i][None], time[i : i + 1], captions[i : i + 1])
        assert relative(together[i], alone[0]) < 1e-5


@pytest.mark.parametrize("time", [0.0, 1e-4, 0.4967, 1.0])
@torch.no_grad()
def test_head_size_128_and_every_time_equal_diffusers(time: float) -> None:
    config = TransformerConfig(dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=16)
    ours, reference = twins(config)
    latents, times = [torch.randn(16, 6, 10)], torch.tensor([time])
    captions = [torch.randn(13, 16)]
    wanted = reference_outputs(reference, latents, times, captions)
    assert relative(ours(latents[0][None], times, captions)[0], wanted[0]) < 1e-5


def test_gradients_of_every_parameter_equal_diffusers() -> None:
    ours, reference = twins()
    latents, time, captions = random_inputs([((3, 5), 21, 0.4), ((3, 5), 9, 0.8)])
    torch.stack(reference_outputs(reference, latents, time, captions)).square().mean().backward()
    ours(torch.stack(latents), time, captions).square().mean().backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and wanted[name].grad is not None, name
        assert relative(parameter.grad, wanted[name].grad) < 1e-4, name


@torch.no_grad()
def test_bfloat16_stays_near_the_fp32_result() -> None:
    ours, reference = twins()
    latents, time, captions = random_inputs([((4, 4), 20, 0.3)])
    exact = ours(latents[0][None], time, captions)
    half = reference_outputs(reference.bfloat16(), [latents[0].bfloat16()], time, [captions[0].bfloat16()])
    own = ours.bfloat16()(latents[0][None], time, captions)
    assert own.dtype is torch.float32
    assert relative(own, exact) < 1.2 * relative(half[0][None].float(), exact)


@torch.no_grad()
def test_autocast_computes_every_block_in_bfloat16() -> None:
    ours, _ = twins()
    latents, time, captions = random_inputs([((4, 4), 20, 0.3)])
    exact = ours(latents[0][None], time, captions)
    dtypes = set()

    def spy(block: nn.Module, x: Tensor, rope: Tensor, modulation: Tensor | None) -> Tensor:
        dtypes.add(x.dtype)
        out: Tensor = block(x, rope, modulation)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        out = ours(latents[0][None], time, captions, run_block=spy)
    assert dtypes == {torch.bfloat16} and out.dtype is torch.float32
    assert relative(out, exact) < relative(ours.bfloat16()(latents[0][None], time, captions), exact) * 1.5


@torch.no_grad()
def test_float16_survives_sums_beyond_its_range_without_changing_the_result() -> None:
    ours, _ = twins()
    inputs = random_inputs([((4, 4), 20, 0.3)])
    latents, time, captions = inputs[0][0][None], inputs[1], inputs[2]
    largest: dict[nn.Module, float] = {}
    risky = [ours.layers[0].attention.to_out[0], ours.layers[1].feed_forward.w3]
    for module in risky:
        module.register_forward_hook(lambda module, _, out: largest.update({module: float(out.abs().max())}))
    for module in risky:
        ours(latents, time, captions)
        module.weight.mul_(1.5e5 / largest[module])
    exact = ours(latents, time, captions)
    assert min(largest.values()) > 1.4e5 > torch.finfo(torch.float16).max
    assert relative(ours.half()(latents, time, captions), exact) < 1e-2


def test_the_two_halves_and_the_block_hook_give_the_same_result_and_see_every_block() -> None:
    latents, time, captions = random_inputs([((3, 5), 21, 0.4)])
    seen: list[nn.Module] = []

    def spy(block: nn.Module, x: Tensor, rope: Tensor, modulation: Tensor | None) -> Tensor:
        seen.append(block)
        out: Tensor = block(x, rope, modulation)
        return out

    with torch.no_grad():
        whole = OURS(latents[0][None], time, captions)
        hidden = OURS.embed(latents[0][None], time, captions)
        assert torch.equal(OURS.decode(hidden, spy), whole)
        assert seen == list(OURS.layers)
        OURS(latents[0][None], time, captions, run_block=spy)
    assert seen[2:] == [*OURS.noise_refiner, *OURS.context_refiner, *OURS.layers]
    assert hidden.image_tokens == 15 and hidden.grid == (3, 5) and hidden.sequence.shape[1] == 64


def test_a_rope_table_made_in_inference_mode_serves_training_later() -> None:
    ours, _ = twins()
    latents, time, captions = random_inputs([((7, 2), 5, 0.4)])
    with torch.inference_mode():
        ours(latents[0][None], time, captions)
    ours(latents[0][None], time, captions).sum().backward()
    assert ours.x_pad_token.grad is not None


def test_captions_of_two_padded_lengths_in_one_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="one padded length"):
        OURS(torch.zeros(2, 16, 4, 4), torch.zeros(2), [torch.zeros(32, 24), torch.zeros(33, 24)])
    with pytest.raises(ValueError, match="above 0"):
        OURS(torch.zeros(1, 16, 4, 4), torch.zeros(1), [torch.zeros(0, 24)])


def test_the_real_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = ZImageTransformer(TransformerConfig())
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    assert sum(p.numel() for p in model.parameters()) == 6_154_908_736
    assert len(model.state_dict()) == 521
    assert counts["layers"] == 5_427_310_080
    assert counts["noise_refiner"] == 361_820_672 and counts["context_refiner"] == 353_925_632
    assert counts["cap_embedder"] == 9_836_800 and counts["t_embedder"] == 525_568


@pytest.mark.parametrize(("tokens", "length"), [(0, 0), (1, 32), (32, 32), (33, 64), (512, 512)])
def test_sequences_are_padded_to_32(tokens: int, length: int) -> None:
    assert padded(tokens) == length
