"""Adapters on the real network: which layers get one, what they compute, and that nothing else changes."""

import pytest
import torch

from zimage_gui.model.lora import LoraLinear, LoraSpec, attach_lora, target_paths
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

CONFIG = TransformerConfig(
    dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, axes_dims=(8, 4, 4)
)


def tiny(seed: int = 0) -> ZImageTransformer:
    model = ZImageTransformer(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def output(model: ZImageTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    latents = torch.randn(2, 16, 8, 6, generator=generator)
    captions = [torch.randn(5, 16, generator=generator), torch.randn(9, 16, generator=generator)]
    return model(latents, torch.tensor([0.3, 0.8]), captions)


def randomised(network, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in network.named_parameters():
        parameter.data.normal_(0, 0.2, generator=generator)


def test_default_targets_are_the_seven_layers_of_every_main_block() -> None:
    paths = target_paths(tiny(), LoraSpec())
    names = [
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ]
    assert sorted(paths) == sorted(f"layers.{block}.{name}" for block in range(2) for name in names)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((r"layers\.1\.attention\.to_[qk]",), (), ["layers.1.attention.to_q", "layers.1.attention.to_k"]),
        (
            (r"layers\.0\.feed_forward\..*",),
            (r".*w2",),
            ["layers.0.feed_forward.w1", "layers.0.feed_forward.w3"],
        ),
        ((r"noise_refiner\..*to_v",), (), ["noise_refiner.0.attention.to_v"]),
        ((r"layers\.1\..*to_q",), (r".*",), ["layers.1.attention.to_q"]),
        (
            (r"layers\.1\..*to_q", r"noise_refiner\..*to_v"),
            (r"layers\..*",),
            ["layers.1.attention.to_q", "noise_refiner.0.attention.to_v"],
        ),
        ((r"layers\.0\.adaLN_modulation\.0",), (), ["layers.0.adaLN_modulation.0"]),
        (
            (),
            (r"layers\.0\..*", r".*feed_forward.*"),
            [f"layers.1.attention.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")],
        ),
    ],
)
def test_patterns_really_restrict_and_may_name_refiners_and_modulation(include, exclude, expected) -> None:
    assert sorted(target_paths(tiny(), LoraSpec(include=include, exclude=exclude))) == sorted(expected)


def test_a_pattern_must_match_the_whole_name() -> None:
    with pytest.raises(ValueError, match="no layer is left"):
        target_paths(tiny(), LoraSpec(include=("to_q",)))


def test_patterns_that_leave_nothing_or_are_no_expression_are_refused() -> None:
    with pytest.raises(ValueError, match="no layer is left"):
        attach_lora(tiny(), LoraSpec(exclude=(".*",)))
    with pytest.raises(ValueError, match="not a regular expression"):
        attach_lora(tiny(), LoraSpec(include=("(",)))


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained() -> None:
    model = tiny()
    before = output(model)
    network = attach_lora(model, LoraSpec(dim=3))
    assert torch.equal(output(model), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{path}.lora_{end}" for path in network.modules for end in ("down", "up")}


def test_an_adapter_equals_the_weights_it_stands_for() -> None:
    model, merged = tiny(), tiny()
    network = attach_lora(model, LoraSpec(dim=4, alpha=2.0))
    randomised(network)
    network.set_multiplier(0.7)
    for path, module in network.modules.items():
        merged.get_submodule(path).weight.data += 0.7 * module.delta()
    torch.testing.assert_close(output(model), output(merged), rtol=1e-4, atol=1e-5)


def test_detaching_gives_back_the_untouched_model() -> None:
    model = tiny()
    before, names = output(model), list(model.state_dict())
    network = attach_lora(model, LoraSpec(dim=2))
    randomised(network)
    assert not torch.equal(output(model), before)
    network.detach()
    assert torch.equal(output(model), before) and list(model.state_dict()) == names


def test_adapters_start_the_same_for_one_seed_and_differ_for_another() -> None:
    first, again, other = (
        dict(attach_lora(tiny(), LoraSpec(dim=2), seed).named_parameters()) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout", "module_dropout"])
def test_each_dropout_acts_in_training_keeps_the_mean_and_is_off_in_evaluation(dropout: str) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, bias=False)
    plain, layer = LoraLinear(base, LoraSpec(dim=8)), LoraLinear(base, LoraSpec(dim=8, **{dropout: 0.5}))
    for module in (plain, layer):
        module.lora_down.data = torch.linspace(-1, 1, 48).view(8, 6)
        module.lora_up.data = torch.linspace(-1, 1, 40).view(5, 8)
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        expected, without = plain(x), base(x)
        draws = torch.stack([layer.train()(x) for _ in range(3000)])
        assert torch.equal(layer.eval()(x), expected)
    assert draws.std(dim=0).max() > 0.01
    target = without + 0.5 * (expected - without) if dropout == "module_dropout" else expected
    torch.testing.assert_close(draws.mean(dim=0), target, atol=0.15, rtol=0.1)


def test_rank_dropout_drops_whole_ranks_for_a_whole_sample() -> None:
    torch.manual_seed(1)
    layer = LoraLinear(torch.nn.Linear(4, 4, bias=False), LoraSpec(dim=1, rank_dropout=0.5))
    layer.lora_up.data.fill_(1.0)
    x = torch.randn(64, 5, 4)
    with torch.no_grad():
        added = layer.train()(x) - layer.base(x)
    dropped = (added == 0).flatten(1)
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1)) and 10 < int(dropped.all(dim=1).sum()) < 54


def test_a_bf16_base_keeps_fp32_adapters_and_gives_bf16_out_without_a_fp32_copy_of_the_activations() -> None:
    base = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16).requires_grad_(False)
    layer = LoraLinear(base, LoraSpec(dim=4))
    saved: list[torch.Tensor] = []
    x = torch.randn(2, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        y = layer(x)
    y.float().square().mean().backward()
    assert (
        y.dtype is torch.bfloat16
        and layer.lora_up.grad is not None
        and layer.lora_up.grad.dtype is torch.float32
    )
    assert not [tensor for tensor in saved if tensor.dtype is torch.float32 and tensor.numel() >= x.numel()]
