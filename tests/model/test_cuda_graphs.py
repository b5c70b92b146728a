"""Recorded passes: what is kept, when it is made anew, and that the latents stay the same.

A graph of torch.fx stands for CUDA's here: like it, it is the operations alone, on fixed tensors.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from zimage_gui.engine.generator import Generator, LoraChoice, PictureRequest
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.model_key import Memory, ModelKey
from zimage_gui.engine.sampler import Sampling, denoise
from zimage_gui.model import flow
from zimage_gui.model.cuda_graphs import GraphedNetwork, Work, key_of, rebuilt, tensors_of
from zimage_gui.model.transformer import Modulation, ZImageTransformer

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
LORA = DATA / "lora_dialects" / "main_kohya_split.safetensors"


def generator_of(memory: Memory) -> Generator:
    files = ModelFiles(HUB / "transformer", HUB / "vae", HUB / "text_encoder")
    return Generator(ModelKey.of(files, None, torch.device("cpu"), "no", memory))


@pytest.fixture(scope="module")
def network() -> ZImageTransformer:
    return generator_of(Memory()).transformer


class Recorder:
    """Counts recordings; `fault` damages what is replayed."""

    def __init__(self, fault: Callable[[Tensor], Tensor] = lambda output: output) -> None:
        self.made = 0
        self.fault = fault

    def __call__(self, work: Work) -> Work:
        self.made += 1
        graph = make_fx(work)()
        return lambda: self.fault(graph())


def graphed(network: ZImageTransformer, recorder: Callable[[Work], Work], notes: list[str]) -> GraphedNetwork:
    return GraphedNetwork(network, notes.append, recorder)


def latents_of(
    network: ZImageTransformer, forward: GraphedNetwork | None, steps: int = 5, rows: int = 6
) -> Tensor:
    source = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 16, rows, 4, generator=source)
    captions = [torch.randn(9, network.config.cap_feat_dim, generator=source)]
    return denoise(network, noise, captions, None, flow.shifted_sigmas(steps, 3.0), forward=forward)


def inputs_of(network: ZImageTransformer, rows: int = 6) -> tuple[Tensor, Modulation, Tensor]:
    with torch.no_grad():
        captions = network.refine_captions([torch.ones(9, network.config.cap_feat_dim)])
        return torch.ones(1, 16, rows, 4), network.modulations(torch.tensor([0.4]))[0], captions


def test_replayed_steps_give_the_latents_of_plain_ones(network: ZImageTransformer) -> None:
    passes: list[int] = []
    handle = network.register_forward_hook(lambda *_: passes.append(1))
    recorder, notes = Recorder(), list[str]()
    forward = graphed(network, recorder, notes)
    for _ in range(2):
        found = latents_of(network, forward)
    handle.remove()
    assert (recorder.made, notes) == (1, [])
    assert len(passes) == 3  # one plain, one plain and recorded; the other eight are the graph's
    torch.testing.assert_close(found, latents_of(network, None), atol=1e-6, rtol=0)


def test_a_recording_depends_on_shapes_formats_and_the_kernels_chosen(network: ZImageTransformer) -> None:
    latents, time, captions = inputs_of(network)
    known = key_of(latents, time, captions, "torch")
    assert known is not None and known == key_of(latents * 2, time, captions + 1, "torch")
    others = [
        key_of(inputs_of(network, 8)[0], time, captions, "torch"),
        key_of(latents, time, captions.repeat(1, 2, 1), "torch"),
        key_of(latents, time, captions.half(), "torch"),
        key_of(latents.repeat(2, 1, 1, 1), time, captions, "torch"),
        key_of(latents, time, captions, "sage"),
    ]
    assert len({known, *others}) == 6
    moved = replace(time, layers=(torch.ones(1, 8), *time.layers[1:]))
    assert key_of(latents, moved, captions, "torch") is None


def test_a_modulation_is_taken_apart_and_put_together(network: ZImageTransformer) -> None:
    _, time, _ = inputs_of(network)
    other = rebuilt(time, [tensor + 1 for tensor in tensors_of(time)])
    assert all(torch.equal(a, b + 1) for a, b in zip(tensors_of(other), tensors_of(time), strict=True))
    assert torch.equal(other.final.scale, time.final.scale + 1)  # type: ignore[union-attr]


def test_two_shapes_are_kept_and_the_one_unused_for_longest_goes(network: ZImageTransformer) -> None:
    recorder = Recorder()
    forward = graphed(network, recorder, [])
    for rows in (4, 6, 4, 8, 4, 6):  # 6 goes when 8 comes
        latents_of(network, forward, steps=2, rows=rows)
    assert recorder.made == 4


def test_a_shape_that_comes_once_is_not_recorded(network: ZImageTransformer) -> None:
    recorder = Recorder()
    forward = graphed(network, recorder, [])
    for rows in (4, 6, 4, 8):
        latents_of(network, forward, steps=1, rows=rows)
    assert recorder.made == 0


@pytest.mark.parametrize("how", ["wrong", "undefined", "refused"])
def test_a_recording_that_fails_is_told_once_and_the_picture_is_right(
    network: ZImageTransformer, how: str
) -> None:
    def refuse(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    faults = {"wrong": lambda output: output * 1.1, "undefined": lambda output: output * float("nan")}
    notes: list[str] = []
    forward = graphed(network, Recorder(faults[how]) if how in faults else refuse, notes)
    found = [latents_of(network, forward) for _ in range(2)]
    plain = latents_of(network, None)
    assert torch.equal(found[0], plain) and torch.equal(found[1], plain)
    assert len(notes) == 1 and notes[0].startswith("CUDA graphs are off") and "more lines" not in notes[0]


def test_recordings_give_their_memory_before_a_pass_fails(network: ZImageTransformer) -> None:
    forward = graphed(network, Recorder(), [])
    wanted = latents_of(network, forward, rows=8)
    latents_of(network, forward, rows=6)

    def crowded(*_: object) -> None:
        if forward._recordings:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = network.register_forward_pre_hook(crowded)
    latents, time, captions = inputs_of(network, 4)
    with torch.no_grad():
        assert forward(latents, time, captions).isfinite().all() and not forward._recordings
    handle.remove()
    assert torch.equal(wanted, latents_of(network, None, rows=8))


@pytest.mark.parametrize("memory", [Memory(), pytest.param(Memory(base="fp8"), marks=pytest.mark.slow)])
def test_switched_loras_kernels_and_models_are_recorded_anew(memory: Memory) -> None:
    """An fp8 layer holds the LoRAs that act on it: a recording from before would go on without them."""
    ours, plain = generator_of(memory), generator_of(memory)
    recorder = Recorder()
    ours.use_graphs(True)
    ours.record = recorder
    request = PictureRequest("two dogs", "cats", 48, 32, 4, 0.0, 3.0, 5, sampling=Sampling())
    for choices in ([], [LoraChoice(LORA, 2.0)], [LoraChoice(LORA, 2.0)], []):
        for one in (ours, plain):
            one.set_loras(choices)
        torch.testing.assert_close(ours.latents(request), plain.latents(request), atol=1e-5, rtol=0)
    assert recorder.made == 3
    ours.attention = "sdpa"
    ours.latents(request)
    assert recorder.made == 4
    ours.close()
    ours.latents(request)
    assert recorder.made == 5
    ours.use_graphs(False)
    ours.latents(request)
    assert recorder.made == 5
