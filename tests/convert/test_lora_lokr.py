"""LoKr files as LoRAs of a rank: what that costs is said, and where nothing is changed a rank is refused."""

import pytest
import torch
from lora_tool_files import DIALECTS, deltas, run_tool
from safetensors.torch import load_file, save_file

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.engine import (
    convert_lora,
)
from zimage_gui.errors import UserError
from zimage_gui.model.lora_files import read_lora
from zimage_gui.model.lora_lowrank import spectrum


def _convert(folder, source, **options):
    config = ConvertLoraConfig(input=source, output=folder / "c.safetensors", **options)
    return run_tool(convert_lora, config, folder)


def test_lokr_rank_limits_the_rank_and_says_the_error(tmp_path):
    parts = {
        f"lora_unet_layers_0_attention_to_{part}.{name}": torch.randn(8, 8)
        for part in "qkv"
        for name in ("lokr_w1", "lokr_w2")
    }
    source = tmp_path / "lokr.safetensors"
    save_file(parts, source)
    path, said = _convert(tmp_path, source, lokr_rank=6)
    (up,) = [tensor for name, tensor in load_file(path).items() if name.endswith("qkv.lora_up.weight")]
    assert up.shape == (192, 6) and "largest relative error" in said
    wanted = torch.cat([deltas(source)[f"layers.0.attention.to_{part}"] for part in "qkv"])
    found = torch.cat([deltas(path)[f"layers.0.attention.to_{part}"] for part in "qkv"])
    best = float(torch.linalg.svdvals(wanted.double())[6:].norm())
    assert float((found - wanted).norm()) == pytest.approx(best, rel=1e-4)
    assert f"{best / float(wanted.norm()):.2%}" in said


def test_a_kronecker_products_spectrum_is_that_of_its_matrix():
    torch.manual_seed(0)
    for name in ("lokr_full_dm", "lokr_lowrank_dm"):
        for entry in read_lora(DIALECTS / f"{name}.safetensors").entries.values():
            delta = entry.delta(torch.zeros(entry.shape))
            values = torch.linalg.svdvals(delta.double())
            torch.testing.assert_close(
                spectrum(entry).s[: len(values)], values[: len(spectrum(entry).s)], atol=1e-6, rtol=1e-5
            )
            torch.testing.assert_close(spectrum(entry).cut()[0].delta(delta), delta, atol=1e-6, rtol=1e-5)


def test_a_rank_for_lokr_is_refused_where_a_lokr_stays_one(tmp_path):
    with pytest.raises(UserError, match="belongs to the targets comfy"):
        _convert(tmp_path, DIALECTS / "lokr_full_dm.safetensors", target="other", lokr_rank=4)
