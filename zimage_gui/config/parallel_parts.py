"""Options of training with several processes, one per GPU, and what a launcher says about this process.

This module knows options and the launcher's variables; it must not know how processes are started or joined.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem, UserError

RANK, COUNT, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""What torchrun and accelerate launch tell each process they start."""
FSDP, CPU = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU"
"""What accelerate launch says when its settings ask for FSDP, or for the CPU."""


_SEVERAL = When("there are several processes", lambda c: processes_of(c) > 1)


class Parallel(Options):
    gpus: str = option(
        "",
        section="performance",
        label="GPUs",
        help="Train on several GPUs of this machine, with a process each: how many (2), or which (0,2). Each "
        "takes batches of its own, so that an update sees so many times more pictures. Empty: one process, "
        "or those that torchrun or accelerate launch started.",
        aliases=("num_processes",),
    )
    ddp_timeout: int = option(
        30,
        section="performance",
        label="Waiting for a process",
        help="The run ends when one of its processes gives no gradients for so long.",
        unit="minutes",
        advanced=True,
        matters=_SEVERAL,
        ge=1,
        le=100_000,
    )

    @field_validator("gpus", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """A TOML may say 2 or [0, 2]."""
        many = value if isinstance(value, list | tuple) else (value,)
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in many)
        return ",".join(map(str, many)) if whole and many else value

    @field_validator("gpus")
    @classmethod
    def _gpus(cls, value: str) -> str:
        value = re.sub(r"\s*,\s*", ",", value.strip())
        if not re.fullmatch(r"|[1-9]\d{0,2}|\d{1,3}(,\d{1,3})+", value):
            raise ValueError("must be a number of GPUs, such as 2, or their numbers, such as 0,2")
        numbers = value.split(",")
        if len(set(numbers)) < len(numbers):
            raise ValueError("must name each GPU once")
        return value

    @property
    def gpu_numbers(self) -> tuple[int, ...]:
        """The GPUs that are named; empty when they are only counted."""
        return tuple(map(int, self.gpus.split(","))) if "," in self.gpus else ()

    @property
    def processes_asked(self) -> int | None:
        """How many processes `gpus` asks for; None when it is empty."""
        return len(self.gpu_numbers) or (int(self.gpus) if self.gpus else None)

    def _parallel_problems(self) -> list[Problem]:
        asked, launched = self.processes_asked, launched_place()
        found = []
        if asked and launched and asked != launched.count:
            rule = f"differs from the {launched.count} that the launcher started ({COUNT})"
            found.append(Problem("gpus", self.gpus, rule, "Leave it out under a launcher"))
        if processes_of(self) > 1 and self.device.startswith("cuda:"):  # type: ignore[attr-defined]
            rule = "names one GPU, and there are several processes"
            remedy = "Set device to auto; gpus says which GPUs are used"
            found.append(Problem("device", self.device, rule, remedy))  # type: ignore[attr-defined]
        if processes_of(self) > 1 and getattr(self, "fused_backward_pass", False):
            rule = (
                "updates each weight before its gradient could be added up over several processes, "
                "of which there are " + str(processes_of(self))
            )
            found.append(Problem("fused_backward_pass", show(True), rule, "Leave it out, or use one process"))
        swapped = getattr(self, "blocks_to_swap", 0) if not hasattr(self, "network_dim") else 0
        if processes_of(self) > 1 and swapped:
            rule = "keeps gradients in CPU memory, where several processes do not add them up"
            instead = "Leave it out" if getattr(self, "shard_weights", False) else "Set shard_weights instead"
            remedy = f"{instead}, or use one process"
            found.append(Problem("blocks_to_swap", str(swapped), rule, remedy))
        return found


class Sharding(Options):
    shard_weights: bool = option(
        False,
        section="performance",
        label="Share out the weights",
        help="With several processes each keeps only its part of weights, gradients and optimizer state "
        "(FSDP): two GPUs need half as much each, and send more. On by itself where accelerate launch asks "
        "for FSDP.",
        matters=_SEVERAL,
    )


