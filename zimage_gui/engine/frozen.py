"""Which weights a finetune leaves as they are.

Knows the two options with patterns and how they fit names. Must not know torch: the memory estimate asks too.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any


def frozen_names(config: Any, names: Iterable[str]) -> frozenset[str]:
    """The weights that the patterns leave as they are."""
    train, freeze = (_compiled(config.train_patterns), _compiled(config.freeze_patterns))
    return frozenset(
        name for name in names if (train and not _matches(train, name)) or _matches(freeze, name)
    )


def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in patterns]


def _matches(patterns: list[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(part) for pattern in patterns for part in _holders(name))


def _holders(name: str) -> Iterator[str]:
    """The name of a weight and of everything that it is a part of: its layer, its block, their list."""
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def fits_whole_name(pattern: str, name: str) -> bool:
    """Whether a pattern names this weight or something that it is a part of."""
    return _matches(_compiled((pattern,)), name)
