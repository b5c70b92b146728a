"""LoRA, DoRA, LoHa and LoKr as they are trained: each against the weights it stands for."""

import pytest
import torch
from torch import nn

from zimage_gui.model.adapter import LoraSpec
from zimage_gui.model.dora import DoraLinear
from zimage_gui.model.lokr import LokrLinear
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_sizes import split
from zimage_gui.model.networks import KINDS, attach_network, sized_by, start_misfits, start_network

SPECS = {
    "lora": LoraSpec(dim=3, alpha=2.0),
    "rslora": LoraSpec(dim=3, alpha=2.0, rslora=True),
    "dora": LoraSpec(dim=3, alpha=2.0, kind="dora"),
    "loha": LoraSpec(dim=3, alpha=2.0, kind="loha"),
    "lokr": LoraSpec(dim=2, alpha=1.0, kind="lokr", factor=4),
    "lokr-rslora": LoraSpec(dim=2, alpha=1.0, kind="lokr", factor=2, rslora=True),
    "lokr-whole": LoraSpec(dim=2, kind="lokr", full=True),
}


def layer(spec: LoraSpec, base: nn.Linear | None = None, filled: bool = True) -> nn.Module:
    """An adapter over a fixed 24 x 16 layer, its numbers random."""
    generator = torch.Generator().manual_seed(1)
    if base is None:
        base = nn.Linear(16, 24, bias=False).requires_grad_(False)
        base.weight.data = torch.randn(24, 16, generator=generator)
    adapter = KINDS[spec.kind](base, spec, generator)
    for parameter in adapter.trained().values() if filled else ():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_kind_computes_what_its_entry_says(name: str, training: bool) -> None:
    adapter = layer(SPECS[name]).train(training)
    x = torch.randn(2, 5, 16)
    for multiplier in (1.0, 0.7, 0.0):
        adapter.multiplier = multiplier
        weight = adapter.base.weight + multiplier * adapter.entry().delta(adapter.base.weight)
        torch.testing.assert_close(adapter(x), x @ weight.t(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.delta(), adapter.entry().delta(adapter.base.weight))


@pytest.mark.parametrize("name", SPECS)
def test_a_fresh_kind_changes_no_bit_and_every_factor_can_learn_within_two_steps(name: str) -> None:
    adapter = layer(SPECS[name], filled=False)
    x = torch.randn(4, 16)
    assert torch.equal(adapter.eval()(x), adapter.base(x))
    start = {key: value.detach().clone() for key, value in adapter.trained().items()}
    optimizer = torch.optim.SGD(adapter.trained().values(), lr=0.1)
    for _ in range(2):
        adapter.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(start[key], value) for key, value in adapter.trained().items())


