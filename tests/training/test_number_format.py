"""Which number format a run computes in: what was asked for, except where a processor cannot do it."""

import platform

import pytest
import torch

from zimage_gui.engine.devices import DTYPES, format_note, number_format

CPU = torch.device("cpu")
EMULATED = platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() != "AVX512"


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_gpu_computes_as_asked(precision):
    assert number_format(torch.device("cuda"), precision, 10**10) is DTYPES[precision]


def test_bf16_becomes_fp32_exactly_where_the_processor_has_no_bf16():
    assert number_format(CPU, "bf16", 1000) is (torch.float32 if EMULATED else torch.bfloat16)


def test_a_model_too_large_for_fp32_stays_in_bf16():
    assert number_format(CPU, "bf16", 10**15) is torch.bfloat16


def test_another_format_than_the_one_asked_for_is_told():
    assert format_note(CPU, "bf16", torch.bfloat16) == ""
    assert "fp32" in format_note(CPU, "bf16", torch.float32)
