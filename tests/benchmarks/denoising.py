"""The denoising loop on the built-in demo: beside its own bare forward passes, and beside diffusers' pipeline."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from alternate import HEADER, compare
from page import put_section
from torch import Tensor

from zimage_gui.demo.project import DATA
from zimage_gui.engine.generator import Generator
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.model_key import ModelKey
from zimage_gui.engine.sampler import Guidance, denoise
from zimage_gui.model.flow import sampling_time, shifted_sigmas

STEPS, SHIFT = 20, 3.0
TEXTS = ("a red circle", "a blue square")
SECTION = "## Generating"
TEXT = """{section}

Measured by

    python -m tests.benchmarks generate --pairs {pairs} --write

on {when}: {machine}, 1 thread, Python {python}, {packages}; load {load} on {cores} cores. The demo's weights in fp32, {steps} Euler
steps, the same noise and prompt features for both, in the order A B B A in one process. The figures are processor time of
a whole loop; latents of the two agree to {agreement:.0e}.

{table}

*Bare forward passes* are the network called as often as the loop calls it, given refined captions and the schedule's
modulation, which the loop has to compute first. With guidance both prompts go through the network as one batch, as in
diffusers and as `cfg_batch auto` does where memory allows. diffusers' `ZImagePipeline` is given the encoded prompts and returns
latents. Goals: at most 1.05 of the bare passes and 0.8 of diffusers on the demo, whose pictures have 128 px. Matrix products
and attention, which both do alike, are {products} of the loop at 256 px without guidance (torch's profiler), which bounds what
can be saved there.
"""


@dataclass
class Case:
    """One size with or without guidance, and everything both contenders are given."""

    generator: Generator
    pipeline: object
    size: int
    guidance: float

    def __post_init__(self) -> None:
        self.sigmas = shifted_sigmas(STEPS, SHIFT)
        noise = torch.Generator().manual_seed(1)
        self.noise = torch.randn(1, 16, self.size // 8, self.size // 8, generator=noise)
        self.generator.encode(TEXTS)
        self.features = [[self.generator._feature(text)] for text in TEXTS]

        self.network = self.generator.transformer
        with torch.no_grad():
            self.times = self.network.modulations(sampling_time(self.sigmas[:-1]))
            used = self.features[: 2 if self.guidance else 1]
            self.captions = torch.cat([self.network.refine_captions(features) for features in used])

    def ours(self) -> Tensor:
        positive, negative = self.features
        guidance = Guidance(self.guidance, batched=True)
        return denoise(self.network, self.noise, positive, negative, self.sigmas, guidance)

    @torch.no_grad()
    def bare(self) -> None:
        """The passes alone, all that can be known beforehand given to them."""
        inputs = self.noise.expand(len(self.captions), -1, -1, -1).contiguous()
        for time_of_step in self.times:
            self.network(inputs, time_of_step, self.captions)

    def theirs(self) -> Tensor:
        # Lists and not tensors: the pipeline keeps what it is given.
        latents: Tensor = self.pipeline(  # type: ignore[operator]
            prompt_embeds=list(self.features[0]), negative_prompt_embeds=list(self.features[1]),
            height=self.size, width=self.size, num_inference_steps=STEPS, guidance_scale=self.guidance,
            latents=self.noise.clone(), output_type="latent",
        ).images  # fmt: skip
        return latents


def _generator() -> Generator:
    files = ModelFiles(DATA / "transformer", DATA / "vae", DATA / "text_encoder")
    return Generator(ModelKey.of(files, None, torch.device("cpu"), "no"))


def _pipeline() -> object:
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(DATA, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rows(pairs: int, say: Callable[[str], None]) -> tuple[list[str], float]:
    """The table's rows, and how far the latents of the two are apart at most."""
    generator, pipeline = _generator(), _pipeline()
    table, apart = [], 0.0
    for size in (128, 256):
        for guidance in (0.0, 3.0):
            case = Case(generator, pipeline, size, guidance)
            apart = max(apart, float((case.ours() - case.theirs()).abs().max()))
            kind = f"{size} px, {'with' if guidance else 'without'} guidance"
            contests: list[tuple[str, Callable[[], object]]] = [
                ("its bare forward passes", case.bare),
                ("diffusers", case.theirs),
            ]
            for name, other in contests:
                table.append(compare(case.ours, other, pairs).row(f"{kind}: the loop and {name}"))
                say(table[-1])
    return table, apart


def share_of_products() -> float:
    """Of the loop's time at 256 px without guidance, that in matrix products and attention."""
    case = Case(_generator(), None, 256, 0.0)
    case.ours()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        case.ours()
    events = profile.key_averages()
    kernels = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu")
    return float(
        sum(event.self_cpu_time_total for event in events if event.key in kernels)
        / sum(event.self_cpu_time_total for event in events)
    )


def main(pairs: int, machine: str, page: Path | None) -> None:
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    table, apart = rows(pairs, print)
    loads.append(os.getloadavg()[0])
    if page is None:
        return
    text = TEXT.format(
        section=SECTION, pairs=pairs, when=time.strftime("%Y-%m-%d"), machine=machine, python=platform.python_version(),
        packages=", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers")),
        load=f"{min(loads):.0f} to {max(loads):.0f}", cores=os.cpu_count(), steps=STEPS, agreement=apart,
        products=f"{share_of_products():.0%}",
        table="\n".join([HEADER, *table]),
    )  # fmt: skip
    put_section(page, SECTION, text)
