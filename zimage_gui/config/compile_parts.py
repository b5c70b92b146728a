"""Options of compiling the model's blocks, and of CUDA's kernels. This module knows the options and the older
spellings of them; it must not know how anything is compiled.
"""

from __future__ import annotations

from typing import Literal

from zimage_gui.config.schema import Options, When, option
from zimage_gui.errors import Problem

Dynamic = Literal["auto", "true", "false"]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


_COMPILED = When("compile is on", lambda c: c.compiled_with is not None)


class Compiling(Options):
    compile: bool = option(
        False,
        section="performance",
        label="Compile",
        help="Compile the transformer's blocks with torch.compile: faster steps after a first one that takes "
        "up to minutes. The compiled code is kept for the next run. Needs triton on a GPU.",
        advanced=True,
    )
    compile_backend: str = option(
        "inductor",
        section="performance",
        label="Compiler backend",
        help="Backend of torch.compile.",
        advanced=True,
        matters=When("compile is on", lambda c: c.compile),
    )
    compile_mode: Mode = option(
        "default",
        section="performance",
        label="Compiler mode",
        help="Mode of torch.compile; the others take longer to compile and may be faster.",
        advanced=True,
        aliases=("dynamo_mode",),
        matters=_COMPILED,
    )
    compile_dynamic: Dynamic = option(
        "auto",
        section="performance",
        label="Dynamic shapes",
        help="Whether one piece of compiled code serves all picture sizes; auto: from the second size on.",
        advanced=True,
        switches={"dynamo_dynamic": "true"},
        matters=_COMPILED,
    )
    compile_fullgraph: bool = option(
        False,
        section="performance",
        label="Whole graph",
        help="Fail instead of leaving a part of a block uncompiled.",
        advanced=True,
        aliases=("dynamo_fullgraph",),
        matters=_COMPILED,
    )
    compile_cache_size_limit: int = option(
        0,
        section="performance",
        label="Compiled shapes kept",
        help="Most pieces of compiled code per block in memory; 0: 64.",
        advanced=True,
        matters=_COMPILED,
        ge=0,
        le=100_000,
    )

    @property
    def compiled_with(self) -> str | None:
        """The backend, None when nothing is compiled."""
        return self.compile_backend if self.compile else None

    def _compile_problems(self) -> list[Problem]:
        if self.compiled_with in (None, "inductor") or self.compile_mode == "default":
            return []
        rule = f"is a mode of the inductor backend, and {self.compiled_with} is chosen"
        return [Problem("compile_mode", self.compile_mode, rule, "Leave out one of the two")]


class Graphs(Options):
    cuda_graphs: bool = option(
        False,
        section="performance",
        label="CUDA graphs",
        help="Record a step of each picture size once and replay it, which saves the GPU's waits for Python: "
        "for small pictures. Takes the memory of one more pass for each of the last two sizes. Needs a CUDA "
        "device, and weights that stay there (blocks_to_swap 0).",
        advanced=True,
    )

    def _graph_problems(self) -> list[Problem]:
        if not self.cuda_graphs:
            return []
        rivals = {}
        if getattr(self, "blocks_to_swap", 0):
            rivals["blocks_to_swap"] = "moves the weights"
        if getattr(self, "compiled_with", None) and self._records_by_itself():
            rivals["compile_mode"] = "records graphs of its own"
        return [
            Problem("cuda_graphs", "true", f"does not go with {name}, which {why}", f"Leave out {name}")
            for name, why in rivals.items()
        ]

    def _records_by_itself(self) -> bool:
        return getattr(self, "compile_mode", "default") in ("reduce-overhead", "max-autotune")


class DynamoCompiling(Compiling):
    """With the older spelling that came with accelerate."""

    dynamo_backend: str = option(
        "no",
        section="performance",
        label="Dynamo backend",
        help="accelerate's spelling of compile and compile_backend in one: no, or a backend's name.",
        advanced=True,
        matters=When(
            "compile is off", lambda c: not c.compile or c.dynamo_backend.lower() in ("no", c.compile_backend)
        ),
    )

    @property
    def compiled_with(self) -> str | None:
        """The backend, None when nothing is compiled."""
        if not self.compile and self.dynamo_backend.lower() not in ("no", ""):
            return self.dynamo_backend.lower()
        return super().compiled_with


class Kernels(Options):
    cuda_allow_tf32: bool = option(
        False,
        section="performance",
        label="TF32 products",
        help="Compute fp32 matrix products on the GPU's tensor cores with 10 bits instead of 23. Only "
        "products in fp32 change: the VAE's, and the model's with mixed_precision no.",
        advanced=True,
    )
    cuda_cudnn_benchmark: bool = option(
        False,
        section="performance",
        label="cuDNN benchmark",
        help="Try cuDNN's convolutions once per picture size and take the fastest: for the VAE on a GPU.",
        advanced=True,
    )
