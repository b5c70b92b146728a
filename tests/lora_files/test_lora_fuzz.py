"""Whatever a LoRA file holds, it is read, or refused in words; it never crashes or half works."""

import json

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zimage_gui.errors import UserError
from zimage_gui.model.lora_files import fit_problems, read_lora
from zimage_gui.model.lora_write import write_lora

_PREFIXES = (
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "transformer.",
    "base_model.model.",
    "base_model.model.transformer.",
    "_orig_mod.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
_MODULES = (
    "layers.0.attention.to_q",
    "layers.0.attention.qkv",
    "layers.0.feed_forward.w1",
    "x_embedder",
    "odd.name",
)
_FAMILIES = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight", ".alpha"),
    (".lora_a", ".lora_b"),
    (".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector"),
    (".lora_A.weight", ".lora_B.weight", ".dora_scale"),
    (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    (".lokr_w1", ".lokr_w2"),
    (".lokr_w1", ".lokr_w2_a", ".lokr_w2_b", ".alpha"),
    (".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_b"),
)
_LOOSE = (*{suffix for family in _FAMILIES for suffix in family}, ".diff", ".lora_B.bias", ".weight", "")
_SUFFIX_SETS = st.sampled_from(_FAMILIES) | st.sets(st.sampled_from(_LOOSE), max_size=3)


_SHAPES = st.lists(st.integers(0, 6), max_size=3).map(tuple)
_DTYPES = st.sampled_from(
    (*[torch.float32] * 6, torch.bfloat16, torch.float16, torch.int64, torch.float8_e4m3fn)
)


@st.composite
def _files(draw):
    """Tensors by name: whole families most of the time, with one size nearly everywhere so that many fit."""
    tensors = {}
    for _ in range(draw(st.integers(1, 3))):
        prefix = draw(st.sampled_from(_PREFIXES))
        module = draw(st.sampled_from(_MODULES))
        stem = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        for suffix in draw(_SUFFIX_SETS):
            usual = (
                ()
                if suffix == ".alpha"
                else (6,)
                if "mag" in suffix
                else (6, 1)
                if "dora" in suffix
                else (6, 6)
            )
            tensors[stem + suffix] = (draw(st.just(usual) | _SHAPES), draw(_DTYPES))
    return tensors


_HEADERS = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.recursive(st.none() | st.floats() | st.text(max_size=4), lambda inner: st.dictionaries(
        st.sampled_from(("transformer.lora_alpha", "transformer.alpha_pattern", "to_q", "x")), inner
    )).map(json.dumps),
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_files(), _HEADERS)
def test_any_names_shapes_and_types_are_read_or_refused(tmp_path, tensors, header):
    path = tmp_path / "fuzz.safetensors"
    metadata = None if header is None else {"lora_adapter_metadata": header}
    save_file(
        {name: torch.ones(shape).to(dtype) for name, (shape, dtype) in tensors.items()},
        path,
        metadata=metadata,
    )
    try:
        file = read_lora(path)
    except UserError as error:
        assert "not a LoRA" in str(error)
        return
    fit_problems(file, {})
    if file.problems:
        return
    deltas = {name: entry.delta(torch.ones(entry.shape)) for name, entry in file.entries.items()}
    assert all(delta.shape == file.entries[name].shape for name, delta in deltas.items())
    for form in ("universal", "native", "comfy", "peft", "rust"):
        try:
            write_lora(tmp_path / "again.safetensors", file.entries, form, file.metadata)
        except UserError:
            continue
        for name, entry in read_lora(tmp_path / "again.safetensors").entries.items():
            torch.testing.assert_close(
                entry.delta(torch.ones(entry.shape)), deltas[name], rtol=1e-4, atol=1e-3
            )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(tmp_path, content):
    path = tmp_path / "bytes.safetensors"
    path.write_bytes(content)
    try:
        read_lora(path)
    except UserError as error:
        assert "lora_weight" in str(error)
