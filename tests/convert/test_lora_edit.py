"""edit-lora and verify-lora: what was asked for is changed, everything else stays, and what lands is counted."""

import json

import pytest
import torch
from lora_tool_files import DIALECTS, HUB, MAIN, deltas, run_tool, write_small_lora
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file

from zimage_gui.config.lora_tools import (
    EditLoraConfig,
    VerifyLoraConfig,
)
from zimage_gui.engine import (
    lora_edit,
    lora_verify,
)
from zimage_gui.errors import UserError
from zimage_gui.files import read_header
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_files import write_lora


def _edit(folder, source=MAIN, **options):
    config = EditLoraConfig(input=source, output=folder / "e.safetensors", **options)
    return run_tool(lora_edit, config, folder)[0]


@pytest.mark.parametrize(
    "name",
    [
        "main_kohya_split",
        "main_peft_diffusers",
        "fused_rust",
        "loha_kohya",
        "lokr_full_dm",
        "lokr_lowrank_kohya",
    ],
)
def test_scaling_scales_the_change_and_keeps_the_names(tmp_path, name):
    source = DIALECTS / f"{name}.safetensors"
    path = _edit(tmp_path, source, scale=0.3)
    assert load_file(path).keys() == load_file(source).keys()
    for module, delta in deltas(source).items():
        torch.testing.assert_close(deltas(path)[module], 0.3 * delta, atol=2e-6, rtol=1e-5)


def test_pruned_modules_are_gone_and_the_others_untouched(tmp_path):
    path = _edit(tmp_path, prune=("attention", "layers_1_feed_forward_w2"))
    before, after = deltas(MAIN), deltas(path)
    assert after.keys() == {name for name in before if "attention" not in name} - {"layers.1.feed_forward.w2"}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_pruned_peft_file_names_only_what_is_left(tmp_path):
    path = _edit(tmp_path, DIALECTS / "main_peft_diffusers.safetensors", prune=("feed_forward",))
    facts = json.loads(read_header(path).metadata["lora_adapter_metadata"])
    assert set(facts["transformer.target_modules"]) == set(deltas(path))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("main_kohya_split", {"prune": ("nowhere",)}, "finds none of the 14"),
        ("main_kohya_split", {"prune": (".",)}, "finds all"),
        ("fused_kohya", {"prune": ("to_k",)}, "only a part of the fused"),
        ("dora_peft", {"scale": 2.0}, "DoRA"),
        ("main_kohya_split", {}, "nothing to change"),
        ("main_kohya_split", {"scale": 100.0, "dtype": "fp16", "thumbnail": MAIN}, "no picture"),
        ("broken_missing_half", {"scale": 2.0}, "incomplete"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(tmp_path, name, options, reason):
    with pytest.raises(UserError, match=reason):
        _edit(tmp_path, DIALECTS / f"{name}.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_the_header_is_edited_and_the_tensors_stay(tmp_path):
    picture = tmp_path / "p.png"
    Image.new("RGBA", (600, 300), (255, 0, 0, 128)).save(picture)
    source = write_small_lora(tmp_path / "s.safetensors")
    path = _edit(
        tmp_path,
        source,
        title="Кот 猫",
        trigger_words="zorb, cat",
        description="",
        thumbnail=picture,
        remove_keys=("ss_*",),
    )
    metadata = read_header(path).metadata
    assert metadata["modelspec.title"] == "Кот 猫" and metadata["modelspec.trigger_phrase"] == "zorb, cat"
    assert (
        metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
        and "ss_network_dim" not in metadata
    )
    before, after = load_file(source), load_file(path)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert len(metadata["sshs_model_hash"]) == 64


def test_header_entries_taken_out_are_counted(tmp_path):
    config = EditLoraConfig(
        input=MAIN, output=tmp_path / "e.safetensors", remove_keys=("ss_network*", "typo")
    )
    assert "3 taken out" in run_tool(lora_edit, config, tmp_path)[1]


def test_numbers_that_a_format_cannot_hold_are_refused(tmp_path):
    source = tmp_path / "s.safetensors"
    entry = LowRank(torch.full((1, 8), 1e5), torch.ones(8, 1), 1.0)
    write_lora(source, {"layers.0.attention.to_q": entry}, "native")
    with pytest.raises(UserError, match="infinity or NaN"):
        _edit(tmp_path, source, dtype="fp16")
    assert not (tmp_path / "e.safetensors").exists()


def test_verify_counts_the_tensors_that_land(tmp_path):
    whole = VerifyLoraConfig(input=DIALECTS / "all_kohya_split.safetensors", dit=HUB / "transformer")
    assert "138 of 138 tensors land in transformer: 46 modules" in run_tool(lora_verify, whole, tmp_path)[1]
    fused = VerifyLoraConfig(input=DIALECTS / "all_kohya_fused.safetensors", dit=HUB / "transformer")
    assert "102 of 102 tensors land" in run_tool(lora_verify, fused, tmp_path)[1]
    foreign = VerifyLoraConfig(input=DIALECTS / "broken_half_foreign.safetensors", dit=HUB / "transformer")
    with pytest.raises(UserError, match="21 of 42 tensors land"):
        run_tool(lora_verify, foreign, tmp_path)
    full = VerifyLoraConfig(input=DIALECTS / "lokr_full_dm.safetensors", dit=HUB / "transformer")
    assert "full factors; every number is finite" in run_tool(lora_verify, full, tmp_path)[1]
    with pytest.raises(UserError, match="0 of 138 tensors land in Z-Image"):
        run_tool(lora_verify, VerifyLoraConfig(input=DIALECTS / "all_kohya_split.safetensors"), tmp_path)


def test_modules_that_change_nothing_are_named(tmp_path):
    entries = {
        "layers.0.attention.to_q": LowRank(torch.randn(2, 3840), torch.zeros(3840, 2), 1.0),
        "layers.0.attention.to_k": LowRank(torch.randn(2, 3840), torch.ones(3840, 2), 1.0),
    }
    write_lora(tmp_path / "z.safetensors", entries)
    _, said = run_tool(lora_verify, VerifyLoraConfig(input=tmp_path / "z.safetensors"), tmp_path)
    assert "1 of 2 modules change nothing: layers.0.attention.to_q" in said and "6 of 6 tensors land" in said


def test_a_thumbnail_of_a_kind_nobody_asked_for_is_not_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for it."""
    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_: started.append(1) or Image.core.new("RGB", (2, 2))
    )
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.eps")
    path = (tmp_path / "picture.eps").rename(tmp_path / "picture.png")
    with pytest.raises(UserError, match="no picture"):
        _edit(tmp_path, thumbnail=path)
    assert not started
