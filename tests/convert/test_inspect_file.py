"""`inspect` says what a file is from its header alone."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zimage_gui.config.convert import InspectConfig
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.engine.inspect_file import run as inspect_command
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
SINGLE = DATA / "reference" / "single"
DIALECTS = DATA / "lora_dialects"


@pytest.mark.parametrize(
    ("path", "kind", "layout"),
    [
        (HUB / "transformer", "transformer", "diffusers"),
        (SINGLE / "z_image_fused.safetensors", "transformer", "comfy"),
        (HUB / "vae", "vae", "diffusers"),
        (SINGLE / "ae.safetensors", "vae", "ldm"),
        (SINGLE / "qwen_3.safetensors", "text_encoder", "hub"),
        (DIALECTS / "main_aitoolkit.safetensors", "lora", ""),
        (DATA / "musubi" / "generated" / "g1_aligned_latent.safetensors", "latent", ""),
    ],
)
def test_every_kind_is_named(path, kind, layout):
    (report,) = inspect(path)
    assert (report.kind, report.layout) == (kind, layout)
    assert report.parameters > 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "main_kohya_split",
            "LoRA for Z-Image with kohya / musubi names (lora_unet_) (alpha): rank 4, alpha 2, 14 modules",
        ),
        ("all_kohya_fused", "rank 4 and 12, alpha 2 and 6, 46 modules"),
        ("fused_rust", "z-image-train names with a .lora.json sidecar (fused qkv): rank 4, 42 modules"),
        ("lokr_full_dm", "LoKr for Z-Image with ComfyUI names (diffusion_model.) (alpha): full factors"),
        ("loha_kohya", "LoHa for Z-Image"),
        ("dora_peft", "DoRA for Z-Image with diffusers / PEFT names"),
        ("broken_other_model", "an adapter of another model: none of its 21 tensors"),
        ("broken_missing_half", "14 modules, 2 of them incomplete: a factor is missing"),
        ("broken_half_foreign", "but 21 tensors belong to no module"),
    ],
)
def test_a_loras_dialect_rank_and_targets_are_told(name, sentence):
    (report,) = inspect(DIALECTS / f"{name}.safetensors")
    assert sentence in report.sentence


def test_the_text_has_the_second_seeds_form_and_limit(capsys):
    path = HUB / "vae" / "diffusion_pytorch_model.safetensors"
    inspect_command(InspectConfig(input=path, limit=2), NullRun(Path()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Inspecting: diffusion_pytorch_model.safetensors"
    assert "Total tensors: " in lines[2]
    assert sum(line.startswith("  [") for line in lines) == 2
    assert "--- Dtype Summary ---" in lines
    inspect_command(InspectConfig(input=path, limit=0), NullRun(Path()))
    shown = sum(line.startswith("  [") for line in capsys.readouterr().out.splitlines())
    assert f"Total tensors: {shown}" == lines[2]


def test_json_holds_kind_format_parameters_metadata_and_tensors(capsys):
    inspect_command(
        InspectConfig(input=DIALECTS / "main_kohya_split.safetensors", as_json=True), NullRun(Path())
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["format"]) == ("lora", "safetensors")
    assert report["metadata"]["ss_network_dim"] == "4"
    assert len(report["tensors"]) == 42
    assert report["parameters"] == sum(_count(tensor["shape"]) for tensor in report["tensors"])
    assert report["lora"]["targets"]["layers attention.to_q"] == 2


def _count(shape):
    return 1 if not shape else shape[0] * _count(shape[1:])


def test_a_whole_model_folder_is_told_part_by_part(capsys):
    inspect_command(InspectConfig(input=HUB, as_json=True), NullRun(Path()))
    assert set(json.loads(capsys.readouterr().out)["parts"]) == {"transformer", "vae", "text_encoder"}


@pytest.mark.parametrize(
    ("start", "kind"), [(b"GGUF\x03\0\0\0", "gguf"), (b"PK\x03\x04rest", "pickle")]
)
def test_foreign_formats_are_named(tmp_path, start, kind):
    path = tmp_path / "x.bin"
    path.write_bytes(start + bytes(100))
    (report,) = inspect(path)
    assert report.kind == kind
    assert report.text().startswith("Inspecting: x.bin\nThis is a ")


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


def test_a_huge_file_is_answered_at_once_from_its_header(tmp_path):
    """12 GB of nothing behind a header of the real model's size; the file is sparse."""
    tensors, offset = {}, 0
    for layer in range(480):
        size = 3840 * 3840 * 2
        tensors[f"layers.{layer}.attention.to_q.weight"] = {
            "dtype": "BF16", "shape": [3840, 3840], "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    header = json.dumps(tensors).encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)
    begun = time.perf_counter()
    (report,) = inspect(path)
    assert report.parameters == 480 * 3840**2
    assert time.perf_counter() - begun < 0.5


def test_inspecting_does_not_import_torch():
    code = "import sys, zimage_gui.engine.inspect_file as i; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
