"""`convert-lora` from the files and command lines a user has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zimage_gui.cli import main
from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.engine.convert_lora import check
from zimage_gui.engine.convert_lora import run as convert
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.files import read_header
from zimage_gui.model.lora_files import read_lora

DATA = Path(__file__).parents[1] / "data"
DIALECTS = DATA / "lora_dialects"
MUSUBI = DATA / "musubi" / "lora"


def _convert(tmp_path, source, name="out.safetensors", **options):
    run = NullRun(tmp_path)
    (path,) = convert(ConvertLoraConfig(input=source, output=tmp_path / name, **options), run)
    return path, run


def _deltas(path):
    return {name: entry.delta(torch.zeros(entry.shape)) for name, entry in read_lora(path).entries.items()}


def _assert_same(first, second, tolerance=2e-6):
    before, after = _deltas(first), _deltas(second)
    assert before.keys() == after.keys()
    for name, delta in before.items():
        torch.testing.assert_close(after[name], delta, atol=tolerance, rtol=0)


def test_target_other_means_what_musubis_own_conversion_means(tmp_path):
    path, run = _convert(tmp_path, MUSUBI / "lora_raw.safetensors", target="other")
    _assert_same(MUSUBI / "lora_other.safetensors", path, tolerance=1e-5)
    assert all(name.startswith("diffusion_model.layers.") for name in load_file(path))
    assert "all of its 14 modules" in run.events[-1].text
    header = read_header(path).metadata
    assert header["ss_network_alpha"] == "2.0"
    assert (
        header["sshs_model_hash"] != read_header(MUSUBI / "lora_raw.safetensors").metadata["sshs_model_hash"]
    )


def test_there_and_back_is_bit_exact(tmp_path):
    there, _ = _convert(tmp_path, MUSUBI / "lora_raw.safetensors", "there.safetensors", target="other")
    back, _ = _convert(tmp_path, there, "back.safetensors", target="default")
    before, after = load_file(MUSUBI / "lora_raw.safetensors"), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    metadata = read_header(MUSUBI / "lora_raw.safetensors").metadata
    assert read_header(back).metadata == metadata


def test_the_second_converter_fuses_and_reverses(tmp_path):
    fused, _ = _convert(tmp_path, MUSUBI / "lora_raw.safetensors", "fused.safetensors", target="comfy")
    theirs = load_file(MUSUBI / "lora_comfy.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_file(fused).items())
    back, _ = _convert(tmp_path, MUSUBI / "lora_comfy.safetensors", "back.safetensors", reverse=True)
    raw = load_file(MUSUBI / "lora_raw.safetensors")
    assert all(torch.equal(tensor, raw[name]) for name, tensor in load_file(back).items())


def test_reverse_of_a_genuine_fused_lora_loses_nothing(tmp_path):
    source = DIALECTS / "fused_kohya.safetensors"
    path, _ = _convert(tmp_path, source, reverse=True)
    _assert_same(source, path)
    assert load_file(path)["lora_unet_layers_0_attention_to_k.lora_down.weight"].shape == (4, 64)


@pytest.mark.parametrize(
    "name",
    [
        "fused_rust.safetensors",
        "main_peft_diffusers.safetensors",
        "all_diffsynth_default.safetensors",
        "lokr_lowrank_kohya.safetensors",
    ],
)
@pytest.mark.parametrize("target", ["other", "default"])
def test_other_dialects_are_read_too(tmp_path, name, target):
    path, _ = _convert(tmp_path, DIALECTS / name, target=target)
    _assert_same(DIALECTS / name, path)


def test_an_alpha_in_the_header_is_not_left_to_act_twice(tmp_path):
    path, _ = _convert(tmp_path, DIALECTS / "main_peft_diffusers.safetensors", diffusers_prefix="transformer")
    assert "lora_adapter_metadata" not in read_header(path).metadata
    _assert_same(DIALECTS / "main_peft_diffusers.safetensors", path)


def test_folding_an_odd_alpha_into_bf16_loses_nothing(tmp_path):
    module = "lora_unet_layers_0_feed_forward_w1"
    source = tmp_path / "odd.safetensors"
    save_file(
        {
            f"{module}.lora_down.weight": torch.randn(3, 8).bfloat16(),
            f"{module}.lora_up.weight": torch.randn(6, 3).bfloat16(),
            f"{module}.alpha": torch.tensor(1.0),
        },
        source,
    )
    path, _ = _convert(tmp_path, source)
    _assert_same(source, path, tolerance=5e-7)
    assert load_file(path)["diffusion_model.layers.0.feed_forward.w1.lora_A.weight"].dtype is torch.bfloat16


def test_nothing_is_replaced_unless_asked(tmp_path):
    source = MUSUBI / "lora_raw.safetensors"
    path, _ = _convert(tmp_path, source)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        _convert(tmp_path, source, target="default")
    assert path.read_bytes() == before
    _convert(tmp_path, source, target="default", overwrite=True)
    assert path.read_bytes() != before


def test_the_input_is_never_the_output_under_another_name(tmp_path):
    source = tmp_path / "a.safetensors"
    source.write_bytes((MUSUBI / "lora_raw.safetensors").read_bytes())
    (tmp_path / "sub").mkdir()
    config = ConvertLoraConfig(input=source, output=tmp_path / "sub" / ".." / "a.safetensors", overwrite=True)
    with pytest.raises(UserError, match="input file itself"):
        convert(config, NullRun(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("broken_unknown_keys.safetensors", {}, "to_z"),
        ("broken_missing_half.safetensors", {}, "to_v is incomplete"),
        ("broken_other_model.safetensors", {}, "belong to no module"),
        ("dora_peft.safetensors", {}, "target = other: .*DoRA"),
        ("dora_peft.safetensors", {"target": "comfy"}, "DoRA"),
        ("manifest.json", {}, "header"),
        ("../musubi/models/vae.safetensors", {}, "is not a LoRA"),
        ("absent.safetensors", {}, "does not exist"),
    ],
)
def test_what_cannot_be_converted_whole_is_refused_and_nothing_written(tmp_path, name, options, reason):
    with pytest.raises(UserError, match=reason) as error:
        _convert(tmp_path, DIALECTS / name, **options)
    assert "lora_weight" not in {problem.option for problem in error.value.problems}
    assert not (tmp_path / "out.safetensors").exists()


def test_a_check_finds_the_same_without_writing(tmp_path):
    config = ConvertLoraConfig(
        input=DIALECTS / "dora_peft.safetensors", output=tmp_path / "o.safetensors", target="default"
    )
    assert "DoRA" in check(config)[0].sentence()
    assert (
        check(ConvertLoraConfig(input=MUSUBI / "lora_raw.safetensors", output=tmp_path / "o.safetensors"))
        == []
    )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        source = str(DIALECTS / "main_kohya_split.safetensors")
        code = main(["convert-lora", source, str(tmp_path / "out.safetensors")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert (
        "out.safetensors: cannot be written: the drive takes no file of this size" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())
