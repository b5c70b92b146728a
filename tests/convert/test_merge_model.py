"""`merge --dit` and `generate --save_merged_model`: the numbers of every dialect, counted, in every layout."""

import pytest
import torch
from models import DATA, DEMO, FUSED, HUB, MUSUBI, assert_same, convert, said, tensors
from safetensors.torch import load_file, save_file

from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine import generate, merge
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.model.lora_files import AppliedLora, LoraStack, read_lora
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import load_transformer

DIT = MUSUBI / "models" / "dit.safetensors"
RAW = MUSUBI / "lora" / "lora_raw.safetensors"
DIALECTS = DATA / "lora_dialects"


def _merge(output, dit=DIT, loras=(RAW,), **options):
    run = NullRun(output.parent)
    (path,) = merge.run(MergeConfig(dit=dit, lora_weight=loras, output=output, **options), run)
    return path, run


def _assert_equal_but_for_a_rounding(found, want):
    """A sum in fp32 may fall on the other side of a bf16 rounding when it is added up in another order."""
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=1e-6)
        assert (found[name] != tensor).float().mean() < 1e-3, name


def _applied(dit, *loras):
    """What generate makes of the same files."""
    model: ZImageTransformer = load_transformer(dit)
    LoraStack(model).set([AppliedLora(read_lora(path), strength) for path, strength in loras])
    return model.state_dict()


@pytest.mark.parametrize("output", ["o.safetensors", "o.bpk", "o"])
@pytest.mark.parametrize("base", ["split", "bpk"])
def test_the_merged_model_is_what_generate_would_use(tmp_path, output, base):
    dit = DIT if base == "split" else convert(DIT, tmp_path / "base.bpk")[0]
    path, run = _merge(tmp_path / output, dit, (RAW, RAW), lora_multiplier=(0.5,))
    assert "lora_raw.safetensors at 0.5: all of its 14 modules are merged" in said(run)
    assert "lora_raw.safetensors at 1: all of its 14 modules are merged" in said(run)
    _assert_equal_but_for_a_rounding(
        load_transformer(path).state_dict(), _applied(DIT, (RAW, 0.5), (RAW, 1.0))
    )


@pytest.mark.parametrize("name", sorted(path.name for path in DIALECTS.glob("[!b]*.safetensors")))
def test_every_dialect_and_kind_lands_wholly(tmp_path, name):
    """The files of the dialects are made for a model of width 64 with other layers: the weights are built for them."""
    lora = read_lora(DIALECTS / name)
    whole = tensors(HUB / "transformer")
    fits = {
        p
        for p, e in lora.entries.items()
        if whole.get(f"{p}.weight") is not None and tuple(whole[f"{p}.weight"].shape) == e.shape
    }
    if fits != set(lora.entries):
        pytest.skip("made for another size than the small reference model")
    path, _ = _merge(
        tmp_path / "o.safetensors", HUB / "transformer", (DIALECTS / name,), layout="diffusers", dtype="f32"
    )
    merged = load_file(path)
    for module, entry in lora.entries.items():
        weight = whole[f"{module}.weight"]
        torch.testing.assert_close(
            merged[f"{module}.weight"], weight.float() + entry.delta(weight), atol=1e-6, rtol=1e-6
        )


def test_patterns_choose_the_modules(tmp_path):
    path, run = _merge(
        tmp_path / "o.safetensors",
        include_patterns=("to_q",),
        exclude_patterns=(r"layers\.1",),
        layout="diffusers",
    )
    before = load_file(DIT)
    changed = {name for name, tensor in load_file(path).items() if not torch.equal(tensor, before[name])}
    assert changed == {"layers.0.attention.to_q.weight"}
    assert "all of its 1 modules" in said(run)


def test_the_merge_comes_before_the_quantising_and_opens_a_quantised_base(tmp_path):
    merged, _ = _merge(tmp_path / "m.safetensors", dtype="f32")
    want = tensors(convert(merged, tmp_path / "a.safetensors", dtype="fp8_comfy")[0])
    found = tensors(_merge(tmp_path / "b.safetensors", dtype="fp8_comfy")[0])
    quantised = [name for name in found if name.endswith("qkv.weight")]
    assert quantised
    assert all(torch.equal(found[name].view(torch.uint8), want[name].view(torch.uint8)) for name in quantised)
    base, _ = convert(DIT, tmp_path / "fp8.safetensors", dtype="fp8_comfy")
    with pytest.raises(UserError, match="the base is stored as fp8"):
        _merge(tmp_path / "c.safetensors", base)
    opened, _ = convert(base, tmp_path / "open.safetensors", dtype="f32")
    want = tensors(_merge(tmp_path / "d.safetensors", opened)[0])
    assert_same(want, tensors(_merge(tmp_path / "e.safetensors", base, dtype="f32")[0]))


