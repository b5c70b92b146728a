"""Every dialect means the weights it was made from; every broken file is refused whole."""

import re

import pytest
import torch
from lora_golden import DIALECTS, MANIFEST, golden_files, output_of
from safetensors.torch import load_file, save_file

from zimage_gui.errors import UserError
from zimage_gui.model.lora_dialects import parse_key, resolve_module
from zimage_gui.model.lora_files import (
    Dora,
    LoHa,
    LoKr,
    LowRank,
    fit_problems,
    linear_shapes,
    merge_lora,
    merged_weights,
    read_lora,
)


@pytest.mark.parametrize("name", golden_files(broken=False))
def test_every_dialect_gives_the_expected_weights_and_picture(name, base, model, probe):
    content = MANIFEST["files"][name]["content"]
    file = read_lora(DIALECTS / name)
    assert not file.problems
    assert set(file.entries) == set(MANIFEST["contents"][content]["modules"])
    expected = DIALECTS / "expected" / f"{content}.safetensors"
    if expected.exists():
        weights = merged_weights(base, file)
        for key, wanted in load_file(expected).items():
            torch.testing.assert_close(weights.pop(key), wanted, atol=2e-6, rtol=0)
        assert not weights
    assert merge_lora(model, file) == len(file.entries)
    torch.testing.assert_close(output_of(model, probe), probe[f"out/{content}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", golden_files(broken=True))
def test_a_broken_file_is_refused_and_changes_nothing(name, base, model):
    info = MANIFEST["files"][name]
    with pytest.raises(UserError) as caught:
        merge_lora(model, read_lora(DIALECTS / name))
    text = str(caught.value)
    unknown = info.get("unknown_keys", [])
    assert all(re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", key)[16:] in text for key in unknown[:3])
    assert all(key.rsplit(".lora", 1)[0] in text for key in info.get("missing_keys", []))
    assert all(
        key.removeprefix("diffusion_model.").rsplit(".lora", 1)[0] in text for key in info.get("bad_keys", {})
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, base[key])


def test_unknown_names_are_counted():
    (problem,) = read_lora(DIALECTS / "broken_half_foreign.safetensors").problems
    assert "21 of its 42 tensors belong to no module of Z-Image" in problem.sentence()


def test_every_module_of_the_model_is_found_by_its_dotted_and_underscored_name(model):
    for path in linear_shapes(model):
        assert resolve_module(path, ".") == (path,)
        assert resolve_module(path.replace(".", "_"), "_") == (path,)


@pytest.mark.parametrize(
    ("key", "targets"),
    [
        (
            "base_model.model.transformer.layers.3.attention.to_q.lora_A.default.weight",
            ("layers.3.attention.to_q",),
        ),
        ("model.diffusion_model.x_embedder.lora_down.weight", ("all_x_embedder.2-1",)),
        (
            "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight",
            ("all_final_layer.2-1.adaLN_modulation.1",),
        ),
        ("lycoris_noise_refiner_1_adaLN_modulation_0.lokr_w1", ("noise_refiner.1.adaLN_modulation.0",)),
        ("context_refiner.0.attention.to_out.lora_b", ("context_refiner.0.attention.to_out.0",)),
    ],
)
def test_names_of_refiners_embedders_and_modulation_resolve(key, targets):
    assert parse_key(key).targets == targets


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_text_model_encoder.lora_down.weight",
        "layers.0.attention.to_q.weight",
        "lora_unet_layers_x_a.alpha",
    ],
)
def test_names_of_other_things_do_not_resolve(key):
    assert parse_key(key) is None


def _save(folder, tensors, metadata=None):
    path = folder / "a lora 中.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def _pair(name, rank=2, rows=64, columns=64):
    return {
        f"{name}.lora_A.weight": torch.randn(rank, columns),
        f"{name}.lora_B.weight": torch.randn(rows, rank),
    }


def test_a_rust_file_without_its_sidecar_is_refused(tmp_path):
    path = _save(tmp_path, load_file(DIALECTS / "fused_rust.safetensors"))
    (problem,) = read_lora(path).problems
    assert "a lora 中.lora.json" in problem.sentence()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"alpha": "x"}', b'{"alpha": NaN}', b"[" * 100_000, b"\xff"]
)
def test_a_broken_sidecar_is_named(tmp_path, content):
    path = _save(tmp_path, load_file(DIALECTS / "fused_rust.safetensors"))
    (tmp_path / "a lora 中.lora.json").write_bytes(content)
    assert "alpha" in read_lora(path).problems[0].rule


def test_nan_in_a_lora_is_refused_by_name(tmp_path):
    tensors = _pair("diffusion_model.layers.0.attention.to_q")
    tensors["diffusion_model.layers.0.attention.to_q.lora_A.weight"][0, 0] = float("nan")
    assert "to_q.lora_A.weight" in read_lora(_save(tmp_path, tensors)).problems[0].rule


def test_the_same_module_said_twice_is_refused(tmp_path):
    tensors = _pair("diffusion_model.layers.0.attention.to_q") | _pair("transformer.layers.0.attention.to_q")
    assert "twice" in read_lora(_save(tmp_path, tensors)).problems[0].rule


