"""Files nobody has seen: odd names and alphas are read, hostile ones refused in words and in little memory."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from zimage_gui.errors import UserError
from zimage_gui.model.lora_entries import LoHa, LoKr, LowRank
from zimage_gui.model.lora_files import read_lora, write_lora
from zimage_gui.model.lora_lowrank import spectrum

TO_Q = "diffusion_model.layers.0.attention.to_q"


def _pair(rank=2, rows=8, columns=8):
    return {
        f"{TO_Q}.lora_A.weight": torch.randn(rank, columns),
        f"{TO_Q}.lora_B.weight": torch.randn(rows, rank),
    }


def _read(folder, tensors, metadata=None, name="x.safetensors"):
    save_file(tensors, folder / name, metadata=metadata)
    return read_lora(folder / name)


def _problem(file):
    assert file.problems
    return " ".join(problem.rule for problem in file.problems)


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(1.0),
        torch.tensor([1.0]),
        torch.tensor([[1.0]]),
        torch.tensor(1),
        torch.tensor(1.0).half(),
    ],
)
def test_alpha_may_be_a_scalar_a_list_of_one_or_a_whole_number(tmp_path, alpha):
    file = _read(tmp_path, _pair() | {f"{TO_Q}.alpha": alpha})
    assert not file.problems and file.entries["layers.0.attention.to_q"].scale == 0.5


@pytest.mark.parametrize(
    "alpha", [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor(float("nan")), torch.tensor(True)]
)
def test_an_alpha_that_is_not_one_number_is_refused(tmp_path, alpha):
    assert "alpha" in _problem(_read(tmp_path, _pair() | {f"{TO_Q}.alpha": alpha}))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (f"{TO_Q}.diff", "whole weight differences"),
        (f"{TO_Q}.diff_b", "changes of a bias"),
        (f"{TO_Q}.lora_B.bias", "changes of a bias"),
        ("diffusion_model.layers.0.attention_norm1.w_norm", "changes of a norm"),
        (f"{TO_Q}.lora_mid.weight", "factors of convolutions"),
        (f"{TO_Q}.oft_blocks", "adapters of another kind"),
        ("lora_te_text_model_encoder.lora_down.weight", "text encoder"),
        ("diffusion_model.double_blocks.0.img.lora_A.weight", "belong to no module of Z-Image"),
    ],
)
def test_what_is_no_adapter_of_a_layer_is_said_to_be_what_it_is(tmp_path, extra, words):
    problem = _problem(_read(tmp_path, _pair() | {extra: torch.ones(8, 8)}))
    assert words in problem and extra in problem


def test_a_file_of_differences_alone_is_not_taken_for_a_model(tmp_path):
    assert "whole weight differences" in _problem(_read(tmp_path, {f"{TO_Q}.diff": torch.ones(8, 8)}))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 8), (8, 3)),
        ((0, 8), (8, 0)),
        ((2, 0), (8, 2)),
        ((2, 8), (0, 2)),
        ((16,), (8, 2)),
        ((2, 8, 1), (8, 2)),
    ],
)
def test_factors_that_do_not_make_a_matrix_are_refused(tmp_path, shapes):
    tensors = {
        f"{TO_Q}.lora_A.weight": torch.ones(*shapes[0]),
        f"{TO_Q}.lora_B.weight": torch.ones(*shapes[1]),
    }
    assert "to_q" in _problem(_read(tmp_path, tensors))


def test_a_small_file_that_claims_a_huge_weight_is_refused_in_little_memory(tmp_path):
    tensors = {f"{TO_Q}.lokr_w1": torch.ones(1000, 1000), f"{TO_Q}.lokr_w2": torch.ones(1000, 1000)}
    tracemalloc.start()
    assert "larger than any of Z-Image" in _problem(_read(tmp_path, tensors))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    thin = {f"{TO_Q}.lora_A.weight": torch.ones(1, 100_000), f"{TO_Q}.lora_B.weight": torch.ones(100_000, 1)}
    assert "larger than any of Z-Image" in _problem(_read(tmp_path, thin))


def test_too_many_tensors_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("zimage_gui.model.lora_read.MOST_TENSORS", 10)
    save_file({f"layers.{i}.lora_A.weight": torch.ones(1) for i in range(11)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="11 tensors"):
        read_lora(tmp_path / "x.safetensors")


def test_two_adapters_in_one_file_are_refused(tmp_path):
    tensors = {
        f"{TO_Q}.lora_{side}.{name}.weight": torch.ones(2, 2) for side in "AB" for name in ("cat", "dog")
    }
    assert "the same thing twice" in _problem(_read(tmp_path, tensors))


def test_an_alpha_pattern_that_is_a_real_regular_expression_is_refused(tmp_path):
    header = json.dumps({"transformer.alpha_pattern": {"layers.(a+)+b": 3}})
    file = _read(tmp_path, _pair(), {"lora_adapter_metadata": header})
    assert "regular expression" in _problem(file)


def test_a_sidecar_of_another_rank_is_refused_and_one_without_alpha_means_the_rank(tmp_path):
    tensors = {
        "layers.0.attention.to_out.lora_a": torch.ones(4, 8),
        "layers.0.attention.to_out.lora_b": torch.ones(8, 4),
    }
    (tmp_path / "x.lora.json").write_text('{"rank": 4}', encoding="utf-8")
    assert _read(tmp_path, tensors).entries["layers.0.attention.to_out.0"].scale == 1
    (tmp_path / "x.lora.json").write_text('{"rank": 8, "alpha": 4}', encoding="utf-8")
    assert "rank 4, its sidecar says 8" in _problem(_read(tmp_path, tensors))


_MODULES = (
    "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
)  # fmt: skip
_NAMES = st.builds(
    lambda block, number, module: f"{block}.{number}.{module}",
    st.sampled_from(("layers", "noise_refiner", "context_refiner")),
    st.integers(0, 40),
    st.sampled_from(_MODULES),
)
_TEXT = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20), max_size=3)


@st.composite
def _entries(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))

    def make(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    entries = {}
    for name in draw(st.lists(_NAMES, min_size=1, max_size=6, unique=True)):
        rows, columns = (12, 8) if "w2" not in name else (8, 12)
        rank, alpha = draw(st.integers(1, 9)), draw(st.floats(-50, 50).map(lambda x: round(x, 3)))
        kind = draw(st.sampled_from(("lora", "lora", "loha", "lokr")))
        if kind == "lora":
            entries[name] = LowRank(make(rank, columns), make(rows, rank), alpha)
        elif kind == "loha":
            entries[name] = LoHa(
                make(rows, rank), make(rank, columns), make(rows, rank), make(rank, columns), alpha
            )
        else:
            entries[name] = LoKr((make(4, 4),), (make(rows // 4, rank), make(rank, columns // 4)), alpha)
    return entries


@settings(max_examples=60, deadline=None)
@given(_entries(), st.sampled_from(("universal", "native", "comfy", "peft", "rust")), _TEXT)
def test_whatever_is_written_in_a_form_is_read_back_as_the_same_change(
    tmp_path_factory, entries, form, metadata
):
    path = tmp_path_factory.mktemp("p") / "x.safetensors"
    reserved = ("lora_adapter_metadata", "zimage_gui_alpha", "sshs_model_hash", "sshs_legacy_hash")
    metadata = {name: text for name, text in metadata.items() if name not in reserved}
    write_lora(path, entries, form, metadata)
    file = read_lora(path)
    assert not file.problems and metadata.items() <= file.metadata.items()
    for name, entry in entries.items():
        wanted = entry.delta(torch.zeros(entry.shape))
        if name not in file.entries:
            assert not wanted.any()
            continue
        found = file.entries[name].delta(torch.zeros(entry.shape))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1))
    more = [entry for name, entry in file.entries.items() if name not in entries]
    assert not any(entry.delta(torch.zeros(entry.shape)).any() for entry in more)


@settings(max_examples=40, deadline=None)
@given(_entries())
def test_the_spectrum_of_any_adapter_is_that_of_its_matrix(entries):
    for entry in entries.values():
        delta = entry.delta(torch.zeros(entry.shape)).double()
        found, exact = spectrum(entry), torch.linalg.svdvals(delta)
        assert found.energy == pytest.approx(float(exact.square().sum()), rel=1e-4, abs=1e-9)
        low, error = found.cut()
        assert error < 1e-5
        torch.testing.assert_close(
            low.delta(delta.float()).double(), delta, rtol=1e-4, atol=1e-5 * float(exact[:1].sum() + 1)
        )


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    entries = {"layers.0.attention.to_q": LowRank(torch.ones(2, 8), torch.ones(8, 2), 1.0)}
    for name in ("a", "b"):
        write_lora(tmp_path / f"{name}.safetensors", entries, "peft", {"b": "1", "a": "2"})
    assert load_file(tmp_path / "a.safetensors").keys() == load_file(tmp_path / "b.safetensors").keys()
