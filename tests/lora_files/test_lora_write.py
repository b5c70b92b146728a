"""What we write is read by us and by diffusers as the same change of the weights."""

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_golden import DATA, DIALECTS, HUB, golden_files
from safetensors import safe_open
from safetensors.torch import load_file

from zimage_gui.errors import UserError
from zimage_gui.files import read_header
from zimage_gui.model.lora_entries import Dora
from zimage_gui.model.lora_files import (
    LowRank,
    linear_shapes,
    merged_weights,
    original_alphas,
    read_lora,
    verify_lora,
    write_lora,
)
from zimage_gui.model.lora_forms import form_problems
from zimage_gui.model.lora_write import model_hashes

PLAIN = [name for name in golden_files(broken=False) if name.startswith(("main", "all", "fused"))]


@pytest.mark.parametrize("form", ["universal", "native", "comfy"])
@pytest.mark.parametrize("name", PLAIN)
def test_every_lora_survives_every_form(tmp_path, base, name, form):
    file = read_lora(DIALECTS / name)
    path = tmp_path / "out.safetensors"
    assert write_lora(path, file.entries, form, file.metadata) == len(file.entries)
    expected, found = merged_weights(base, file), merged_weights(base, read_lora(path))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-6, rtol=0)


def test_native_to_comfy_and_back_is_bit_exact(tmp_path):
    start = read_lora(DIALECTS / "main_kohya_split.safetensors")
    write_lora(tmp_path / "comfy.safetensors", start.entries, "comfy")
    write_lora(tmp_path / "native.safetensors", read_lora(tmp_path / "comfy.safetensors").entries, "native")
    before, after = load_file(start.path), load_file(tmp_path / "native.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_comfy_form_is_the_one_musubi_writes(tmp_path):
    start = read_lora(DATA / "musubi" / "lora" / "lora_raw.safetensors")
    write_lora(tmp_path / "comfy.safetensors", start.entries, "comfy")
    ours, theirs = (
        load_file(tmp_path / "comfy.safetensors"),
        load_file(DATA / "musubi" / "lora" / "lora_comfy.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_genuine_fused_lora_comes_back_with_one_shared_down(tmp_path):
    start = read_lora(DIALECTS / "fused_kohya.safetensors")
    write_lora(tmp_path / "comfy.safetensors", start.entries, "comfy")
    before, after = load_file(start.path), load_file(tmp_path / "comfy.safetensors")
    assert all(torch.equal(before[key].float(), after[key].float()) for key in before)


@pytest.mark.parametrize(
    "name", ["loha_dm.safetensors", "lokr_full_kohya.safetensors", "lokr_lowrank_dm.safetensors"]
)
@pytest.mark.parametrize("form", ["universal", "native"])
def test_loha_and_lokr_keep_their_factors(tmp_path, base, name, form):
    file = read_lora(DIALECTS / name)
    write_lora(tmp_path / "out.safetensors", file.entries, form)
    found = merged_weights(base, read_lora(tmp_path / "out.safetensors"))
    assert all(torch.equal(found[key], tensor) for key, tensor in merged_weights(base, file).items())


@pytest.mark.parametrize(
    ("name", "form", "reason"),
    [
        ("dora_peft.safetensors", "universal", "DoRA"),
        ("dora_peft.safetensors", "native", "DoRA"),
        ("dora_plain.safetensors", "comfy", "DoRA"),
        ("all_kohya_split.safetensors", "rust", "no layer that z-image-train adapts"),
    ],
)
def test_what_a_form_cannot_say_is_refused_and_nothing_is_written(tmp_path, name, form, reason):
    path = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=reason):
        write_lora(path, read_lora(DIALECTS / name).entries, form)
    assert not path.exists()


@pytest.mark.parametrize("form", ["universal", "peft"])
def test_a_dora_that_no_form_can_say_is_not_sent_to_another_form(form):
    inner = LowRank(torch.randn(4, 64), torch.randn(64, 4), 2.0)
    entries = {"layers.0.attention.to_q": Dora(inner, torch.ones(1, 64), "dora_scale")}
    (problem,) = form_problems(entries, form)
    assert "target" not in problem.remedy and "Merge it into a model" in problem.remedy


def test_an_alpha_that_is_folded_away_is_remembered(tmp_path):
    entries = {"layers.0.attention.to_q": LowRank(torch.randn(4, 64), torch.randn(64, 4), 2.0)}
    write_lora(tmp_path / "u.safetensors", entries, "universal", {"ss_network_alpha": "2.0"})
    file = read_lora(tmp_path / "u.safetensors")
    assert original_alphas(file.metadata) == 2.0
    assert file.entries["layers.0.attention.to_q"].alpha == 4.0
    assert float(load_file(file.path)["diffusion_model.layers.0.attention.to_q.alpha"]) == 4.0


def test_the_hashes_are_those_kohya_computes(tmp_path):
    path = DATA / "musubi" / "lora" / "lora_raw.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    hashes = model_hashes(load_file(path), metadata)
    assert hashes == {key: metadata[key] for key in ("sshs_model_hash", "sshs_legacy_hash")}


def test_the_written_hash_is_that_of_the_tensor_data(tmp_path):
    entries = {"layers.0.attention.to_q": LowRank(torch.randn(4, 64), torch.randn(64, 4), 2.0)}
    path = tmp_path / "n.safetensors"
    write_lora(path, entries, "native", {"ss_steps": "3", "modelspec.title": "x"})
    header, data = read_header(path), path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert header.metadata["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert header.metadata["modelspec.title"] == "x"


def test_a_written_file_is_verified_against_a_model(tmp_path, model):
    file = read_lora(DIALECTS / "all_kohya_split.safetensors")
    write_lora(tmp_path / "u.safetensors", file.entries)
    assert verify_lora(tmp_path / "u.safetensors", linear_shapes(model)) == 46
    shapes = linear_shapes(model) | {"layers.0.attention.to_q": (32, 64)}
    with pytest.raises(UserError, match=r"layers.0.attention.to_q"):
        verify_lora(tmp_path / "u.safetensors", shapes)


def _diffusers_output(path: Path, probe) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import ZImagePipeline, ZImageTransformer2DModel

        transformer = ZImageTransformer2DModel.from_pretrained(HUB / "transformer", torch_dtype=torch.float32)
        pipeline = ZImagePipeline(
            scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=transformer
        )
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        latents = probe["x"].reshape(16, 1, *probe["x"].shape[-2:])
        with torch.no_grad():
            out = pipeline.transformer([latents], probe["t"].reshape(1), [probe["cap"]], return_dict=False)[0]
    return out[0].reshape(probe["out/base"].shape)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("all_kohya_split.safetensors", "all", {"form": "universal"}),
        ("fused_rust.safetensors", "fused", {"form": "universal"}),
        ("main_peft_diffusers.safetensors", "main", {"form": "universal", "prefix": "transformer"}),
        ("main_aitoolkit.safetensors", "main", {"form": "native"}),
        ("dora_peft.safetensors", "dora", {"form": "universal", "prefix": "transformer"}),
    ],
)
def test_diffusers_computes_the_same_with_the_file_we_write(tmp_path, probe, name, content, options):
    path = tmp_path / "ours.safetensors"
    write_lora(path, read_lora(DIALECTS / name).entries, **options)
    torch.testing.assert_close(_diffusers_output(path, probe), probe[f"out/{content}"], atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 5),
    alpha=st.floats(0.01, 100),
    scales=st.lists(st.sampled_from([0.0, 1.0, 1e-3]), min_size=3, max_size=3),
    form=st.sampled_from(["universal", "native", "comfy"]),
    seed=st.integers(0, 2**16),
)
def test_any_qkv_of_any_rank_and_alpha_means_the_same_in_every_form(
    tmp_path_factory, rank, alpha, scales, form, seed
):
    generator = torch.Generator().manual_seed(seed)
    entries = {
        f"noise_refiner.1.attention.{name}": LowRank(
            torch.randn(rank, 8, generator=generator),
            torch.randn(6, rank, generator=generator) * scale,
            alpha,
        )
        for name, scale in zip(("to_q", "to_k", "to_v"), scales, strict=True)
    }
    path = tmp_path_factory.mktemp("p") / "x.safetensors"
    write_lora(path, entries, form)
    zero = torch.zeros(6, 8)
    for name, entry in read_lora(path).entries.items():
        torch.testing.assert_close(entry.delta(zero), entries[name].delta(zero), rtol=1e-5, atol=1e-5)
