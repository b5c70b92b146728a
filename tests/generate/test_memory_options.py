"""How the models are kept and computed: each option acts, and the picture stays what it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from zimage_gui.engine.generate import Resident, check
from zimage_gui.engine.kernels import compiler_of
from zimage_gui.model.compiling import Compiler
from zimage_gui.model.quantise import QuantLinear


def picture(resident: Resident, config, run) -> np.ndarray:
    (path,) = resident.run(config, run)
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_swapped_blocks_draw_the_same_picture_through_their_ring(options, run):
    plain, swapped = Resident(), Resident()
    wanted = picture(plain, options(guidance_scale=1.0), run)
    found = picture(swapped, options(guidance_scale=1.0, blocks_to_swap=2, block_swap_ring_size=1), run)
    assert np.abs(found - wanted).max() <= 1
    swap = swapped._generator._swap
    assert set(swap.loads) == {0, 1} and swap.bytes_moved > 0 and len(swap._slots) == 1


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ({"base_quant": "fp8"}, "_transformer"),
        ({"base_quant": "nf4"}, "_transformer"),
        ({"fp8_llm": True}, "_text_encoder"),
    ],
)
def test_quantised_weights_draw_a_picture_that_is_near(options, run, choice, part):
    plain, small = Resident(), Resident()
    wanted = picture(plain, options(infer_steps=1), run)
    found = picture(small, options(infer_steps=1, **choice), run)
    model = getattr(small._generator, part)
    assert any(isinstance(module, QuantLinear) for module in model.modules())
    assert 0 < np.abs(found - wanted).mean() < 20


def test_attention_has_two_names_and_a_library_that_is_absent_is_told(options, run):
    resident = Resident()
    wanted = picture(resident, options(attn_mode="torch"), run)
    assert np.array_equal(picture(resident, options(attn_mode="sdpa"), run), wanted)
    (problem,) = check(options(attn_mode="sage"))
    assert problem.option == "attn_mode" and "sageattention" in problem.sentence()


def test_the_switches_of_cuda_are_set_and_set_back(options, run):
    resident = Resident()
    resident.run(options(infer_steps=1, cuda_allow_tf32=True, cuda_cudnn_benchmark=True), run)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.benchmark
    resident.run(options(infer_steps=1), run)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.benchmark


def test_cuda_graphs_are_refused_where_they_cannot_work(options):
    def said(**changes) -> str:
        return " ".join(problem.sentence() for problem in check(options(cuda_graphs=True, **changes)))

    assert "cuda_graphs = true: needs a CUDA device, and the device is cpu" in said()
    assert "does not go with blocks_to_swap" in said(blocks_to_swap=1)
    assert "does not go with compile_mode" in said(compile=True, compile_mode="max-autotune")
    assert "compile_mode" not in said(compile_mode="max-autotune")


def test_the_compiler_gets_what_the_options_say(options):
    assert compiler_of(options()) is None
    config = options(
        compile=True, compile_mode="max-autotune", compile_dynamic="true", compile_cache_size_limit=3
    )
    assert compiler_of(config) == Compiler("inductor", "max-autotune", True, False, 3)
