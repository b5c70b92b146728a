"""`convert` between every layout and back, bit for bit, and as the other programs read it."""

import json
import shutil
import sys

import pytest
import torch
from benchmarks.convert_model import measure
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from models import (
    DATA,
    DEMO,
    FUSED,
    HUB,
    MUSUBI,
    SINGLE,
    assert_same,
    convert,
    said,
    sparse_text_encoder,
    tensors,
)
from safetensors.torch import load_file, save_file
from transformers import Qwen3Model

from zimage_gui.burnpack import read_bpk_header
from zimage_gui.cli import main
from zimage_gui.files import read_header
from zimage_gui.model.weights import load_transformer, load_vae

SPLIT = {
    "reference": (HUB / "transformer", "folder"),
    "musubi": (MUSUBI / "models" / "dit.safetensors", "split.safetensors"),
    "demo": (DEMO / "transformer", "folder"),
    "vae": (HUB / "vae", "folder"),
    "musubi vae": (MUSUBI / "models" / "vae.safetensors", "split.safetensors"),
    "demo vae": (DEMO / "vae", "folder"),
    "text encoder": (HUB / "text_encoder", "folder"),
    "musubi text encoder": (MUSUBI / "models" / "text_encoder.safetensors", "split.safetensors"),
}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize(
    ("first", "second"), [("a.safetensors", "b.bpk"), ("a.bpk", "b.safetensors"), ("a", "b.bpk")]
)
def test_through_two_other_layouts_and_back_is_bit_exact(tmp_path, name, first, second):
    source, back = SPLIT[name]
    one, _ = convert(source, tmp_path / first)
    two, _ = convert(one, tmp_path / second)
    options = {"layout": "diffusers"} if back != "folder" else {}
    three, _ = convert(two, tmp_path / back, **options)
    assert_same(tensors(source), tensors(three))


@pytest.mark.parametrize(
    ("source", "theirs"),
    [
        (HUB / "transformer", FUSED),
        (HUB / "vae", SINGLE / "ae.safetensors"),
        (HUB / "text_encoder", SINGLE / "qwen_3.safetensors"),
    ],
)
def test_the_comfyui_form_has_comfyuis_names_and_numbers(tmp_path, source, theirs):
    assert_same(tensors(convert(source, tmp_path / "a.safetensors")[0]), load_file(theirs))
    assert_same(
        tensors(convert(convert(source, tmp_path / "a.bpk")[0], tmp_path / "b.safetensors")[0]),
        load_file(theirs),
    )


@pytest.mark.parametrize(
    ("source", "loader"),
    [
        (FUSED, ZImageTransformer2DModel),
        (SINGLE / "ae.safetensors", AutoencoderKL),
        (SINGLE / "qwen_3.safetensors", Qwen3Model),
    ],
)
def test_a_hub_folder_in_shards_loads_in_diffusers_and_transformers(tmp_path, source, loader):
    folder, _ = convert(source, tmp_path / "part", max_shard_size=4e-4 if loader is not Qwen3Model else 1e-4)
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    assert all(path.stat().st_size < 600_000 for path in folder.glob("*.safetensors"))
    index = json.loads(next(folder.glob("*.index.json")).read_text())
    assert index["weight_map"].keys() == tensors(folder).keys()
    network, problems = loader.from_pretrained(folder, output_loading_info=True)
    assert not problems["missing_keys"] and not problems["unexpected_keys"]
    written = tensors(folder)
    prefix = "model." if loader is Qwen3Model else ""
    assert all(
        torch.equal(value.cpu(), written[prefix + name].to(value.dtype))
        for name, value in network.named_parameters()
    )


def test_a_hub_folder_keeps_the_config_that_came_with_the_weights(tmp_path):
    folder, _ = convert(HUB / "transformer", tmp_path / "part")
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (HUB / "transformer" / "config.json").read_text()
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_our_own_loaders_read_every_layout_alike(tmp_path):
    want = load_transformer(HUB / "transformer").state_dict()
    for name in ("a.safetensors", "a.bpk", "folder"):
        assert_same(want, load_transformer(convert(HUB / "transformer", tmp_path / name)[0]).state_dict())
    bpk, _ = convert(SINGLE / "ae.safetensors", tmp_path / "ae.bpk")
    assert_same(load_vae(HUB / "vae").state_dict(), load_vae(bpk).state_dict())


