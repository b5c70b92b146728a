"""A file command names everything that is wrong with a call before it begins."""

import pytest
from models import FUSED, convert

from zimage_gui.cli import main
from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.engine import merge
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.events import NullRun
from zimage_gui.model.lora_files import read_lora
from zimage_gui.model.lora_sizes import size_problem

LORA = FUSED.parents[2] / "lora_dialects" / "main_kohya_split.safetensors"


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"no")
    (tmp_path / "there.safetensors").write_bytes(b"old")
    (tmp_path / "there").write_bytes(b"old")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("convert b.safetensors there --dtype fp8_comfy --overwrite", ["input", "output", "dtype"]),
        ("convert gone.safetensors there.safetensors", ["input", "output"]),
        ("convert-lora b.safetensors there.safetensors", ["input", "output"]),
        ("resize-lora gone.safetensors there.safetensors --rank 4", ["input", "output"]),
        ("resize-lora b.safetensors there.safetensors", ["input", "output", "rank"]),
        ("edit-lora b.safetensors there.safetensors --thumbnail b.safetensors", ["input", "output", "thumbnail"]),
        ("ema-lora b.safetensors gone --output_file there.safetensors", ["path", "path", "output_file"]),
        ("verify-lora b.safetensors --dit there", ["input", "dit"]),
        ("extract-lora --base b.safetensors --tuned there --output there.safetensors", ["base", "tuned", "output"]),
        ("merge --dit b.safetensors --lora_weight gone there --output there.safetensors --rank 4",
         ["dit", "lora_weight", "lora_weight", "output", "rank"]),
        ("merge --lora_weight gone b.safetensors --output there.safetensors --layout comfy",
         ["lora_weight", "lora_weight", "output", "layout"]),
    ],
)  # fmt: skip
def test_all_that_is_wrong_is_named_at_once(broken, monkeypatch, capsys, line, named):
    monkeypatch.chdir(broken)
    before = sorted(broken.iterdir())
    assert main(line.split()) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert sorted(one.split(" = ")[0].split(":")[0] for one in lines) == sorted(named), said.err
    assert not said.out and sorted(broken.iterdir()) == before


def test_a_folder_cannot_take_a_files_place_nor_a_file_a_folders(broken, monkeypatch, capsys):
    monkeypatch.chdir(broken)
    assert main(["convert", str(FUSED), "there", "--overwrite"]) == 2
    (broken / "dir.safetensors").mkdir()
    assert main(["convert", str(FUSED), "dir.safetensors", "--overwrite"]) == 2
    said = capsys.readouterr()
    assert "is a file, and a folder is to be written" in said.err
    assert "is a folder, and a file is to be written" in said.err
    assert "Writing" not in said.out


@pytest.mark.parametrize("dtype", ["fp8_blocks", "fp8_comfy"])
def test_scales_of_fp8_are_no_parameters(tmp_path, dtype):
    path, _ = convert(FUSED, tmp_path / "o.safetensors", dtype=dtype)
    assert inspect(path).parameters == inspect(FUSED).parameters


@pytest.mark.parametrize("form", ["native", "comfy", "peft", "rust", None])
def test_loras_are_merged_into_the_form_that_is_asked_for(tmp_path, form):
    out = tmp_path / "o.safetensors"
    run = NullRun(tmp_path)
    merge.run(MergeConfig(lora_weight=(LORA,), output=out, lora_format=form), run)
    told = next(event.text for event in run.events if "merged" in getattr(event, "text", ""))
    assert told.startswith("1 LoRA merged")
    merged, plain = read_lora(out), read_lora(LORA)
    assert not size_problem({name: entry.shape for name, entry in merged.entries.items()})
    assert merged.entries.keys() == plain.entries.keys()
    first = next(iter(merged.entries))
    before, after = (
        file.entries[first].rows(0, 4).delta(plain.entries[first].up[:4]) for file in (plain, merged)
    )
    assert (before - after).abs().max() <= 1e-3 * before.abs().max()
