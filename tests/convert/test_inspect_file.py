"""`inspect` says what a file is from its header alone."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from headers import gguf, sparse, split_transformer
from PIL import Image

from zimage_gui.burnpack import BpkEntry, write_bpk
from zimage_gui.config.convert import InspectConfig
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.engine.inspect_file import run as inspect_command
from zimage_gui.engine.inspect_text import columns
from zimage_gui.engine.png_settings import png_info
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.model.keymaps import fused_parts

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
SINGLE = DATA / "reference" / "single"
DIALECTS = DATA / "lora_dialects"
FLAT = {"a.weight": (2, 2)}


@pytest.mark.parametrize(
    ("path", "kind", "layout"),
    [
        (HUB / "transformer", "transformer", "diffusers"),
        (HUB / "transformer" / "diffusion_pytorch_model.safetensors.index.json", "transformer", "diffusers"),
        (SINGLE / "z_image_fused.safetensors", "transformer", "comfy"),
        (HUB / "vae", "vae", "diffusers"),
        (SINGLE / "ae.safetensors", "vae", "ldm"),
        (SINGLE / "qwen_3.safetensors", "text_encoder", "hub"),
        (DIALECTS / "main_aitoolkit.safetensors", "lora", ""),
        (DATA / "musubi" / "generated" / "g1_aligned_latent.safetensors", "latent", ""),
    ],
)
def test_every_kind_is_named(path, kind, layout):
    report = inspect(path)
    assert (report.kind, report.layout) == (kind, layout)
    assert report.parameters > 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "main_kohya_split",
            "LoRA for Z-Image with kohya / musubi names (lora_unet_) (alpha): rank 4, alpha 2, 14 modules, made for a model of width 64",
        ),
        ("all_kohya_fused", "rank 4 and 12, alpha 2 and 6, 46 modules"),
        ("fused_rust", "z-image-train names with a .lora.json sidecar (fused qkv): rank 4, 42 modules"),
        ("lokr_full_dm", "LoKr for Z-Image with ComfyUI names (diffusion_model.) (alpha): full factors"),
        ("loha_kohya", "LoHa for Z-Image"),
        ("dora_peft", "DoRA for Z-Image with diffusers / PEFT names"),
        ("broken_other_model", "an adapter for Flux: none of its 21 tensors"),
        ("broken_missing_half", "14 modules, 2 of them incomplete: a factor is missing"),
        ("broken_half_foreign", "but 21 tensors belong to no module"),
        ("broken_shape_mismatch", "with factors that do not fit together"),
        ("broken_unknown_keys", "15 modules, but 5 tensors belong to no module"),
    ],
)
def test_a_loras_dialect_rank_and_targets_are_told(name, sentence):
    assert sentence in inspect(DIALECTS / f"{name}.safetensors").sentence


def test_trigger_words_and_training_are_told_whoever_wrote_them(tmp_path):
    shapes = {f"diffusion_model.layers.0.attention.to_q.lora_{side}.weight": (4, 4) for side in "AB"}
    metadata = {
        "modelspec.trigger_phrase": "zorb, blue zorb",
        "software": '{"name": "ai-toolkit", "version": "0.7"}',
        "training_info": '{"step": 2000, "epoch": 40}',
        "ss_tag_frequency": '{"10_zorb": {"zorb": 31, "meadow": 4}}',
        "modelspec.title": "Zorb",
    }
    report = inspect(sparse(tmp_path / "zorb.safetensors", shapes, metadata=metadata))
    facts = dict(report.facts)
    assert facts["Trigger words"] == "zorb, blue zorb" and report.lora.triggers == ("zorb", "blue zorb")
    assert (facts["Made by"], facts["Length"]) == ("ai-toolkit 0.7", "2000 steps, epoch 40")
    assert (facts["Frequent tags"], facts["Title"]) == ("zorb (31), meadow (4)", "Zorb")


def test_the_text_has_the_second_seeds_form_and_limit(capsys):
    path = HUB / "vae" / "diffusion_pytorch_model.safetensors"
    inspect_command(InspectConfig(input=path, limit=2), NullRun(Path()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Inspecting: {path}"
    total = next(line for line in lines if line.startswith("Total tensors: "))
    assert f"  [   0] {'decoder.conv_in.bias':<80} [32]  BF16" in lines
    assert "  ... (242 more tensors, use --limit 0 to show all)" in lines
    assert lines[lines.index("--- Dtype Summary ---") + 1] == "  BF16: 244 tensors"
    inspect_command(InspectConfig(input=path, limit=0), NullRun(Path()))
    shown = sum(line.startswith("  [") for line in capsys.readouterr().out.splitlines())
    assert f"Total tensors: {shown}" == total


@pytest.mark.parametrize("width", [40, 72, 100])
def test_no_line_is_wider_than_the_terminal(width):
    for path in (HUB, DIALECTS / "all_kohya_split.safetensors", SINGLE / "z_image_fused.safetensors"):
        for line in inspect(path).text(0, width).splitlines()[1:]:
            assert columns(line) <= max(width, 60), line


def test_json_holds_kind_format_parameters_metadata_and_tensors(capsys):
    path = DIALECTS / "main_kohya_split.safetensors"
    inspect_command(InspectConfig(input=path, as_json=True), NullRun(Path()))
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["format"]) == ("lora", "safetensors")
    assert report["metadata"]["ss_network_dim"] == "4"
    assert len(report["tensors"]) == 42
    assert report["parameters"] == sum(_count(tensor["shape"]) for tensor in report["tensors"])
    assert report["lora"]["targets"]["layers attention.to_q"] == 2
    assert report["verdicts"]["ComfyUI"]["loads"] == "partly"


def _count(shape):
    return 1 if not shape else shape[0] * _count(shape[1:])


def test_a_whole_model_folder_is_told_part_by_part(capsys):
    inspect_command(InspectConfig(input=HUB, as_json=True), NullRun(Path()))
    report = json.loads(capsys.readouterr().out)
    assert set(report["parts"]) == {"transformer", "vae", "text_encoder"}
    assert report["verdicts"]["diffusers"]["loads"] == report["verdicts"]["here"]["loads"] == "yes"


def test_hashes_are_those_that_sites_and_trainers_know():
    path = DATA / "musubi" / "lora" / "lora_raw.safetensors"
    from zimage_gui.engine.inspect_hash import with_hashes

    report = with_hashes(inspect(path), None)
    assert report.hashes["SHA-256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.hashes["AutoV2"] == report.hashes["SHA-256"][:10].upper()
    assert report.hashes["sshs_model_hash"] == f"{report.metadata['sshs_model_hash']} (that of these tensors)"


@pytest.mark.parametrize(
    ("start", "kind", "word"),
    [
        (b"GGUF\x03\0\0\0", "gguf", "GGUF file"),
        (b"PK\x03\x04" + bytes(22) + b"\x10\0\0\0archive/data.pkl", "pickle", "was not opened"),
        (b"\x80\x04\x95", "pickle", "was not opened"),
        (b"<!DOCTYPE html><html>", "incomplete", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "incomplete", "git lfs pull"),
        (b"\x1f\x8b\x08", "other_file", "gzip"),
        (b"something else", "unknown", "does not know; it begins b'something else"),
    ],
)
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_other_files_are_named_by_their_first_bytes(tmp_path, start, kind, word, name):
    if kind == "unknown" and name.endswith("safetensors"):
        return
    (tmp_path / name).write_bytes(start + bytes(100))
    report = inspect(tmp_path / name)
    assert report.kind == kind and word in report.sentence


def test_gguf_files_are_told_with_what_is_in_them(tmp_path):
    shapes = {"cap_embedder.1.weight": ((64, 256), 12, 64 * 144), "cap_pad_token": ((1, 64), 30, 128),
              "layers.0.attention.qkv.weight": ((192, 256), 12, 192 * 144)}  # fmt: skip
    metadata = [("general.architecture", 8, "lumina2"), ("n", 4, struct.pack("<I", 7)),
                ("list", 9, struct.pack("<IQ", 4, 40) + bytes(160))]  # fmt: skip
    path = tmp_path / "z-image-turbo-Q4_K.gguf"
    path.write_bytes(gguf(shapes, metadata))
    report = inspect(path)
    assert "of the type Q4_K" in report.sentence and "Z-Image transformer in the ComfyUI" in report.sentence
    assert report.tensors["cap_embedder.1.weight"].shape == (64, 256) and report.metadata["n"] == "7"
    assert report.metadata["list"].endswith("… (40 values)]")
    assert "the name says Turbo" in dict(report.facts)["Which one"]


def test_a_burnpack_file_is_told_with_version_alignment_ids_and_quantised_entries(tmp_path):
    path = tmp_path / "x.bpk"
    scheme = {
        "QFloat": {"value": "Q8S", "param": "F32", "store": "U32", "level": "Tensor", "mode": "Symmetric"}
    }
    entries = [
        BpkEntry("norm.gamma", "F32", (4,), (bytes(16),), 42),
        BpkEntry("cap_embedder_1.weight", scheme, (2, 2), (bytes(8),), size=8),
    ]
    write_bpk(path, entries, {"k": "v"}, {"step": ("Int", 7)})
    report = inspect(path)
    facts = dict(report.facts)
    assert report.format == "bpk" and report.metadata == {"k": "v"} and "QFloat Q8S" in report.dtypes
    assert facts["Burnpack"] == "version 1, aligned to 256 bytes (burn 0.20 and later)"
    assert facts["Parameter ids"] == facts["Quantised"] == "1 of 2 tensors"
    assert facts["Scalars"] == "1: step = 7"


def test_settings_in_pictures_are_told(tmp_path):
    settings = {"prompt": "a red circle", "seed": 7, "image_size": [64, 64], "infer_steps": 8}
    Image.new("RGB", (64, 32)).save(tmp_path / "ours.png", pnginfo=png_info(settings))
    Image.new("RGB", (64, 32)).save(tmp_path / "bare.png")
    report = inspect(tmp_path / "ours.png")
    assert report.sentence == "a PNG picture of 64x32 pixels with the settings this program wrote"
    assert dict(report.facts)["prompt"] == "a red circle"
    assert inspect(tmp_path / "bare.png").sentence == "a PNG picture of 64x32 pixels"


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        (
            "run.toml",
            "network_dim = 32\nlearning_rate = 1e-4\n",
            "a preset or config for train-lora with 2 options",
        ),
        ("set.toml", "[[datasets]]\nimage_directory = 'x'\n", "a dataset description with 1 dataset"),
        ("bad.toml", "a = [", "a TOML file with a mistake"),
        ("other.toml", "colour = 'red'", "without options of this program"),
        (
            "config.json",
            '{"_diffusers_version": "0.40", "_class_name": "AutoencoderKL"}',
            "diffusers model or pipeline (AutoencoderKL)",
        ),
        ("flow.json", '{"nodes": []}', "a ComfyUI workflow"),
        ("deep.json", "[" * 100_000, "a JSON file with a mistake"),
        ("note.txt", "hello\x1b[31m", r"it begins 'hello\\x1b[31m'"),
    ],
)
def test_small_text_files_are_told(tmp_path, name, text, word):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert word in inspect(tmp_path / name).sentence


def _folder(tmp_path, *files):
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "kind", "word"),
    [
        (["a.png", "b.jpg", "a.txt"], "dataset", "2 pictures, 1 of them without a caption"),
        (["a_0064x0064_zi.safetensors", "a_zi_te.safetensors"], "caches", "1 latent and 1 text files"),
        (["config.toml", "events.jsonl", "status.json"], "run", "a run of this program"),
        (["optimizer.bin", "model.safetensors"], "state", "training state of accelerate"),
        (["x.doc"], "unknown", "1 entries without a model"),
        ([], "unknown", "an empty folder"),
    ],
)
def test_folders_are_told(tmp_path, files, kind, word):
    report = inspect(_folder(tmp_path, *files))
    assert report.kind == kind and word in report.sentence


def test_models_folders_of_comfyui_and_z_image_train_are_told_file_by_file(tmp_path):
    comfy = tmp_path / "models"
    for folder, name in (("diffusion_models", "z_image_fused"), ("vae", "ae"), ("text_encoders", "qwen_3")):
        (comfy / folder).mkdir(parents=True)
        os.link(SINGLE / f"{name}.safetensors", comfy / folder / f"{name}.safetensors")
    (comfy / "loras").mkdir()
    (comfy / "loras" / "broken.safetensors").write_bytes(b"abc")
    report = inspect(comfy)
    assert report.kind == "comfyui_folder"
    assert [part.kind for part in report.parts] == ["transformer", "text_encoder", "vae", "broken"]
    seed = tmp_path / "seed"
    seed.mkdir()
    os.link(SINGLE / "ae.safetensors", seed / "ae.safetensors")
    os.link(SINGLE / "z_image_fused.safetensors", seed / "z_image_turbo.safetensors")
    assert "as z-image-train wants it, with 1 VAE, 1 transformer" in inspect(seed).sentence


def test_a_set_with_missing_files_is_told_with_their_names(tmp_path):
    for number in (1, 3):
        name = f"diffusion_pytorch_model-0000{number}-of-00003.safetensors"
        os.link(HUB / "transformer" / name, tmp_path / name)
    report = inspect(tmp_path)
    assert report.kind == "incomplete" and report.tensors
    assert "of which 1 is missing: diffusion_pytorch_model-00002-of-00003.safetensors" in report.sentence


def test_an_index_is_read_itself_and_told_when_it_names_too_little(tmp_path):
    for file in (HUB / "transformer").iterdir():
        os.link(file, tmp_path / file.name)
    (tmp_path / "other.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert inspect(index).kind == "transformer"
    missing = "it is the index of one file, which is missing: other.safetensors"
    assert missing in inspect(tmp_path / "other.safetensors.index.json").sentence
    table = json.loads(index.read_text())
    first = min(table["weight_map"].values())
    index.unlink()
    index.write_text(json.dumps({"weight_map": {"x_pad_token": first}}))
    with pytest.raises(UserError, match="names only 1 of the 3 files of its set"):
        inspect(index)


def test_several_of_a_kind_are_told_in_the_plural(tmp_path):
    for number in range(2):
        os.link(SINGLE / "z_image_fused.safetensors", tmp_path / f"{number}.safetensors")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert inspect(tmp_path).sentence == "a folder with 2 transformers, 1 broken file"


@pytest.mark.parametrize(
    "content", [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"]
)
def test_a_broken_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="input"):
        inspect(tmp_path / "x.safetensors")


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        inspect_command(InspectConfig(input=tmp_path / "no"), NullRun(tmp_path))


@pytest.mark.parametrize("fused", [False, True])
def test_the_released_models_header_is_answered_at_once(tmp_path, fused):
    """12.3 GB of nothing behind the real header, 521 tensors split and 453 fused; the file is sparse."""
    shapes = split_transformer()
    if fused:
        parts = {name: [shapes[one] for one in of] for name, of in fused_parts(shapes).items()}
        shapes = {name: (sum(one[0] for one in of), *of[0][1:]) for name, of in parts.items()}
    path = sparse(tmp_path / "z_image_turbo.safetensors", shapes)
    begun = time.process_time()
    report = inspect(path)
    text = report.text()
    assert time.process_time() - begun < 0.4
    assert report.parameters == 6_154_908_736 and report.bytes == 2 * 6_154_908_736
    assert f"Total tensors: {453 if fused else 521}" in text and "the name says Turbo" in text


def test_sixty_thousand_tensors_are_told_without_asking_each_one_everything(tmp_path):
    path = sparse(tmp_path / "many.safetensors", {f"a.{index}": (1,) for index in range(60_000)})
    begun = time.process_time()
    report = inspect(path)
    assert "60,000 tensors, more than any model" in report.sentence
    assert time.process_time() - begun < 5


def test_inspecting_does_not_import_torch():
    code = "import sys, zimage_gui.engine.inspect_file as i; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