def sharding_problems(config: Any) -> list[Problem]:
    """What excludes shared-out weights, and what a launcher asks for that cannot be."""
    found = launcher_problems(config)
    if not shards_weights(config):
        return found
    shown = show(True)
    if processes_of(config) < 2:
        rule = "shares the weights out over several processes, and there is one"
        remedy = "Set gpus, or leave shard_weights out"
        found.append(Problem("shard_weights", shown, rule, remedy))
    if config.mixed_precision == "fp16":
        rule = "cannot be: gradients of fp16 are scaled in one place, and here they are in several"
        remedy = "Set mixed_precision to bf16, or leave shard_weights out"
        found.append(Problem("shard_weights", shown, rule, remedy))
    return found


def launcher_problems(config: Any) -> list[Problem]:
    """Ways of training that accelerate launch was told to use and that would not be used."""
    found = []
    for variable, name in (
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ):
        if _is_set(variable):
            rule = f"asks for {name}, which is not used here"
            found.append(Problem(variable, os.environ[variable], rule, "Start accelerate launch without it"))
    if _is_set(CPU) and os.environ.get("MASTER_PORT") and not os.environ.get(COUNT) and not config.gpus:
        rule = "comes from accelerate launch --cpu, which starts one process whatever num_processes says"
        remedy = "Use gpus = 2 with device = cpu, or torchrun --nproc_per_node 2"
        found.append(Problem(CPU, os.environ[CPU], rule, remedy))
    if not _is_set(FSDP):
        return found
    if not hasattr(config, "shard_weights"):
        rule = "asks for FSDP, and the frozen weights of a LoRA are not shared out"
        remedy = "Start accelerate launch without it; base_quant and blocks_to_swap save memory"
        found.append(Problem(FSDP, os.environ[FSDP], rule, remedy))
        return found
    remedy = "Leave it out of accelerate's settings"
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        rule = "asks to keep weights in CPU memory, which shard_weights does not do"
        found.append(Problem("FSDP_OFFLOAD_PARAMS", os.environ["FSDP_OFFLOAD_PARAMS"], rule, remedy))
    if (strategy := os.environ.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")) not in ("FULL_SHARD", "1"):
        rule = "asks to share out less than shard_weights does, which is all"
        found.append(Problem("FSDP_SHARDING_STRATEGY", strategy, rule, "Set FULL_SHARD, or leave FSDP out"))
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING") and not config.gradient_checkpointing:
        rule = "is gradient_checkpointing here, which is off"
        name = "FSDP_ACTIVATION_CHECKPOINTING"
        found.append(Problem(name, os.environ[name], rule, "Switch gradient_checkpointing on"))
    return found


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def shards_weights(config: Any) -> bool:
    """Whether the processes of this run share out the model's weights."""
    asked = getattr(config, "shard_weights", None)
    return asked is not None and bool(asked or (_is_set(FSDP) and processes_of(config) > 1))


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this one is. local: its number among those on this machine."""

    rank: int
    count: int
    local: int


def launched_place() -> Place | None:
    """Where a launcher has put this process; None without one. Raises UserError for variables that are no
    place."""
    if not os.environ.get(COUNT):
        return None
    names = (RANK, COUNT, LOCAL_RANK)
    try:
        count = int(os.environ[COUNT])
        rank = int(os.environ[RANK] if count > 1 else os.environ.get(RANK, "0"))
        local = int(os.environ.get(LOCAL_RANK, rank))
        if not 0 <= rank < count or local < 0:
            raise ValueError("out of bounds")
    except (KeyError, ValueError) as error:
        shown = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        rule = "say no place among several processes"
        remedy = "Start with torchrun or accelerate launch, or unset WORLD_SIZE and use gpus"
        raise UserError.one(" ".join(names), shown, rule, remedy) from error
    return Place(rank, count, local)


def processes_of(config: Any) -> int:
    """Of how many processes a run with these options consists."""
    launched = launched_place()
    if launched is not None:
        return launched.count
    return (config.processes_asked or 1) if isinstance(config, Parallel) else 1
