"""The small models of the burnpack goldens: sizes that run nowhere, laid out by their names alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zimage_gui.burnpack import read_bpk_header
from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.engine import convert_model
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun

MINI = Path(__file__).parents[1] / "data" / "burnpack" / "mini"
PAIRS = [("mini_transformer_f16", "mini_transformer_f16_source"), ("mini_ae_f32", "mini_ae_f32_source")]


def converted(source: Path, target: Path, **options) -> Path:
    (path,) = convert_model.run(ConvertConfig(input=source, output=target, **options), NullRun(target.parent))
    return path


def data_of(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    return {name: content[one.start : one.end] for name, one in read_bpk_header(path).tensors.items()}


@pytest.mark.parametrize(("burn", "source"), PAIRS)
def test_a_mini_model_goes_to_its_source_and_back_bit_for_bit(tmp_path, burn, source):
    plain = load_file(converted(MINI / f"{burn}.bpk", tmp_path / "a.safetensors"))
    wanted = load_file(MINI / f"{source}.safetensors")
    assert plain.keys() == wanted.keys() and all(torch.equal(plain[name], wanted[name]) for name in wanted)
    back = converted(MINI / f"{source}.safetensors", tmp_path / "b.bpk")
    assert list(data_of(back).items()) == list(data_of(MINI / f"{burn}.bpk").items())


def test_the_split_mini_transformer_gives_the_same_records(tmp_path):
    split = converted(MINI / "mini_transformer_f16.bpk", tmp_path / "s.safetensors", layout="diffusers")
    assert "layers.0.attention.to_q.weight" in load_file(split)
    back = converted(split, tmp_path / "b.bpk")
    assert data_of(back) == data_of(MINI / "mini_transformer_f16.bpk")


def test_a_mini_model_with_a_tensor_missing_is_refused(tmp_path):
    from safetensors.torch import save_file

    tensors = load_file(MINI / "mini_transformer_f16_source.safetensors")
    del tensors["layers.0.feed_forward.w2.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"rope axes|missing"):
        converted(tmp_path / "cut.safetensors", tmp_path / "x.bpk")
    assert not (tmp_path / "x.bpk").exists()