@pytest.mark.parametrize("name", ["loha", "lokr", "lokr-whole"])
def test_the_gradients_are_those_of_the_weights_made_whole(name: str) -> None:
    adapter = layer(SPECS[name]).double().train()
    x = torch.randn(6, 16, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(6, 24, dtype=torch.double)
    values = [x, *adapter.trained().values()]
    found = torch.autograd.grad((adapter(x) * upstream).sum(), values)
    if name == "loha":
        change = (adapter.w1_a @ adapter.w1_b) * (adapter.w2_a @ adapter.w2_b)
    else:
        change = torch.kron(adapter.w1, adapter.w2 if adapter.whole else adapter.w2_a @ adapter.w2_b)
    whole = x @ (adapter.base.weight + adapter.scale * change).t()
    wanted = torch.autograd.grad((whole * upstream).sum(), values)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_a_dora_learns_each_rows_length_with_the_norms_held_still() -> None:
    adapter = layer(SPECS["dora"]).train()
    x, upstream = torch.randn(6, 16, requires_grad=True), torch.randn(6, 24)
    values = [x, *adapter.trained().values()]
    found = torch.autograd.grad((adapter(x) * upstream).sum(), values)
    turned = adapter.base.weight + adapter.scale * adapter.lora_up @ adapter.lora_down
    held = turned.detach().norm(dim=1, keepdim=True)
    whole = x @ (adapter.magnitude[:, None] * turned / held).t()
    for one, other in zip(found, torch.autograd.grad((whole * upstream).sum(), values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Asked(nn.Linear):
    """A layer whose weight may not be looked at, as one in four bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("bias", [False, True])
def test_a_dora_needs_no_more_of_its_layer_than_to_call_it(bias: bool) -> None:
    base = Asked(16, 24, bias=bias)
    plain = nn.Linear(16, 24, bias=bias)
    plain.load_state_dict(base.state_dict())
    one, other = DoraLinear(base, SPECS["dora"]), DoraLinear(plain, SPECS["dora"])
    torch.testing.assert_close(one.magnitude, other.magnitude)
    for adapter in (one, other):
        adapter.lora_down.data = torch.linspace(-1, 1, 48).view(3, 16)
        adapter.lora_up.data = torch.linspace(-1, 2, 72).view(24, 3)
    torch.testing.assert_close(one._norms(torch.float32), other._norms(torch.float32))
    wanted = (base.weight + one.scale * one.lora_up @ one.lora_down).norm(dim=1)
    torch.testing.assert_close(one._norms(torch.float32), wanted)


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout", "module_dropout"])
@pytest.mark.parametrize("name", ["dora", "loha", "lokr", "lokr-whole"])
def test_each_dropout_of_every_kind_acts_in_training_and_keeps_the_mean(name: str, dropout: str) -> None:
    torch.manual_seed(0)
    changes = {dropout: 0.4}
    adapter = layer(LoraSpec(**{**SPECS[name].__dict__, **changes}))
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected, without = adapter.eval()(x), adapter.base(x)
        draws = torch.stack([adapter.train()(x) for _ in range(3000)])
    assert draws.std(dim=0).max() > 0.01
    kept = 0.6 if dropout == "module_dropout" else 1.0
    target = without + kept * (expected - without)
    size = (expected - without).abs().max()
    assert float((draws.mean(dim=0) - target).abs().max() / size) < 0.15


@pytest.mark.parametrize("name", SPECS)
def test_the_norm_is_that_of_the_change_the_factors_make(name: str) -> None:
    adapter = layer(SPECS[name])
    entry = adapter.entry()
    change = getattr(entry, "inner", entry).delta(torch.zeros(24, 16))
    torch.testing.assert_close(adapter.norm(), change.norm())
    for factor in adapter.factors():
        factor.data *= 2
    torch.testing.assert_close(adapter.norm(), change.norm() * 2 ** len(adapter.factors()))


@pytest.mark.parametrize(
    ("size", "factor", "parts"),
    [
        (3840, -1, (60, 64)), (10240, -1, (80, 128)), (3840, 8, (8, 480)), (3840, 128, (30, 128)),
        (10, 8, (2, 5)), (7, 4, (1, 7)), (12, 1, (1, 12)),
    ],
)  # fmt: skip
def test_a_size_splits_into_two_factors(size: int, factor: int, parts: tuple[int, int]) -> None:
    assert split(size, factor) == parts


def test_a_lokr_whose_rank_would_save_nothing_is_whole() -> None:
    base = nn.Linear(16, 24, bias=False)
    assert LokrLinear(base, LoraSpec(dim=3, kind="lokr")).whole
    assert not LokrLinear(base, LoraSpec(dim=2, kind="lokr")).whole


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(16, 24, bias=False) for _ in range(2))


BOTH = (r"layers\.\d",)


def test_the_first_pattern_that_matches_sets_a_layers_rank_and_alpha_stays_one_number() -> None:
    spec = LoraSpec(dim=8, include=BOTH, dims=((r".*\.1", 2), (r"layers.*", 4)))
    modules = attach_network(Two(), spec).modules
    assert [len(module.lora_down) for module in modules.values()] == [4, 2]
    assert [module.scale for module in modules.values()] == [1.0, 1.0]
    strong = attach_network(Two(), LoraSpec(dim=8, alpha=8.0, include=BOTH, dims=((r".*\.1", 2),))).modules
    assert [module.scale for module in strong.values()] == [1.0, 4.0]


@pytest.mark.parametrize("name", SPECS)
def test_a_network_starts_from_a_file_of_its_kind_with_more_ranks_and_another_strength(name: str) -> None:
    entries = {"layers.0": layer(SPECS[name], Two().layers[0]).entry()}
    own = LoraSpec(**{**SPECS[name].__dict__, "dim": SPECS[name].dim + 1, "alpha": 0.5, "include": BOTH})
    if name.startswith("lokr") and not own.full:
        own = LoraSpec(**{**own.__dict__, "dim": 2})
    model = Two()
    network = attach_network(model, own)
    assert start_misfits(network, entries) == [] and start_network(network, entries) == 1
    for path, module in network.modules.items():
        wanted = entries[path].delta(module.base.weight) if path in entries else torch.zeros(24, 16)
        torch.testing.assert_close(module.delta(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_taken_from_a_file(name: str, rslora: bool) -> None:
    model = Two()
    entries = {"layers.1": layer(SPECS[name], model.layers[1]).entry()}
    asked = LoraSpec(dim=50, alpha=3.0, kind=SPECS[name].kind, factor=7, rslora=rslora)
    network = attach_network(model, sized_by(asked, entries))
    assert list(network.modules) == ["layers.1"] and start_misfits(network, entries) == []
    start_network(network, entries)
    (module,) = network.modules.values()
    for one, other in zip(
        module.trained().values(), layer(SPECS[name], Two().layers[1]).trained().values(), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(module.delta(), entries["layers.1"].delta(module.base.weight))


def test_what_does_not_fit_is_said_for_each_reason() -> None:
    network = attach_network(Two(), LoraSpec(dim=2, include=(r"layers\.0",)))
    pair = LowRank(torch.ones(5, 16), torch.ones(24, 5), 5.0)
    found = start_misfits(network, {"layers.0": pair, "layers.1": pair})
    assert found == ["layers.0 has rank 5 there and 2 is trained", "layers.1 is not trained in this run"]
    loha = layer(SPECS["loha"]).entry()
    assert start_misfits(network, {"layers.0": loha}) == ["layers.0 is a LoHa there"]
    lokr = attach_network(Two(), LoraSpec(dim=2, kind="lokr", factor=4, include=(r"layers\.0",)))
    other = layer(SPECS["lokr-rslora"]).entry()
    assert "has a w1 of 2 x 2 there and 4 x 4 is trained" in start_misfits(lokr, {"layers.0": other})[0]


def test_a_dora_that_starts_from_a_lora_is_that_lora() -> None:
    entries = {"layers.0": layer(SPECS["lora"]).entry()}
    network = attach_network(Two(), LoraSpec(dim=3, kind="dora", include=BOTH))
    start_network(network, entries)
    wanted = entries["layers.0"].delta(torch.zeros(24, 16))
    torch.testing.assert_close(network.modules["layers.0"].delta(), wanted, atol=1e-5, rtol=1e-5)
