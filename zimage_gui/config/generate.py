"""What a user may choose when pictures are generated. This module knows options, not how sampling works."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from zimage_gui.config.common import (
    AttentionMode,
    ModelPaths,
    Precision,
    RunOptions,
    attention_option,
    overwrite_option,
    precision_option,
    square,
)
from zimage_gui.config.compile_parts import Compiling, Graphs, Kernels
from zimage_gui.config.generate_parts import (
    GUIDED,
    SHIFTED,
    DecodeOptions,
    LoraOptions,
    SamplerOptions,
    StartOptions,
)
from zimage_gui.config.grid_parts import GridOptions
from zimage_gui.config.memory_parts import GenerateQuant, Swapping, TextEncoderMemory
from zimage_gui.config.schema import When, option, show
from zimage_gui.errors import Problem


class GenerateConfig(
    RunOptions,
    Kernels,
    Compiling,
    Graphs,
    GenerateQuant,
    Swapping,
    TextEncoderMemory,
    DecodeOptions,
    LoraOptions,
    GridOptions,
    StartOptions,
    SamplerOptions,
    ModelPaths,
):
    """Generate pictures."""

    command: ClassVar[str] = "generate"

    prompt: str | None = option(
        None, section="prompt", label="Prompt", help="What the picture shows.", aliases=("p",), blank=True
    )
    negative_prompt: str = option(
        "",
        section="prompt",
        label="Negative prompt",
        help="What to steer away from.",
        aliases=("n",),
        matters=GUIDED,
    )
    from_file: Path | None = option(
        None,
        section="prompt",
        label="Prompt file",
        help="Text file with one prompt per line, each with its own options (--n --w --h --s --d --l --fs, "
        "and --sampler, --image_path and others by their names). --l of 1 or less is no guidance.",
        path="file",
    )
    interactive: bool = option(
        False,
        section="prompt",
        label="Ask for prompts",
        help="Read prompts from the terminal, one a line as in a prompt file; Ctrl-D ends.",
        advanced=True,
    )
    image_size: tuple[int, int] = option(
        (1024, 1024),
        section="picture",
        label="Size",
        help="Height and width, multiples of 16; one number for a square.",
        unit="px",
    )
    width: int | None = option(
        None,
        section="picture",
        label="Width",
        help="Width alone, a multiple of 16. Excludes image_size.",
        unit="px",
        aliases=("w",),
        advanced=True,
    )
    height: int | None = option(
        None,
        section="picture",
        label="Height",
        help="Height alone, a multiple of 16. Excludes image_size.",
        unit="px",
        aliases=("h",),
        advanced=True,
    )
    infer_steps: int = option(
        25,
        section="picture",
        label="Steps",
        help="Denoising steps: 8 or 9 for Turbo, 20 to 30 for De-Turbo, 30 to 50 for the base model.",
        aliases=("steps", "num_inference_steps"),
        ge=1,
        le=1000,
    )
    guidance_scale: float = option(
        0.0,
        section="picture",
        label="Guidance",
        help="g in positive + g (positive - negative); 0 for Turbo, 3 to 4 otherwise. Tools that "
        "call it CFG show g + 1.",
        aliases=("cfg_scale",),
        ge=0,
        le=100,
    )
    flow_shift: float = option(
        3.0,
        section="picture",
        label="Shift",
        help="Above 1 spends more steps at high noise.",
        aliases=("shift", "discrete_flow_shift"),
        advanced=True,
        gt=0,
        le=1000,
        matters=SHIFTED,
    )
    seed: int | None = option(
        None,
        section="picture",
        label="Seed",
        help="Number that fixes the noise; further pictures take the next numbers. Empty: random.",
        ge=0,
        lt=2**63,
    )
    cpu_noise: bool = option(
        False,
        section="picture",
        label="Noise from the CPU",
        help="Draw the starting noise on the CPU, as ComfyUI does, so that a seed gives the same "
        "noise on every machine.",
        advanced=True,
    )
    batch_count: int = option(
        1,
        section="picture",
        label="Pictures",
        help="Pictures per prompt.",
        aliases=("count", "num_images"),
        ge=1,
        le=10_000,
    )
    batch_size: int = option(
        1,
        section="picture",
        label="At once",
        help="Pictures of one prompt that are computed together: faster on a large GPU, and more memory.",
        advanced=True,
        matters=When(
            "a prompt has several pictures",
            lambda c: c.batch_count > 1 or c.axes() or c.from_file is not None,
        ),
        ge=1,
        le=256,
    )
    latent_path: tuple[Path, ...] = option(
        (),
        section="output",
        label="Latents to decode",
        help="Latent files written earlier: they are only decoded with the VAE, nothing is generated.",
        path="file",
        advanced=True,
    )
    save_path: Path | None = option(
        None,
        section="output",
        label="Output folder",
        help="Where the pictures go. Left out: the folder samples of the run.",
        path="out_folder",
        aliases=("output_dir",),
    )
    output: Path | None = option(
        None,
        section="output",
        label="Output file",
        help="The picture as one file. Excludes save_path.",
        path="out_file",
        advanced=True,
    )
    overwrite: bool = overwrite_option(
        When(
            "save_path, output or save_merged_model is set",
            lambda c: (c.save_path or c.output or c.save_merged_model) is not None,
        )
    )
    output_type: Literal["images", "latent", "latent_images"] = option(
        "images",
        section="output",
        label="Write",
        help="PNG pictures, latent files, or both.",
        advanced=True,
        values={"image": "images", "latents": "latent", "both": "latent_images"},
        matters=When("latent_path is empty", lambda c: not c.latent_path),
    )
    no_metadata: bool = option(
        False,
        section="output",
        label="No metadata",
        help="Write no settings into pictures and latent files.",
        advanced=True,
    )
    bell: bool = option(
        False,
        section="run",
        label="Bell",
        help="Ring the terminal's bell when all is done, with interactive after each prompt.",
        advanced=True,
    )
    step_preview: bool = option(
        True,
        section="run",
        label="Show each step",
        help="A rough picture of each step (at most four a second) in the run's folder, which the window "
        "shows.",
        advanced=True,
    )
    text_encoder_cpu: bool = option(
        False,
        section="performance",
        label="Text encoder on the CPU",
        help="Compute prompts on the CPU: slower, and the graphics card has all its memory for the picture.",
        advanced=True,
    )
    mixed_precision: Precision = precision_option(
        "bf16",
        "Number format of transformer and text encoder: bf16 (recommended), fp16, or no for full fp32.",
    )
    attn_mode: AttentionMode = attention_option(
        "Attention kernel: torch (built in; also called sdpa), or flash, flash3, xformers, sage when "
        "installed."
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        """One number is both sides. "640x480" is refused: elsewhere the width comes first."""
        return value if {"x", "×"} & set(str(value)) else square(value)

    @field_validator("image_size")
    @classmethod
    def _size(cls, value: tuple[int, int]) -> tuple[int, int]:
        for edge in value:
            _check_edge(edge)
        return value

    @field_validator("width", "height")
    @classmethod
    def _edge(cls, value: int | None) -> int | None:
        if value is not None:
            _check_edge(value)
        return value

    @field_validator("output")
    @classmethod
    def _picture(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in (".png", ".safetensors"):
            raise ValueError("must end in .png (or .safetensors for a latent)")
        return value

    @classmethod
    def expand(
        cls, values: dict[str, Any], over_all: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Problem]]:
        """`width` and `height` become `image_size`; an empty prompt field gives way to a prompt file."""
        if values.get("prompt") == "" and values.get("from_file"):
            values = {name: value for name, value in values.items() if name != "prompt"}
        edges = {name: values[name] for name in ("width", "height") if values.get(name) not in (None, "")}
        if not edges:
            return values, []
        rest = {name: value for name, value in values.items() if name not in ("width", "height")}
        if values.get("image_size") is not None:
            rule = "excludes image_size: both say how large the picture is"
            first = next(iter(edges))
            return rest, [Problem(first, show(edges[first]), rule, "Leave out the one or the other")]
        problems = [problem for name, edge in edges.items() if (problem := _edge_problem(name, edge))]
        if problems:
            return rest, problems
        default = cls.model_fields["image_size"].default
        return {**rest, "image_size": (edges.get("height", default[0]), edges.get("width", default[1]))}, []

    def problems(self) -> list[Problem]:
        if self.save_merged_model is not None:
            alone = {"save_merged_model": True}
            return [*self._model_problems("dit"), *self._lora_problems(), *self._grid_problems(alone)]
        if self.latent_path:
            alone = {"latent_path": True}
            return [*self._model_problems("vae"), *self._output_problems(), *self._grid_problems(alone)]
        found = self._model_problems("dit", "vae", "text_encoder")
        found += self._prompt_problems()
        found += self._lora_problems()
        found += self._start_problems(self.from_file is not None or self.interactive)
        if self.width is not None or self.height is not None:
            edge = "width" if self.width is not None else "height"
            found.append(
                Problem(edge, show(getattr(self, edge)), "excludes image_size", "Leave out one of the two")
            )
        found += [*self._compile_problems(), *self._graph_problems()]
        return [*found, *self._output_problems(), *self._grid_problems(self._alone())]

    def _alone(self) -> dict[str, bool]:
        """Options that no grid goes with."""
        return {
            "output": self.output is not None,
            f"output_type {self.output_type}": self.output_type != "images",
            "interactive": self.interactive,
        }

    def _prompt_problems(self) -> list[Problem]:
        given = {
            "prompt": self.prompt is not None,
            "from_file": self.from_file is not None,
            "interactive": self.interactive,
        }
        names = [name for name, is_given in given.items() if is_given]
        if not names:
            remedy = "Give a prompt, or a file of prompts with from_file"
            return [Problem("prompt", "", "is missing", remedy)]
        if len(names) == 1:
            return []
        last = names[-1]
        rule = f"excludes {' and '.join(names[:-1])}: the prompts come from one place"
        return [Problem(last, show(getattr(self, last)), rule, "Leave out all but one")]

    def _output_problems(self) -> list[Problem]:
        if self.output is None:
            return []
        found = []
        if self.save_path is not None:
            rule = "excludes save_path: both say where the picture goes"
            found.append(Problem("output", str(self.output), rule, "Leave out one of the two"))
        latent = self.output.suffix.lower() == ".safetensors"
        if latent != (self.output_type == "latent"):
            rule = f"does not fit output_type {self.output_type}"
            remedy = "Give a .png file for images, a .safetensors file for latent, or save_path for both"
            found.append(Problem("output", str(self.output), rule, remedy))
        return found


def _check_edge(edge: int) -> None:
    if not 16 <= edge <= 16384 or edge % 16:
        raise ValueError("must be multiples of 16 from 16 to 16384")


def _edge_problem(name: str, edge: object) -> Problem | None:
    try:
        _check_edge(int(str(edge)))
    except ValueError:
        return Problem(name, show(edge), "must be a multiple of 16 from 16 to 16384", "Its default is 1024")
    return None
