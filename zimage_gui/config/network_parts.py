"""Training options for the network that is trained: kind, sizes and layers, where it starts, what limits it.

This module knows single options, the rules between them, and how the first seed and LyCORIS spell them in
`network_args`; it must not know how a network is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from zimage_gui.config.common import regular_expressions, zero_is_none
from zimage_gui.config.network_args import expanded, without_meaning
from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem

LARGEST_RANK = 4096
NETWORK_MODULES = {
    "lora": "networks.lora_zimage", "dora": "networks.dora", "loha": "networks.loha", "lokr": "networks.lokr",
}  # fmt: skip
"""What files name the kinds: the first seed's modules, and one for the DoRA that it lacks."""


def pattern_value(item: str) -> tuple[str, float]:
    """ "pattern=number" in two. Raises ValueError in words."""
    pattern, separator, number = item.rpartition("=")
    if not separator or not pattern.strip():
        raise ValueError(f"must be pattern=number, which {item!r} is not")
    try:
        re.compile(pattern.strip())
        return pattern.strip(), float(number)
    except re.error as error:
        raise ValueError(f"must begin with a regular expression; {pattern!r} is none: {error}") from error
    except ValueError as error:
        raise ValueError(f"must end in a number, which {number!r} is not") from error


_SIZED = When(
    "dim_from_weights is off and no LoKr is at full rank",
    lambda c: not c.dim_from_weights and not (c.network_module == "lokr" and c.lokr_full),
)
_OWN_LOKR = When(
    "the kind is lokr and dim_from_weights is off",
    lambda c: c.network_module == "lokr" and not c.dim_from_weights,
)