def test_chunks_of_rows_make_the_same_numbers_as_whole_matrices(tmp_path):
    """A matrix of several chunks, changed by every kind of adapter."""
    torch.manual_seed(0)
    model = load_transformer(DEMO / "transformer")
    shapes = {
        n.removesuffix(".weight"): p.shape
        for n, p in model.named_parameters()
        if "layers.0.feed_forward" in n or "layers.0.attention.to" in n
    }
    wide = {name: shape for name, shape in shapes.items() if "w1" in name or "to_out" in name}
    files = []
    for kind in ("lora", "loha", "lokr", "dora"):
        stored = {}
        for name, (rows, width) in wide.items():
            stem = f"diffusion_model.{name}"
            if kind in ("lora", "dora"):
                stored |= {
                    f"{stem}.lora_A.weight": torch.randn(4, width) * 0.1,
                    f"{stem}.lora_B.weight": torch.randn(rows, 4) * 0.1,
                }
            if kind == "dora":
                stored[f"{stem}.dora_scale"] = torch.rand(rows, 1) + 1
            if kind == "loha":
                for side in ("hada_w1", "hada_w2"):
                    stored |= {
                        f"{stem}.{side}_a": torch.randn(rows, 3) * 0.3,
                        f"{stem}.{side}_b": torch.randn(3, width) * 0.3,
                    }
            if kind == "lokr":
                stored |= {
                    f"{stem}.lokr_w1": torch.randn(4, 4),
                    f"{stem}.lokr_w2": torch.randn(rows // 4, width // 4) * 0.1,
                }
        files.append(tmp_path / f"{kind}.safetensors")
        save_file(stored, files[-1])
    path, _ = _merge(
        tmp_path / "o.safetensors", DEMO / "transformer", tuple(files), dtype="f32", layout="diffusers"
    )
    merged, before = load_file(path), model.state_dict()
    for name in wide:
        weight = before[f"{name}.weight"]
        want = weight.float() + sum(read_lora(file).entries[name].delta(weight) for file in files)
        torch.testing.assert_close(merged[f"{name}.weight"], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loras": (DIALECTS / "broken_half_foreign.safetensors",)}, "belong to no module"),
        ({"loras": (DIALECTS / "main_aitoolkit.safetensors",)}, "is made for a weight"),
        ({"loras": (DIT,)}, "is not a LoRA"),
        ({"dit": RAW}, "this is a LoRA"),
        ({"dit": MUSUBI / "models" / "vae.safetensors"}, "must be a transformer"),
        ({"include_patterns": ("nothing",)}, "no module is left"),
        ({"lora_multiplier": (1.0, 2.0)}, "has 2 values, but lora_weight has 1"),
        ({"lora_multiplier": (1e300,)}, "infinite or undefined numbers"),
        ({"loras": ()}, "lora_weight: is missing"),
        ({"rank": 4}, "belongs to a merge of LoRAs into one"),
        ({"dit": None, "layout": "comfy"}, "belongs to a merge into a model"),
    ],
)
def test_what_does_not_land_wholly_is_refused_and_nothing_written(tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        _merge(tmp_path / "o.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_a_lora_is_never_replaced_by_the_result(tmp_path):
    lora = tmp_path / "l.safetensors"
    lora.write_bytes(RAW.read_bytes())
    with pytest.raises(UserError, match="is the input itself"):
        _merge(lora, loras=(lora,), overwrite=True)


def test_generate_saves_the_merged_model_and_makes_no_picture(tmp_path):
    config = GenerateConfig(
        dit=DIT, lora_weight=(RAW,), save_merged_model=tmp_path / "o.safetensors", prompt="a cat"
    )
    assert generate.check(config) == []
    assert generate.run(config, NullRun(tmp_path)) == [tmp_path / "o.safetensors"]
    _assert_equal_but_for_a_rounding(
        load_transformer(tmp_path / "o.safetensors").state_dict(), _applied(DIT, (RAW, 1.0))
    )
    (problem,) = generate.check(GenerateConfig(dit=FUSED, save_merged_model=tmp_path / "p.safetensors"))
    assert "lora_weight is empty" in problem.sentence()


def test_without_a_base_the_other_half_gets_the_options(tmp_path):
    pytest.importorskip("zimage_gui.engine.lora_merge_files")
    run = NullRun(tmp_path)
    (path,) = merge.run(MergeConfig(lora_weight=(RAW, RAW), rank=2, output=tmp_path / "o.safetensors"), run)
    assert set(read_lora(path).ranks) == {2}
