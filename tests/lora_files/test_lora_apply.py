"""LoRAs go on and come off a loaded model without a trace."""

import pytest
import torch
from lora_golden import DIALECTS, output_of

from zimage_gui.errors import UserError
from zimage_gui.model.lora_files import AppliedLora, LoraStack, read_lora


@pytest.fixture
def main():
    return read_lora(DIALECTS / "main_kohya_split.safetensors")


@pytest.fixture
def dora():
    return read_lora(DIALECTS / "dora_peft.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taking_loras_out_restores_every_bit(model, main, dora, dtype):
    model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stack = LoraStack(model)
    assert stack.set([AppliedLora(main, 0.8), AppliedLora(dora, 0.3)]) == [14, 4]
    assert not torch.equal(
        model.state_dict()["layers.0.attention.to_q.weight"], before["layers.0.attention.to_q.weight"]
    )
    stack.set([AppliedLora(dora, 1.0)])
    stack.clear()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_setting_a_lora_again_is_the_same_as_setting_it_once(model, main, probe):
    stack = LoraStack(model)
    stack.set([AppliedLora(main, 1.0)])
    first = output_of(model, probe)
    stack.set([AppliedLora(main, 0.2)])
    stack.set([AppliedLora(main, 1.0)])
    assert torch.equal(output_of(model, probe), first)
    torch.testing.assert_close(first, probe["out/main"], atol=1e-4, rtol=0)


def test_two_halves_of_a_lora_are_the_whole(model, main, probe):
    LoraStack(model).set([AppliedLora(main, 0.5), AppliedLora(main, 0.5)])
    torch.testing.assert_close(output_of(model, probe), probe["out/main"], atol=1e-4, rtol=0)


def test_one_file_that_does_not_fit_keeps_the_others_out(model, main, base):
    broken = read_lora(DIALECTS / "broken_shape_mismatch.safetensors")
    stack = LoraStack(model)
    with pytest.raises(UserError, match="to_k"):
        stack.set([AppliedLora(main), AppliedLora(broken)])
    assert torch.equal(
        model.state_dict()["layers.0.attention.to_q.weight"], base["layers.0.attention.to_q.weight"]
    )


def test_patterns_choose_modules_by_dotted_or_kohya_name(main):
    assert set(main.select(include=["attention"], exclude=["layers_1_"]).entries) == {
        f"layers.0.attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_patterns_that_leave_nothing_are_refused(model, main):
    with pytest.raises(UserError, match="include_patterns"):
        LoraStack(model).set([AppliedLora(main.select(include=["nowhere"]))])