def test_a_burnpack_file_stays_as_it_is_to_the_byte(tmp_path):
    first, _ = convert(FUSED, tmp_path / "a.bpk", model_type="t")
    second, _ = convert(first, tmp_path / "b.bpk", model_type="Transformer")
    assert first.read_bytes() == second.read_bytes()
    header = read_bpk_header(second)
    assert header.tensors["layers.0.attention.qkv.weight"].shape == (64, 192)
    assert len({tensor.param_id for tensor in header.tensors.values()}) == len(header.tensors)


@pytest.mark.parametrize("output", ["o.safetensors", "o.bpk"])
@pytest.mark.parametrize(
    ("word", "dtype"), [("f32", torch.float32), ("float16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_a_number_format_reaches_every_tensor(tmp_path, output, word, dtype):
    source = convert(FUSED, tmp_path / "s.bpk")[0]
    path, _ = convert(source, tmp_path / output, dtype=word)
    if output.endswith(".bpk"):
        assert {t.dtype for t in read_bpk_header(path).tensors.values()} == {
            {"f32": "F32", "float16": "F16", "bf16": "BF16"}[word]
        }
        path, _ = convert(path, tmp_path / "back.safetensors")
    assert_same({name: tensor.to(dtype) for name, tensor in load_file(FUSED).items()}, tensors(path))


def test_prefixes_are_stripped_and_written_and_the_header_is_kept(tmp_path):
    source = tmp_path / "s.safetensors"
    full = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(FUSED).items()}
    full["model.diffusion_model.norm_final.weight"] = torch.ones(64)
    save_file(full, source, metadata={"author": "Ä", "modelspec.hash_sha256": "0x1", "format": "pt"})
    plain, run = convert(source, tmp_path / "plain.safetensors")
    assert_same(load_file(FUSED), tensors(plain))
    assert "Left out, because no program reads it: model.diffusion_model.norm_final.weight" in said(run)
    assert read_header(plain).metadata == {"author": "Ä", "format": "pt"}
    again, _ = convert(
        convert(plain, tmp_path / "p.bpk")[0], tmp_path / "again.safetensors", prefix="model.diffusion_model."
    )
    del full["model.diffusion_model.norm_final.weight"]
    assert_same(full, tensors(again))
    assert read_header(again).metadata == {"author": "Ä", "format": "pt"}


def test_a_part_is_taken_out_of_an_all_in_one_file(tmp_path):
    parts = {
        "model.diffusion_model.": FUSED,
        "vae.": SINGLE / "ae.safetensors",
        "text_encoders.qwen3_4b.transformer.": SINGLE / "qwen_3.safetensors",
    }
    save_file(
        {prefix + name: tensor for prefix, path in parts.items() for name, tensor in load_file(path).items()},
        tmp_path / "all.safetensors",
    )
    for kind, path in zip((None, "VAE", "te"), parts.values(), strict=True):
        found, run = convert(tmp_path / "all.safetensors", tmp_path / f"{kind}.safetensors", model_type=kind)
        assert_same(load_file(path), tensors(found))
        assert "tensors of other parts" in said(run)


def test_an_output_head_is_left_out_and_text_encoders_get_or_lose_their_prefix(tmp_path):
    source = tmp_path / "s.safetensors"
    whole = load_file(SINGLE / "qwen_3.safetensors")
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone()}, source)
    path, run = convert(source, tmp_path / "bare.safetensors", prefix="")
    assert "lm_head.weight" in said(run)
    assert_same({name.removeprefix("model."): tensor for name, tensor in whole.items()}, tensors(path))
    assert_same(whole, tensors(convert(path, tmp_path / "back.safetensors")[0]))


def test_an_autoencoder_may_be_a_decoder_alone(tmp_path):
    source = tmp_path / "decoder.safetensors"
    decoder = {
        name: tensor
        for name, tensor in load_file(SINGLE / "ae.safetensors").items()
        if name.startswith("decoder.")
    }
    save_file(decoder, source)
    bpk, _ = convert(source, tmp_path / "ae.bpk", model_type="ae")
    assert_same(decoder, tensors(convert(bpk, tmp_path / "back.safetensors")[0]))


def test_pad_tokens_without_their_first_axis_get_it_back(tmp_path):
    flat = {
        name: tensor.reshape(-1) if "pad_token" in name else tensor
        for name, tensor in load_file(FUSED).items()
    }
    save_file(flat, tmp_path / "flat.safetensors")
    assert_same(
        load_file(FUSED), tensors(convert(tmp_path / "flat.safetensors", tmp_path / "o.safetensors")[0])
    )


