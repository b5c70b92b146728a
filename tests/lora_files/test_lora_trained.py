"""Every kind of network, as it is trained, exported and read by us, by ComfyUI's rules and by diffusers."""

import pytest
import torch
from comfy_twin import apply, fused_model
from lora_golden import output_of
from safetensors.torch import load_file
from test_lora_consumers import _fused_by_diffusers

from zimage_gui.engine.methods import LoraMethod
from zimage_gui.model.adapter import LoraSpec
from zimage_gui.model.lora_merge import merge_lora
from zimage_gui.model.lora_read import read_lora
from zimage_gui.model.networks import attach_network

SPECS = {
    "lora": LoraSpec(dim=4, alpha=3.0, dims=((".*w1", 6),)),
    "rslora": LoraSpec(dim=4, alpha=3.0, rslora=True),
    "dora": LoraSpec(dim=4, alpha=3.0, kind="dora"),
    "loha": LoraSpec(dim=4, alpha=3.0, kind="loha"),
    "lokr": LoraSpec(dim=2, alpha=3.0, kind="lokr", factor=4),
    "lokr-whole": LoraSpec(kind="lokr", full=True),
}


def trained(model, spec):
    """A network whose every number has been moved."""
    network = attach_network(model, spec)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in network.named_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in SPECS for form in ("universal", "native", "peft")
     if (kind == "dora") == (form == "peft") or (kind in ("lora", "rslora") and form == "peft")],
)  # fmt: skip
def test_the_file_gives_the_picture_of_the_training(tmp_path, model, base, probe, kind, form):
    network = trained(model, SPECS[kind])
    wanted = output_of(model, probe)
    weights = {path: module.base.weight + module.delta() for path, module in network.modules.items()}
    path = tmp_path / "x.safetensors"
    assert LoraMethod(model, network, form).export(path, {}) == len(network.modules)
    network.detach()
    merge_lora(model, read_lora(path))
    torch.testing.assert_close(output_of(model, probe), wanted, atol=1e-4, rtol=1e-4)
    changed = base | {f"{name}.weight": weight for name, weight in weights.items()}
    if form == "universal":
        split = {name: tensor for name, tensor in changed.items() if tensor.dim() == 2}
        plain = {name: base[name] for name in split}
        found, unused = apply(plain, load_file(path))
        assert not unused
        for name, tensor in fused_model(split).items():
            torch.testing.assert_close(found[name], tensor, atol=3e-6, rtol=1e-5)
    if form == "peft" or (kind == "rslora" and form == "universal"):
        for name, tensor in _fused_by_diffusers(path).items():
            torch.testing.assert_close(tensor, changed[name], atol=3e-6, rtol=1e-5)