def test_fused_and_split_parts_of_one_block_are_refused(tmp_path):
    tensors = _pair("layers.0.attention.qkv", rows=192) | _pair("layers.0.attention.to_k")
    assert "layers.0.attention.to_k is changed twice" in read_lora(_save(tmp_path, tensors)).problems[0].rule


def test_a_model_is_not_taken_for_a_lora():
    with pytest.raises(UserError, match="not a LoRA"):
        read_lora(DIALECTS / "expected" / "main.safetensors")


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_a_cut_off_file_is_refused(tmp_path, cut):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((DIALECTS / "main_aitoolkit.safetensors").read_bytes()[:cut])
    with pytest.raises(UserError):
        read_lora(path)


def test_peft_alpha_patterns_and_rslora_count(tmp_path):
    header = '{"transformer.lora_alpha": 8, "transformer.use_rslora": true, "transformer.alpha_pattern": {"to_k": 6}}'
    tensors = _pair("transformer.layers.0.attention.to_q", rank=4) | _pair(
        "transformer.layers.0.attention.to_k", rank=4
    )
    entries = read_lora(_save(tmp_path, tensors, {"lora_adapter_metadata": header})).entries
    assert entries["layers.0.attention.to_q"].scale == pytest.approx(8 / 2)
    assert entries["layers.0.attention.to_k"].scale == pytest.approx(6 / 2)


@pytest.mark.parametrize(
    "header", ["{", "3", '{"transformer.lora_alpha": NaN}', '{"transformer.alpha_pattern": [1]}']
)
def test_a_header_that_is_not_pefts_is_refused(tmp_path, header):
    path = _save(tmp_path, _pair("transformer.layers.0.attention.to_q"), {"lora_adapter_metadata": header})
    assert "lora_adapter_metadata" in read_lora(path).problems[0].rule


def test_modules_of_a_larger_model_are_named(model):
    file = read_lora(DIALECTS / "main_aitoolkit.safetensors")
    shapes = {path: shape for path, shape in linear_shapes(model).items() if not path.startswith("layers.1.")}
    (problem,) = fit_problems(file, shapes)
    assert "7 of 14 modules do not exist in this model: layers.1." in problem.sentence()


def test_thirds_of_a_fused_lokr_and_loha_are_the_rows_of_the_whole(tmp_path):
    torch.manual_seed(0)
    weight = torch.zeros(192, 64)
    lokr = LoKr((torch.randn(12, 8),), (torch.randn(16, 3), torch.randn(3, 8)), 1.5)
    loha = LoHa(torch.randn(192, 2), torch.randn(2, 64), torch.randn(192, 2), torch.randn(2, 64), 3.0)
    for whole in (lokr, loha):
        third = whole.rows(64, 128)
        assert third.shape == (64, 64)
        torch.testing.assert_close(third.delta(weight[:64]), whole.delta(weight)[64:128])


def test_the_factor_that_newer_lokr_files_repeat_is_passed_over(tmp_path):
    source = DIALECTS / "lokr_lowrank_kohya.safetensors"
    tensors = load_file(source)
    repeated = {f"{name.partition('.')[0]}.lokr_factor": torch.tensor(4) for name in tensors}
    save_file(tensors | repeated, tmp_path / "a.safetensors")
    plain, found = read_lora(source), read_lora(tmp_path / "a.safetensors")
    assert not found.problems and found.entries.keys() == plain.entries.keys()


def test_dora_over_input_columns_sets_the_column_norms():
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    entry = Dora(LowRank(torch.randn(2, 4), torch.randn(6, 2), 2.0), torch.full((1, 4), 3.0), "dora_scale")
    torch.testing.assert_close((weight + entry.delta(weight)).norm(dim=0), torch.full((4,), 3.0))


def test_a_dora_scale_means_the_norms_of_the_changed_rows(tmp_path, base):
    """The same DoRA as `dora_plain`, in LyCORIS' spelling."""
    tensors = {}
    for name, tensor in load_file(DIALECTS / "dora_plain.safetensors").items():
        if "magnitude" in name:
            name, tensor = name.replace("lora_magnitude_vector.weight", "dora_scale"), tensor[:, None].clone()
        tensors[name.replace("transformer.", "diffusion_model.")] = tensor
    file = read_lora(_save(tmp_path, tensors))
    for name, wanted in load_file(DIALECTS / "expected" / "dora.safetensors").items():
        torch.testing.assert_close(merged_weights(base, file)[name], wanted, atol=2e-6, rtol=0)


def test_a_fused_lora_in_fp8_is_read_exactly(tmp_path):
    up = torch.randn(6, 2).to(torch.float8_e4m3fn)
    path = _save(
        tmp_path,
        {
            "layers.0.attention.qkv.lora_B.weight": up,
            "layers.0.attention.qkv.lora_A.weight": torch.ones(2, 4),
        },
    )
    entries = read_lora(path).entries
    both = torch.cat([entries[f"layers.0.attention.{name}"].up for name in ("to_q", "to_k", "to_v")])
    assert torch.equal(both.float(), up.float())
