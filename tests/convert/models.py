"""Small whole models of every part, and plain ways to run the two commands and to look at what they wrote."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zimage_gui
from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.engine.convert_model import run as convert_run
from zimage_gui.events import NullRun

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
SINGLE = DATA / "reference" / "single"
MUSUBI = DATA / "musubi"
DEMO = Path(zimage_gui.__file__).parent / "demo" / "data"
FUSED = SINGLE / "z_image_fused.safetensors"


def convert(source, output, **options) -> tuple[Path, NullRun]:
    run = NullRun(Path(output).parent)
    (path,) = convert_run(ConvertConfig(input=source, output=output, **options), run)
    return path, run


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file or a folder, read by safetensors itself."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def said(run: NullRun) -> str:
    return "\n".join(event.text for event in run.events if hasattr(event, "text"))


def sparse_text_encoder(path, vocabulary):
    """A text encoder whose embedding takes no room on the disk."""
    header, offset = {}, 0
    for name, tensor in load_file(SINGLE / "qwen_3.safetensors").items():
        shape = [vocabulary, 64] if "embed_tokens" in name else list(tensor.shape)
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + offset)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
