"""Any dialect into any form gives the same merged weights, to rounding; what a form cannot say is refused."""

import itertools

import pytest
import torch
from dialect_files import BLOCKS, SHAPES, dialects, make, weights
from safetensors.torch import load_file

from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.engine.convert_lora import run as convert
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.model.lora_files import merged_weights, read_lora

TARGETS = ("other", "default", "comfy", "peft", "rust")
PAIRS = list(itertools.product(dialects(), TARGETS))


def _merged(path, base):
    return merged_weights(base, read_lora(path))


def _converted(folder, source, target, name="out.safetensors", **options):
    config = ConvertLoraConfig(input=source, output=folder / name, target=target, **options)
    return convert(config, NullRun(folder))[0]


@pytest.mark.parametrize(("dialect", "target"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_every_dialect_in_every_form_changes_the_weights_alike(tmp_path, dialect, target):
    base = weights()
    source, wanted = make(dialect, tmp_path, BLOCKS if target == "rust" else SHAPES)
    try:
        path = _converted(tmp_path, source, target)
    except UserError as error:
        assert "DoRA" in str(error) and "dora" in dialect and target != "peft"
        assert not (tmp_path / "out.safetensors").exists()
        return
    assert "dora" not in dialect or target == "peft"
    found = _merged(path, base)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, atol=3e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_every_form_can_be_read_into_every_other(tmp_path, first, second):
    source, wanted = make("native mixed", tmp_path)
    there = _converted(tmp_path, source, first, "there.safetensors")
    back = _converted(tmp_path, there, second, "back.safetensors")
    found = _merged(back, weights())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("target", ["comfy", "rust"])
def test_three_ranks_fused_come_back_as_three_ranks(tmp_path, target):
    source, _ = make("native lora", tmp_path)
    ranks = {path: entry.rank for path, entry in read_lora(source).entries.items()}
    there = _converted(tmp_path, source, target, "there.safetensors")
    back = _converted(tmp_path, there, None, "back.safetensors", reverse=True)
    assert {path: entry.rank for path, entry in read_lora(back).entries.items()} == ranks
    assert all(name.startswith("lora_unet_") for name in load_file(back))


def test_modules_that_the_rust_program_does_not_adapt_are_refused_by_name(tmp_path):
    source, _ = make("ai-toolkit", tmp_path)
    with pytest.raises(UserError, match=r"all_x_embedder\.2-1.*no layer that z-image-train adapts"):
        _converted(tmp_path, source, "rust")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