class Networks(Options):
    network_module: Literal["lora", "dora", "loha", "lokr"] = option(
        "lora",
        section="lora",
        label="Kind",
        help="Kind of network that is trained. lora loads everywhere; dora also learns each row's length "
        "(diffusers reads it, ComfyUI does not); loha and lokr say more with fewer numbers (ComfyUI reads "
        "them; for diffusers convert-lora makes a LoRA of them).",
        values={name: kind for kind, name in NETWORK_MODULES.items()} | {"networks.lora": "lora"},
    )
    network_dim: int = option(
        16,
        section="lora",
        label="Rank",
        help="Size of the LoRA. 8 to 16 for a person or object, 32 for a style.",
        aliases=("rank", "network_rank", "lora_rank"),
        ge=1,
        le=LARGEST_RANK,
        matters=_SIZED,
    )
    network_alpha: float | None = option(
        None,
        section="lora",
        label="Alpha",
        help="The LoRA acts with strength alpha / rank. Empty or 0: equal to the rank, so that the strength "
        "is 1.",
        aliases=("alpha", "lora_alpha"),
        gt=0,
        le=1_000_000,
        matters=_SIZED,
    )
    base_weights: tuple[Path, ...] = option(
        (),
        section="lora",
        label="Merged LoRAs",
        help="LoRA files merged into the model while training and absent from the result, e.g. the "
        "Turbo training "
        "adapter.",
        path="file",
        aliases=("training_adapter",),
    )
    base_weights_multiplier: tuple[float, ...] = option(
        (),
        section="lora",
        label="Their strengths",
        help="Strength of each merged LoRA, in order; missing ones are 1.",
        advanced=True,
        matters=When("base_weights is set", lambda c: c.base_weights),
    )
    network_weights: Path | None = option(
        None,
        section="lora",
        label="Start from",
        help="A LoRA file of any program that training goes on from. Smaller ranks are filled up.",
        path="file",
        advanced=True,
    )
    dim_from_weights: bool = option(
        False,
        section="lora",
        label="Sizes of that file",
        help="Train the layers that the file has, with its ranks and strengths instead of the ones set here.",
        advanced=True,
        matters=When("network_weights is set", lambda c: c.network_weights is not None),
    )
    include_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Only these layers",
        help=r"Regular expressions for whole layer names, e.g. .+attention.+; only matching layers "
        r"get a LoRA.",
        advanced=True,
    )
    exclude_patterns: tuple[str, ...] = option(
        (),
        section="lora",
        label="Not these layers",
        help="Regular expressions for whole layer names that get no LoRA.",
        advanced=True,
    )
    network_args: tuple[str, ...] = option(
        (),
        section="lora",
        label="Network arguments",
        help="The first seed's way to set options of the network, as name=value: rank_dropout, "
        "module_dropout, include_patterns, exclude_patterns, loraplus_lr_ratio, factor, network_reg_dims, "
        "network_reg_lrs. "
        "With lycoris.kohya also algo, full_matrix, rs_lora and dora_wd.",
        advanced=True,
    )
    network_dropout: float = option(
        0.0,
        section="network",
        label="Dropout",
        help="Chance with which each of the LoRA's inner values is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    rank_dropout: float = option(
        0.0,
        section="network",
        label="Rank dropout",
        help="Chance with which a whole rank is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    module_dropout: float = option(
        0.0,
        section="network",
        label="Module dropout",
        help="Chance with which the LoRA of a whole layer is left out in a step.",
        advanced=True,
        ge=0,
        lt=1,
    )
    scale_weight_norms: float | None = option(
        None,
        section="network",
        label="Largest norm",
        help="After each step a layer whose change has a larger norm is scaled down to it, e.g. 1. "
        "events.jsonl says at each step how many were. Empty or 0: off.",
        advanced=True,
        gt=0,
    )
    use_rslora: bool = option(
        False,
        section="network",
        label="Rank-stabilised (rsLoRA)",
        help="Strength alpha / √rank instead of alpha / rank; the file's alpha is written so that every "
        "program shows the same picture.",
        aliases=("rslora", "rs_lora"),
        advanced=True,
        matters=_SIZED,
    )
    loraplus_lr_ratio: float | None = option(
        None,
        section="network",
        label="LoRA+ ratio",
        help="Learning rate of the second factor (lora_up) as a multiple of the first one's, e.g. 4 to 16.",
        advanced=True,
        matters=When("the kind is lora or dora", lambda c: c.network_module in ("lora", "dora")),
        gt=0,
        le=1_000_000,
    )
    network_reg_dims: tuple[str, ...] = option(
        (),
        section="network",
        label="Ranks by pattern",
        help='Another rank for layers whose whole name matches, e.g. ".+attention.+=32"; the first match '
        "counts.",
        advanced=True,
    )
    network_reg_lrs: tuple[str, ...] = option(
        (),
        section="network",
        label="Learning rates by pattern",
        help='Another learning rate for layers whose whole name matches, e.g. ".+feed_forward.+=5e-5"; the '
        "first match counts.",
        advanced=True,
    )
    lokr_factor: int = option(
        -1,
        section="network",
        label="LoKr factor",
        help="Size of the small matrix, e.g. 8; -1 splits each layer's sizes as evenly as can be. A small "
        "factor makes a large file.",
        advanced=True,
        matters=_OWN_LOKR,
        ge=-1,
        le=100_000,
    )
    lokr_full: bool = option(
        False,
        section="network",
        label="LoKr at full rank",
        help="Train the large matrix whole; rank and alpha then mean nothing.",
        aliases=("full_matrix",),
        advanced=True,
        matters=_OWN_LOKR,
    )

    _zero_alpha = field_validator("network_alpha", "scale_weight_norms", mode="before")(zero_is_none)

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return regular_expressions(value)

    @field_validator("network_reg_dims")
    @classmethod
    def _ranks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            rank = pattern_value(item)[1]
            if rank != int(rank) or not 1 <= rank <= LARGEST_RANK:
                raise ValueError(f"must end in a rank from 1 to {LARGEST_RANK}, which {item!r} does not")
        return value

    @field_validator("network_reg_lrs")
    @classmethod
    def _rates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if not 0 <= pattern_value(item)[1] <= 1000:
                raise ValueError(f"must end in a learning rate from 0 to 1000, which {item!r} does not")
        return value

    @field_validator("lokr_factor")
    @classmethod
    def _no_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 or a whole number from 1 on")
        return value

    @property
    def alpha(self) -> float:
        """The alpha that is used: the rank when none is given."""
        return float(self.network_dim) if self.network_alpha is None else self.network_alpha

    @property
    def reg_dims(self) -> tuple[tuple[str, int], ...]:
        return tuple((pattern, int(rank)) for pattern, rank in map(pattern_value, self.network_reg_dims))

    @property
    def reg_lrs(self) -> tuple[tuple[str, float], ...]:
        return tuple(map(pattern_value, self.network_reg_lrs))

    @classmethod
    def expand(
        cls, values: dict[str, Any], over_all: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Problem]]:
        """`network_args` become the options they stand for. A DoRA is saved in the only form that can say
        one, unless another is asked for."""
        found, problems = expanded(values, over_all or values)
        if str(found.get("network_module")).lower() in ("dora", "networks.dora"):
            found.setdefault("lora_format", "peft")
        found, more = super().expand(found, over_all)
        return found, problems + more

    @classmethod
    def remarks(cls, values: Mapping[str, Any]) -> list[str]:
        return [*without_meaning(values), *super().remarks(values)]

    def _network_problems(self) -> list[Problem]:
        found = []
        if len(self.base_weights_multiplier) > len(self.base_weights):
            rule = f"has {len(self.base_weights_multiplier)} values for {len(self.base_weights)} base_weights"
            shown = show(self.base_weights_multiplier)
            found.append(Problem("base_weights_multiplier", shown, rule, "Give one per file, or fewer"))
        if self.dim_from_weights and self.network_weights is None:
            rule = "needs network_weights"
            found.append(Problem("dim_from_weights", "true", rule, "Set network_weights, or leave it out"))
        for name in ("network_reg_dims", "include_patterns", "exclude_patterns"):
            if self.dim_from_weights and getattr(self, name):
                rule = "has no effect when dim_from_weights takes layers and ranks of the file"
                found.append(Problem(name, show(getattr(self, name)), rule, "Leave one of them out"))
        if self.loraplus_lr_ratio is not None and self.network_module in ("loha", "lokr"):
            rule = f"means the second factor of a LoRA, and a {self.network_module} has none"
            remedy = "Leave it out, or set network_module to lora or dora"
            found.append(Problem("loraplus_lr_ratio", show(self.loraplus_lr_ratio), rule, remedy))
        for name, off in (("lokr_factor", -1), ("lokr_full", False)):
            if self.network_module != "lokr" and getattr(self, name) != off:
                rule = f"has no effect with network_module {self.network_module}"
                remedy = "Set network_module to lokr, or leave it out"
                found.append(Problem(name, show(getattr(self, name)), rule, remedy))
        return found
