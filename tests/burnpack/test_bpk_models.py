"""burn's names and shapes by rule, and models loaded from .bpk files to exactly the same numbers."""

import json
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from making import GOLDEN, SINGLE, as_written_by_burn_0_19, our_tensors, write_model

from zimage_gui.burnpack import BpkEntry, copied_entries, read_bpk_header, write_bpk
from zimage_gui.engine.cache_files import model_identity
from zimage_gui.errors import UserError
from zimage_gui.model.burn_names import burn_name, burn_records, plain_name, record_place
from zimage_gui.model.recognise import recognise
from zimage_gui.model.sources import sources_of
from zimage_gui.model.tensor_files import Entry, write_tensors
from zimage_gui.model.weights import (
    load_text_encoder,
    load_transformer,
    load_vae,
    model_problems,
    vae_config_of,
)

NAMES = json.loads((GOLDEN / "names.json").read_text(encoding="utf-8"))
LOADERS = {"transformer": load_transformer, "vae": load_vae, "text_encoder": load_text_encoder}


def table(part, counts=None):
    """The known rows of a whole module: those of block 0 stand for all blocks."""
    counts = counts or NAMES[part]["counts"]
    rows = []
    for block, group in groupby(NAMES[part]["rows"], key=lambda row: row[0].split(".")[0]):
        found = list(group)
        for number in range(counts.get(block, 1)):
            change = (f"{block}.0.", f"{block}.{number}.") if block in counts else ("", "")
            rows += [
                (
                    burn.replace(*change, 1),
                    tuple(shape),
                    source.replace(*change, 1).removeprefix("model."),
                    tuple(stored),
                    op,
                )
                for burn, shape, source, stored, op in found
            ]
    return rows


def check_table(part, rows):
    plain = {source: stored for _, _, source, stored, _ in rows}
    ours = {name: source.shape_of(plain[source.name]) for name, source in sources_of(part, plain).items()}
    records = burn_records(part, ours)
    assert [(r.name, r.shape, "transpose" if r.transposed else "copy") for r in records] == [
        (burn, shape, op) for burn, shape, _, _, op in rows
    ]
    assert [plain_name(burn, part) for burn, *_ in rows] == [source for _, _, source, _, _ in rows]
    assert [burn_name(source, part) for _, _, source, _, _ in rows] == [burn for burn, *_ in rows]
    burn = {record.name: record.shape for record in records}
    back = sources_of(part, burn)
    assert {name: source.shape_of(burn[source.name]) for name, source in back.items()} == ours


@pytest.mark.parametrize(("part", "count"), [("transformer", 453), ("vae", 244), ("text_encoder", 398)])
def test_the_real_models_have_the_known_records_in_the_known_order(part, count):
    rows = table(part)
    assert len(rows) == count
    check_table(part, rows)


def test_a_decoder_alone_has_the_known_records():
    rows = [row for row in table("vae") if row[0].startswith("decoder.")]
    assert len(rows) == 138
    check_table("vae", rows)


def test_the_rule_holds_for_any_number_of_layers():
    for layers in (1, 12, 101):
        check_table(
            "transformer", table("transformer", {"layers": layers, "noise_refiner": 1, "context_refiner": 3})
        )
        check_table("text_encoder", table("text_encoder", {"layers": layers}))


def test_a_tensor_that_burns_module_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"layers\.0\.extra\.weight has no place"):
        burn_records("transformer", {"layers.0.extra.weight": (2, 2)})
    with pytest.raises(ValueError, match="no place"):
        record_place("lm_head.weight", "text_encoder")


@pytest.mark.parametrize(("name", "part"), [("transformer_f16", "transformer"), ("ae_f32", "vae")])
def test_the_golden_models_hold_exactly_the_tensors_of_their_sources(name, part):
    package = GOLDEN / "mini" / f"mini_{name}.bpk"
    for other in sorted((GOLDEN / "mini").glob(f"mini_{name}_*.safetensors")):
        theirs = our_tensors(other, part)
        ours = our_tensors(package, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.items()}
    assert [record.name for record in burn_records(part, shapes)] == list(read_bpk_header(package).tensors)


@pytest.mark.parametrize("part", SINGLE)
def test_a_model_loads_from_a_bpk_of_either_alignment_as_from_safetensors(part, tmp_path):
    package = write_model(SINGLE[part], part, tmp_path / "model.bpk")
    older = as_written_by_burn_0_19(package, tmp_path / "older.bpk")
    assert read_bpk_header(older).alignment == "legacy"
    wanted = LOADERS[part](SINGLE[part], dtype=torch.float32)
    for path in (package, older):
        model = LOADERS[part](path, dtype=torch.float32)
        assert model.config == wanted.config
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in wanted.state_dict().items())
        assert len(state) == len(wanted.state_dict())
        assert (recognise(path).kind, recognise(path).layout) == (part, "burn")
    assert model_identity(package, part) == model_identity(package, part) != model_identity(older, part)


@pytest.mark.parametrize("part", SINGLE)
def test_the_second_seeds_safetensors_with_burns_names_load_too(part, tmp_path):
    package = write_model(SINGLE[part], part, tmp_path / "model.bpk")
    header, content = read_bpk_header(package), package.read_bytes()
    entries = {}
    for name, tensor in header.tensors.items():
        dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[tensor.dtype]
        values = torch.frombuffer(bytearray(content[tensor.start : tensor.end]), dtype=dtype)
        entries[name] = Entry(dtype, tensor.shape, [values])
    model = LOADERS[part](write_tensors(tmp_path / "burn.safetensors", entries))
    wanted = LOADERS[part](SINGLE[part]).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_a_decoder_alone_decodes_and_is_refused_where_pictures_are_encoded(tmp_path):
    alone = write_model(SINGLE["vae"], "vae", tmp_path / "ae.bpk", only="decoder.")
    whole = load_vae(SINGLE["vae"])
    vae = load_vae(alone, decoder_only=True)
    latent = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.decode(latent), whole.decode(latent))
    assert vae.config == whole.config == vae_config_of(alone, decoder_only=True)
    assert "the decoder alone" in recognise(alone).sentence
    assert model_problems(vae=alone, decoder_only=True) == []
    (problem,) = model_problems(vae=alone)
    assert "needs its encoder too" in problem.sentence()


def test_a_whole_autoencoder_leaves_its_encoder_on_disk_where_nothing_is_encoded():
    assert {name.split(".")[0] for name in load_vae(SINGLE["vae"], decoder_only=True).state_dict()} == {
        "decoder"
    }


def test_quantised_and_incomplete_models_are_named(tmp_path):
    package = write_model(SINGLE["transformer"], "transformer", tmp_path / "model.bpk")
    entries = copied_entries(package, read_bpk_header(package))
    packed = {"QFloat": {"value": "Q4S", "store": "Native", "level": "Tensor", "mode": "Symmetric"}}
    first, *rest = entries
    for name, changed, words in (
        ("q4", [replace(first, dtype=packed), *rest], r"QFloat Q4S.*bf16 file of the same model"),
        (
            "less",
            [e for e in entries if e.name != "layers.0.attention.qkv.weight"],
            r"3 tensors missing.*to_k",
        ),
        (
            "more",
            [*entries, BpkEntry("layers.0.odd", "F32", (1,), [bytes(4)])],
            r"1 tensor unexpected.*layers\.0\.odd",
        ),
        ("ints", [*rest, replace(first, dtype="U16")], "no plain weights"),
    ):
        path = write_bpk(tmp_path / f"{name}.bpk", changed, {})
        with pytest.raises(UserError, match=words):
            load_transformer(path)
