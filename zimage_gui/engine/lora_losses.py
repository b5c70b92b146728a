"""What a cut to a smaller rank has cost, added up over a file. Knows numbers and how they are told."""

from dataclasses import dataclass, field

from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_lowrank import Spectrum

_SHOWN = 3


@dataclass
class Losses:
    """Modules that were cut, with their rank, relative error and energy."""

    modules: list[tuple[str, int, float, float]] = field(default_factory=list)

    def cut(self, path: str, found: Spectrum, rank: int | None, energy: float | None) -> LowRank:
        low, error = found.cut(rank, energy)
        self.modules.append((path, low.rank, error, found.energy))
        return low

    @property
    def overall(self) -> float:
        """Norm of everything lost over the norm of the whole change."""
        whole = sum(energy for _, _, _, energy in self.modules)
        lost = sum(error**2 * energy for _, _, error, energy in self.modules)
        return (lost / whole) ** 0.5 if whole else 0.0

    def lines(self) -> list[str]:
        if not self.modules:
            return []
        ranks = sorted(rank for _, rank, _, _ in self.modules)
        span = f"{ranks[0]}" if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
        middle = ranks[len(ranks) // 2]
        lines = [
            f"{len(ranks)} modules of rank {span} (median {middle}); relative error of the whole "
            f"{percent(self.overall)}"
        ]
        worst = sorted(self.modules, key=lambda module: -module[2])[:_SHOWN]
        if worst[0][2] > 0:
            shown = ", ".join(f"{path} {percent(error)} at rank {rank}" for path, rank, error, _ in worst)
            lines.append(f"largest errors: {shown}")
        return lines


def percent(error: float) -> str:
    return f"{error:.3%}" if error >= 1e-5 else "below 0.001%"
