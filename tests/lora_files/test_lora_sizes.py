"""A LoRA whose modules cannot belong to one model is refused by the commands that rewrite files."""

import shutil

import pytest
from lora_golden import DIALECTS

from zimage_gui.cli import main
from zimage_gui.model.lora_sizes import size_problem


@pytest.mark.parametrize("target", ["other", "default", "comfy", "peft", "rust"])
def test_a_file_with_misshaped_parts_is_refused_with_both_shapes_and_leaves_nothing(tmp_path, capsys, target):
    source = tmp_path / "in.safetensors"
    shutil.copy(DIALECTS / "broken_shape_mismatch.safetensors", source)
    assert main(["convert-lora", str(source), str(tmp_path / "out.safetensors"), "--target", target]) == 2
    told = capsys.readouterr().err
    assert "layers.0.attention.to_k is made for a weight [128, 64], in other blocks it is [64, 64]" in told
    assert "layers.1.feed_forward.w2 is made for a weight [64, 64], in other blocks it is [64, 170]" in told
    assert list(tmp_path.iterdir()) == [source]


def test_sizes_are_compared_with_the_same_layer_of_other_blocks():
    shapes = {f"layers.{n}.attention.to_q": (8, 8) for n in range(3)} | {"layers.0.feed_forward.w1": (21, 8)}
    assert size_problem(shapes) == ""
    assert "noise_refiner.0.attention.to_q" in size_problem(
        shapes | {"noise_refiner.0.attention.to_q": (8, 9)}
    )
