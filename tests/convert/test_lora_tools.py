"""The LoRA tools on real files: exact where they say so, honest about errors, and never half done."""

import json

import pytest
import torch
from lora_tool_files import DIALECTS, HUB, MAIN, deltas, run_tool, write_small_lora
from safetensors.torch import load_file, save_file

from zimage_gui.config.convert_model import ConvertConfig, MergeConfig
from zimage_gui.config.lora_tools import (
    ExtractLoraConfig,
    ResizeLoraConfig,
)
from zimage_gui.engine import (
    convert_model,
    lora_extract,
    lora_merge_files,
    lora_resize,
    merge,
)
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun, Warning
from zimage_gui.files import read_header
from zimage_gui.model.lora_files import read_lora
from zimage_gui.model.lora_lowrank import of_dense, of_factors


def test_merging_loras_adds_their_changes_exactly(tmp_path):
    loras = (MAIN, DIALECTS / "fused_kohya.safetensors", DIALECTS / "loha_kohya.safetensors")
    config = MergeConfig(lora_weight=loras, lora_multiplier=(0.5, -2.0), output=tmp_path / "m.safetensors")
    path, said = run_tool(lora_merge_files, config, tmp_path)
    parts = [deltas(lora) for lora in loras]
    found = deltas(path)
    assert found.keys() == set().union(*parts) and "exactly" in said
    for name, delta in found.items():
        wanted = sum(
            weight * part[name] for weight, part in zip((0.5, -2.0, 1.0), parts, strict=True) if name in part
        )
        torch.testing.assert_close(delta, wanted, atol=2e-6, rtol=1e-5)
    assert [entry["strength"] for entry in json.loads(read_header(path).metadata["zimage_gui_merged"])] == [
        0.5,
        -2,
        1,
    ]