def test_mixed_number_formats_are_kept_and_a_fused_tensor_takes_the_one_that_holds_all(tmp_path):
    mixed = tensors(HUB / "transformer")
    mixed["layers.0.attention.to_q.weight"] = mixed["layers.0.attention.to_q.weight"].float()
    mixed["cap_pad_token"] = mixed["cap_pad_token"].half()
    save_file(mixed, tmp_path / "mixed.safetensors")
    found = tensors(convert(tmp_path / "mixed.safetensors", tmp_path / "o.safetensors")[0])
    assert found["layers.0.attention.qkv.weight"].dtype == torch.float32
    assert found["cap_pad_token"].dtype == torch.float16
    back = tensors(
        convert(convert(tmp_path / "mixed.safetensors", tmp_path / "o.bpk")[0], tmp_path / "b.safetensors")[0]
    )
    assert_same(found, back)


def test_the_second_seeds_command_lines_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(FUSED.read_bytes())
    lines = (
        "convert --input model.safetensors --output model.bpk --model-type transformer",
        "convert --input model.bpk --output z_image_turbo_f32.bpk --model-type transformer --dtype f32",
        f"convert --input {SINGLE / 'ae.safetensors'} --output ae.bpk --model-type vae",
        "convert --input ae.bpk --output ae.safetensors --model-type autoencoder --overwrite",
        "convert --input ae.bpk --output ae.safetensors --model-type autoencoder --overwrite",
    )
    for line in lines:
        assert main(line.split()) == 0, capsys.readouterr().err
    assert_same(load_file(SINGLE / "ae.safetensors"), load_file("ae.safetensors"))
    assert main(["convert", "ae.bpk", "ae.safetensors"]) == 2
    assert "ae.safetensors: exists already. Choose another name, or set overwrite." in capsys.readouterr().err
    assert main(["convert", "ae.bpk", "new.safetensors", "--dry_run"]) == 0
    assert not (tmp_path / "new.safetensors").exists()


def test_the_demo_and_the_data_are_left_untouched(tmp_path):
    before = {path: path.read_bytes() for path in (DATA / "reference" / "hub" / "transformer").iterdir()}
    convert(HUB / "transformer", tmp_path / "o.bpk")
    assert {
        path: path.read_bytes() for path in (DATA / "reference" / "hub" / "transformer").iterdir()
    } == before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_model_larger_than_the_memory_it_takes(tmp_path):
    """370 MB. Building the network without memory, for its shapes, brings in 90 MB of torch beside the idle program."""
    sparse_text_encoder(tmp_path / "s.safetensors", 11 * 2**18)
    program = [
        sys.executable,
        "-c",
        "import sys; from zimage_gui.cli import main; import zimage_gui.engine.convert_model; sys.exit(main(sys.argv[1:]))",
    ]
    idle = measure([*program, "--version"], tmp_path / "s.safetensors")
    found = measure(
        [*program, "convert", str(tmp_path / "s.safetensors"), str(tmp_path / "o.bpk"), "--dtype", "f16"],
        tmp_path / "o.bpk",
    )
    assert found.written > 350e6
    assert found.memory < idle.memory + 130


@pytest.mark.parametrize("output", ["one.safetensors", "one.bpk"])
def test_what_tensors_do_not_tell_survives_a_single_file(tmp_path, output):
    """Rope axes and group counts are in config.json alone; without them the way back is another model."""
    for part, key, value in (("transformer", "axes_dims", [4, 16, 12]), ("vae", "norm_num_groups", 4)):
        folder = tmp_path / part
        shutil.copytree(HUB / part, folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {key: value}))
        single, _ = convert(folder, tmp_path / f"{part}_{output}")
        back, _ = convert(single, tmp_path / f"{part}_back")
        assert json.loads((back / "config.json").read_text())[key] == value
        assert_same(tensors(folder), tensors(back))


def test_the_header_holds_no_config_that_the_tensors_tell(tmp_path):
    single, _ = convert(HUB / "transformer", tmp_path / "one.safetensors")
    assert "zimage_gui_config" not in read_header(single).metadata


def test_a_model_may_be_given_by_its_index(tmp_path):
    (index,) = (HUB / "transformer").glob("*.index.json")
    by_index, _ = convert(index, tmp_path / "a.safetensors")
    by_folder, _ = convert(HUB / "transformer", tmp_path / "b.safetensors")
    assert by_index.read_bytes() == by_folder.read_bytes()
