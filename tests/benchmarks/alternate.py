"""Fair timing on a shared machine: two contenders in the order A B B A, processor time beside wall time. Knows clocks and ratios; must
not know what is timed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Seconds of processor time of every round; `ours[i]` and `theirs[i]` ran next to each other."""

    ours: list[float]
    theirs: list[float]
    ours_wall: list[float]
    theirs_wall: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def drift(self) -> float:
        """How far the two halves of our own rounds lie apart: above 5 % the machine was too restless to judge."""
        first, second = self.ours[::2], self.ours[1::2]
        return abs(statistics.median(first) / statistics.median(second) - 1) if second else 0.0

    def row(self, name: str) -> str:
        """One line of the table."""
        ratios = self.ratios
        numbers = (
            f"{min(self.ours):.3f} s", f"{min(self.theirs):.3f} s", f"**{min(self.ours) / min(self.theirs):.2f}**",
            f"{statistics.median(ratios):.2f}", f"{min(self.ours_wall) / min(self.theirs_wall):.2f}", f"{self.drift:.0%}",
        )  # fmt: skip
        return f"| {name} | " + " | ".join(numbers) + " |"


HEADER = (
    "| | ours (min) | theirs (min) | ratio of minima | median ratio | ratio of wall minima | drift of ours |\n"
    "|---|---|---|---|---|---|---|"
)


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int = 9, warm_up: int = 1
) -> Comparison:
    """Time both `pairs` times; the order within a pair alternates."""
    for _ in range(warm_up):
        ours()
        theirs()
    clocks: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for pair in range(pairs):
        order = [("ours", ours), ("theirs", theirs)]
        for name, work in order if pair % 2 == 0 else reversed(order):
            wall, processor = time.perf_counter(), time.process_time()
            work()
            clocks[name].append((time.process_time() - processor, time.perf_counter() - wall))
    split = {name: ([p for p, _ in rounds], [w for _, w in rounds]) for name, rounds in clocks.items()}
    return Comparison(split["ours"][0], split["theirs"][0], split["ours"][1], split["theirs"][1])