def test_merging_to_a_rank_says_the_error_it_makes(tmp_path):
    loras = (write_small_lora(tmp_path / "a.safetensors", 0), write_small_lora(tmp_path / "b.safetensors", 1))
    path, said = run_tool(
        lora_merge_files, MergeConfig(lora_weight=loras, output=tmp_path / "m.safetensors", rank=5), tmp_path
    )
    wanted = {name: delta + deltas(loras[1])[name] for name, delta in deltas(loras[0]).items()}
    found = deltas(path)
    lost = sum(float((found[name] - delta).square().sum()) for name, delta in wanted.items())
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    assert f"relative error of the whole {(lost / whole) ** 0.5:.3%}" in said
    for name, delta in wanted.items():
        best = torch.linalg.svdvals(delta.double())[5:].norm()
        assert float((found[name] - delta).norm()) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"dtype": "fp8_comfy"}, {"layout": "comfy"}, {"prefix": "a."}, {"include_patterns": ("nothing",)}],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError):
        run_tool(
            merge, MergeConfig(lora_weight=(MAIN,), output=tmp_path / "m.safetensors", **wrong), tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_dora_is_not_merged_with_others(tmp_path):
    loras = (MAIN, DIALECTS / "dora_peft.safetensors")
    with pytest.raises(UserError, match="DoRA"):
        run_tool(
            lora_merge_files, MergeConfig(lora_weight=loras, output=tmp_path / "m.safetensors"), tmp_path
        )


def test_resizing_keeps_the_energy_that_was_asked_for(tmp_path):
    source = write_small_lora(tmp_path / "s.safetensors", rank=8)
    config = ResizeLoraConfig(input=source, output=tmp_path / "r.safetensors", energy=0.9)
    path, said = run_tool(lora_resize, config, tmp_path)
    before, after = deltas(source), deltas(path)
    for name, delta in before.items():
        kept = after[name].square().sum() / delta.square().sum()
        squares = torch.linalg.svdvals(delta.double()).square()
        rank = read_lora(path).entries[name].rank
        assert kept + 1e-6 >= 0.9 and float(squares[: rank - 1].sum() / squares.sum()) < 0.9
    assert "relative error" in said
    assert all(name.startswith("lora_unet_") for name in load_file(path))
    assert read_header(path).metadata["modelspec.title"] == "old"


def test_resizing_to_a_larger_rank_changes_nothing(tmp_path):
    source = write_small_lora(tmp_path / "s.safetensors", rank=3)
    path, said = run_tool(
        lora_resize, ResizeLoraConfig(input=source, output=tmp_path / "r.safetensors", rank=64), tmp_path
    )
    for name, delta in deltas(path).items():
        torch.testing.assert_close(delta, deltas(source)[name], atol=2e-6, rtol=1e-5)
    assert "below 0.001%" in said and read_header(path).metadata["ss_network_dim"] == "3"


def test_singular_values_of_factors_are_those_of_the_dense_matrix():
    torch.manual_seed(0)
    up, down = torch.randn(50, 6).double(), torch.randn(6, 70).double()
    exact = torch.linalg.svdvals(up @ down)[:6]
    torch.testing.assert_close(of_factors(up, down).s, exact)
    low, error = of_factors(up, down).cut(2)
    assert error == pytest.approx(float((exact[2:].square().sum() / exact.square().sum()).sqrt()))
    assert float(
        (low.delta(torch.zeros(50, 70)).double() - up @ down).norm() / exact.norm()
    ) == pytest.approx(error, rel=1e-5)


def test_large_matrices_are_cut_as_well_as_by_a_whole_svd():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(1100, 8, generator=generator) @ torch.randn(8, 1300, generator=generator)
    change += 0.01 * torch.randn(1100, 1300, generator=generator)
    low, error = of_dense(change, 8, None).cut(8)
    exact = torch.linalg.svdvals(change)
    assert error == pytest.approx(float(exact[8:].norm() / exact.norm()), rel=1e-3)
    assert float((low.delta(change) - change).norm() / change.norm()) == pytest.approx(error, rel=1e-3)


def _transformer(folder, change):
    folder.mkdir()
    weights = {}
    for file in sorted((HUB / "transformer").glob("*.safetensors")):
        weights |= load_file(file)
    change(weights)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_bytes((HUB / "transformer" / "config.json").read_bytes())
    return folder


def test_models_with_nan_have_no_difference(tmp_path):
    def spoil(weights):
        weights["layers.0.feed_forward.w1.weight"][0, 0] = float("nan")

    spoilt, whole = _transformer(tmp_path / "tuned", spoil), HUB / "transformer"
    for option, base, tuned in (("tuned", whole, spoilt), ("base", spoilt, whole)):
        config = ExtractLoraConfig(base=base, tuned=tuned, output=tmp_path / "x.safetensors")
        with pytest.raises(
            UserError, match=f"{option} = .* holds NaN or infinity in layers.0.feed_forward.w1"
        ):
            run_tool(lora_extract, config, tmp_path)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("module", ["merge", "resize", "extract"])
def test_a_form_that_cannot_say_a_lora_is_refused_by_the_name_of_the_option(tmp_path, module):
    lora, output = DIALECTS / "all_kohya_split.safetensors", tmp_path / "o.safetensors"
    if module == "extract":

        def change(weights):
            weights["layers.0.adaLN_modulation.0.weight"] = weights["layers.0.adaLN_modulation.0.weight"] + 1

        tuned = _transformer(tmp_path / "tuned", change)
        config = ExtractLoraConfig(base=HUB / "transformer", tuned=tuned, output=output, lora_format="rust")
        tool = lora_extract
    elif module == "resize":
        config, tool = ResizeLoraConfig(input=lora, output=output, rank=2, lora_format="rust"), lora_resize
    else:
        config, tool = MergeConfig(lora_weight=(lora,), output=output, lora_format="rust"), lora_merge_files
    with pytest.raises(UserError, match=r"lora_format = rust: .*adaLN"):
        run_tool(tool, config, tmp_path)


def test_the_difference_of_two_models_comes_back_as_the_lora_that_made_it(tmp_path):
    lora = read_lora(DIALECTS / "all_kohya_split.safetensors")

    def merge(weights):
        for path, entry in lora.entries.items():
            name = f"{path}.weight"
            weights[name] = weights[name].float() + entry.delta(weights[name].float())
        weights["layers.0.attention_norm1.weight"] = weights["layers.0.attention_norm1.weight"] + 1

    tuned = _transformer(tmp_path / "tuned", merge)
    config = ExtractLoraConfig(
        base=HUB / "transformer", tuned=tuned, output=tmp_path / "x.safetensors", rank=4
    )
    run = NullRun(tmp_path)
    (path,) = lora_extract.run(config, run)
    found, wanted = deltas(path), deltas(lora.path)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(found[name], delta, atol=3e-5, rtol=0)
    (warning,) = [event.text for event in run.events if isinstance(event, Warning)]
    assert "layers.0.attention_norm1.weight" in warning
    burn = tmp_path / "base.bpk"
    convert_model.run(ConvertConfig(input=HUB / "transformer", output=burn), NullRun(tmp_path))
    again = config.with_(base=burn, output=tmp_path / "y.safetensors")
    (other,) = lora_extract.run(again, NullRun(tmp_path))
    assert all(torch.equal(delta, found[name]) for name, delta in deltas(other).items())
    config = ExtractLoraConfig(base=tuned, tuned=tuned, output=tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="does not differ"):
        run_tool(lora_extract, config, tmp_path)
