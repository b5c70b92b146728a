"""What a case of the walk is: a value of one option, and what of a run shows it.

Knows how two runs are held against each other; the tables of values are in `option_tables` and
`option_tables_network`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from option_walk import Seen, Walk

from zimage_gui.events import Sample, Step, Validation

Look = Callable[[Seen], Any]
DEFAULT = object()
"""The option is left out."""


@dataclass(frozen=True)
class Changes:
    """With the option at `value`, `look` sees something else than with `instead`, everything else equal.
    kept: what must be the same in both, bit for bit."""

    value: Any
    look: Look
    beside: dict[str, Any] = field(default_factory=dict)
    instead: Any = DEFAULT
    kept: Look | None = None

    def hold(self, walk: Walk, option: str) -> None:
        others = {} if self.instead is DEFAULT else {option: self.instead}
        changed, plain = walk.seen(self.beside | {option: self.value}), walk.seen(self.beside | others)
        assert not changed.failed and not plain.failed
        assert self.look(changed) != self.look(plain)
        if self.kept is not None:
            assert self.kept(changed) == self.kept(plain)


@dataclass(frozen=True)
class Serves:
    """Without the option the rest is refused; with it `look` sees what it is for."""

    value: Any
    look: Callable[[Seen], bool]
    beside: dict[str, Any]

    def hold(self, walk: Walk, option: str) -> None:
        served = walk.seen(self.beside | {option: self.value})
        assert not served.failed and self.look(served)
        assert walk.seen(self.beside).failed


@dataclass(frozen=True)
class Refused:
    """No run: the option is named, with words that say why."""

    value: Any
    words: str
    beside: dict[str, Any] = field(default_factory=dict)

    def hold(self, walk: Walk, option: str) -> None:
        found = walk.seen(self.beside | {option: self.value})
        assert not found.results and not found.of(Step)
        assert self.words in found.failed[option]


@dataclass(frozen=True)
class Proof:
    """What two runs side by side cannot show."""

    holds: Callable[[Walk], bool]

    def hold(self, walk: Walk, option: str) -> None:
        assert self.holds(walk)


Case = Changes | Serves | Refused | Proof


def losses(seen: Seen) -> list[float]:
    return [step.loss for step in seen.of(Step)]


def rates(seen: Seen) -> list[float]:
    return [step.lr for step in seen.of(Step)]


def counts(seen: Seen) -> list[tuple[int, int, int, int]]:
    """Which steps of how many were made, in which epochs of how many."""
    return [(step.step, step.total_steps, step.epoch, step.total_epochs) for step in seen.of(Step)]


def held(seen: Seen) -> list[int | None]:
    return [step.layers_held for step in seen.of(Step)]


def weights(seen: Seen) -> dict[str, tuple[str, bytes]]:
    return seen.tensors()


def formats(seen: Seen) -> set[str]:
    return {dtype for dtype, _ in seen.tensors().values()}


def layers(seen: Seen) -> dict[str, int]:
    """The names in the result, with the bytes behind each."""
    return {name: len(data) for name, (_, data) in seen.tensors().items()}


def header(seen: Seen) -> dict[str, str]:
    return {
        name: value for name, value in seen.header().items() if not name.endswith(("_at", ".date", "time"))
    }


def names(seen: Seen) -> list[str]:
    return seen.names()


def told(seen: Seen) -> list[str]:
    return [text.replace(str(seen.out), "") for text in seen.told() if "memory" not in text]


def samples(seen: Seen) -> list[int]:
    return [sample.step for sample in seen.of(Sample)]


def validated(seen: Seen) -> list[tuple[int, float, int]]:
    return [(event.step, event.loss, event.pictures) for event in seen.of(Validation)]


def blocks(seen: Seen) -> int:
    return seen.blocks


def moved(seen: Seen) -> dict[str, int]:
    return seen.run.moved


def threads(seen: Seen) -> set[str]:
    return seen.run.threads


def switches(seen: Seen) -> list[object]:
    return seen.run.switches


def asked(seen: Seen) -> list[Any]:
    return seen.asked


def first_step(seen: Seen) -> int:
    return int(seen.of(Step)[0].step)
