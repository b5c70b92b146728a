"""The LoRA tools on real files: exact where they say so, honest about errors, and never half done."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from zimage_gui.cli import main
from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.config.convert_model import ConvertConfig, MergeConfig
from zimage_gui.config.lora_tools import (
    EditLoraConfig,
    EmaLoraConfig,
    ExtractLoraConfig,
    ResizeLoraConfig,
    VerifyLoraConfig,
)
from zimage_gui.engine import (
    convert_lora,
    convert_model,
    lora_edit,
    lora_ema,
    lora_extract,
    lora_merge_files,
    lora_resize,
    lora_verify,
    merge,
)
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun, Warning
from zimage_gui.files import read_header
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_files import read_lora, write_lora
from zimage_gui.model.lora_lowrank import of_dense, of_factors, spectrum

DATA = Path(__file__).parents[1] / "data"
DIALECTS = DATA / "lora_dialects"
HUB = DATA / "reference" / "hub"
MAIN = DIALECTS / "main_kohya_split.safetensors"


def _said(run):
    return " | ".join(getattr(event, "text", "") for event in run.events)


def _deltas(path):
    return {n: e.delta(torch.zeros(e.shape)) for n, e in read_lora(path).entries.items()}


def _run(module, config, folder):
    run = NullRun(folder)
    made = module.run(config, run)
    return (made[0] if made else None), _said(run)


def _lora(
    path,
    seed=0,
    rank=4,
    modules=("layers.0.attention.to_q", "layers.0.feed_forward.w1"),
    size=(40, 30),
    alpha=2.0,
):
    generator = torch.Generator().manual_seed(seed)
    entries = {
        name: LowRank(
            torch.randn(rank, size[1], generator=generator),
            torch.randn(size[0], rank, generator=generator),
            alpha,
        )
        for name in modules
    }
    write_lora(path, entries, "native", {"ss_network_dim": str(rank), "modelspec.title": "old"})
    return path


def test_merging_loras_adds_their_changes_exactly(tmp_path):
    loras = (MAIN, DIALECTS / "fused_kohya.safetensors", DIALECTS / "loha_kohya.safetensors")
    config = MergeConfig(lora_weight=loras, lora_multiplier=(0.5, -2.0), output=tmp_path / "m.safetensors")
    path, said = _run(lora_merge_files, config, tmp_path)
    parts = [_deltas(lora) for lora in loras]
    found = _deltas(path)
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
    loras = (_lora(tmp_path / "a.safetensors", 0), _lora(tmp_path / "b.safetensors", 1))
    path, said = _run(
        lora_merge_files, MergeConfig(lora_weight=loras, output=tmp_path / "m.safetensors", rank=5), tmp_path
    )
    wanted = {name: delta + _deltas(loras[1])[name] for name, delta in _deltas(loras[0]).items()}
    found = _deltas(path)
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
        _run(merge, MergeConfig(lora_weight=(MAIN,), output=tmp_path / "m.safetensors", **wrong), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dora_is_not_merged_with_others(tmp_path):
    loras = (MAIN, DIALECTS / "dora_peft.safetensors")
    with pytest.raises(UserError, match="DoRA"):
        _run(lora_merge_files, MergeConfig(lora_weight=loras, output=tmp_path / "m.safetensors"), tmp_path)


def test_resizing_keeps_the_energy_that_was_asked_for(tmp_path):
    source = _lora(tmp_path / "s.safetensors", rank=8)
    config = ResizeLoraConfig(input=source, output=tmp_path / "r.safetensors", energy=0.9)
    path, said = _run(lora_resize, config, tmp_path)
    before, after = _deltas(source), _deltas(path)
    for name, delta in before.items():
        kept = after[name].square().sum() / delta.square().sum()
        squares = torch.linalg.svdvals(delta.double()).square()
        rank = read_lora(path).entries[name].rank
        assert kept + 1e-6 >= 0.9 and float(squares[: rank - 1].sum() / squares.sum()) < 0.9
    assert "relative error" in said
    assert all(name.startswith("lora_unet_") for name in load_file(path))
    assert read_header(path).metadata["modelspec.title"] == "old"


def test_resizing_to_a_larger_rank_changes_nothing(tmp_path):
    source = _lora(tmp_path / "s.safetensors", rank=3)
    path, said = _run(
        lora_resize, ResizeLoraConfig(input=source, output=tmp_path / "r.safetensors", rank=64), tmp_path
    )
    for name, delta in _deltas(path).items():
        torch.testing.assert_close(delta, _deltas(source)[name], atol=2e-6, rtol=1e-5)
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
    found, wanted = _deltas(path), _deltas(lora.path)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(found[name], delta, atol=3e-5, rtol=0)
    (warning,) = [event.text for event in run.events if isinstance(event, Warning)]
    assert "layers.0.attention_norm1.weight" in warning
    burn = tmp_path / "base.bpk"
    convert_model.run(ConvertConfig(input=HUB / "transformer", output=burn), NullRun(tmp_path))
    again = config.with_(base=burn, output=tmp_path / "y.safetensors")
    (other,) = lora_extract.run(again, NullRun(tmp_path))
    assert all(torch.equal(delta, found[name]) for name, delta in _deltas(other).items())
    config = ExtractLoraConfig(base=tuned, tuned=tuned, output=tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="does not differ"):
        _run(lora_extract, config, tmp_path)


def _edit(folder, source=MAIN, **options):
    config = EditLoraConfig(input=source, output=folder / "e.safetensors", **options)
    return _run(lora_edit, config, folder)[0]


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
    for module, delta in _deltas(source).items():
        torch.testing.assert_close(_deltas(path)[module], 0.3 * delta, atol=2e-6, rtol=1e-5)


def test_pruned_modules_are_gone_and_the_others_untouched(tmp_path):
    path = _edit(tmp_path, prune=("attention", "layers_1_feed_forward_w2"))
    before, after = _deltas(MAIN), _deltas(path)
    assert after.keys() == {name for name in before if "attention" not in name} - {"layers.1.feed_forward.w2"}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_pruned_peft_file_names_only_what_is_left(tmp_path):
    path = _edit(tmp_path, DIALECTS / "main_peft_diffusers.safetensors", prune=("feed_forward",))
    facts = json.loads(read_header(path).metadata["lora_adapter_metadata"])
    assert set(facts["transformer.target_modules"]) == set(_deltas(path))


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
    source = _lora(tmp_path / "s.safetensors")
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


def test_numbers_that_a_format_cannot_hold_are_refused(tmp_path):
    source = tmp_path / "s.safetensors"
    entry = LowRank(torch.full((1, 8), 1e5), torch.ones(8, 1), 1.0)
    write_lora(source, {"layers.0.attention.to_q": entry}, "native")
    with pytest.raises(UserError, match="infinity or NaN"):
        _edit(tmp_path, source, dtype="fp16")
    assert not (tmp_path / "e.safetensors").exists()


def test_verify_counts_the_tensors_that_land(tmp_path):
    whole = VerifyLoraConfig(input=DIALECTS / "all_kohya_split.safetensors", dit=HUB / "transformer")
    assert "138 of 138 tensors land in transformer: 46 modules" in _run(lora_verify, whole, tmp_path)[1]
    fused = VerifyLoraConfig(input=DIALECTS / "all_kohya_fused.safetensors", dit=HUB / "transformer")
    assert "102 of 102 tensors land" in _run(lora_verify, fused, tmp_path)[1]
    foreign = VerifyLoraConfig(input=DIALECTS / "broken_half_foreign.safetensors", dit=HUB / "transformer")
    with pytest.raises(UserError, match="21 of 42 tensors land"):
        _run(lora_verify, foreign, tmp_path)
    full = VerifyLoraConfig(input=DIALECTS / "lokr_full_dm.safetensors", dit=HUB / "transformer")
    assert "full factors; every number is finite" in _run(lora_verify, full, tmp_path)[1]
    with pytest.raises(UserError, match="0 of 138 tensors land in Z-Image"):
        _run(lora_verify, VerifyLoraConfig(input=DIALECTS / "all_kohya_split.safetensors"), tmp_path)


def test_modules_that_change_nothing_are_named(tmp_path):
    entries = {
        "layers.0.attention.to_q": LowRank(torch.randn(2, 3840), torch.zeros(3840, 2), 1.0),
        "layers.0.attention.to_k": LowRank(torch.randn(2, 3840), torch.ones(3840, 2), 1.0),
    }
    write_lora(tmp_path / "z.safetensors", entries)
    _, said = _run(lora_verify, VerifyLoraConfig(input=tmp_path / "z.safetensors"), tmp_path)
    assert "1 of 2 modules change nothing: layers.0.attention.to_q" in said and "6 of 6 tensors land" in said


def _checkpoints(folder, count=4):
    paths = [_lora(folder / f"c{index}.safetensors", index) for index in range(count)]
    for index, path in enumerate(paths):
        os.utime(path, (1_000_000 + index, 1_000_000 + index))
    return paths


@pytest.mark.parametrize(
    ("options", "betas"),
    [
        ({}, [0.95, 0.95, 0.95]),
        ({"beta": 0.9, "beta2": 0.5}, [0.9, 0.7, 0.5]),
        ({"sigma_rel": 0.2}, [0.0, 0.5**2.8395, (2 / 3) ** 2.8395]),
    ],
)
def test_the_average_is_the_first_seeds(tmp_path, options, betas):
    paths = _checkpoints(tmp_path)
    if "sigma_rel" in options:
        power = lora_ema.gamma(0.2) + 1
        assert ((power) / ((power + 1) ** 2 * (power + 2))) ** 0.5 == pytest.approx(
            0.2
        )  # the average's width
        betas = [0.0, 0.5**power, (2 / 3) ** power]
    config = EmaLoraConfig(path=tuple(reversed(paths)), output_file=tmp_path / "ema.safetensors", **options)
    path, _ = _run(lora_ema, config, tmp_path)
    wanted = load_file(paths[0])
    for file, beta in zip(paths[1:], betas, strict=True):
        wanted = {name: wanted[name] * beta + tensor * (1 - beta) for name, tensor in load_file(file).items()}
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(tensor, wanted[name])


def test_the_first_seeds_line_for_the_average_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [path.name for path in _checkpoints(tmp_path)]
    assert main(["ema-lora", *names, "--no_sort", "--beta", "0.9", "--output_file", "out.safetensors"]) == 0
    assert main(["ema-lora", *names, "--output_file", "out.safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err
    _lora(tmp_path / "other.safetensors", rank=5)
    assert main(["ema-lora", names[0], "other.safetensors", "--output_file", "x.safetensors"]) == 2
    assert "in the first file" in capsys.readouterr().err


def _convert(folder, source, **options):
    config = ConvertLoraConfig(input=source, output=folder / "c.safetensors", **options)
    return _run(convert_lora, config, folder)


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
    wanted = torch.cat([_deltas(source)[f"layers.0.attention.to_{part}"] for part in "qkv"])
    found = torch.cat([_deltas(path)[f"layers.0.attention.to_{part}"] for part in "qkv"])
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
