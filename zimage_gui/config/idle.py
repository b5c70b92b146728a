"""Options that were given and have no effect, by the conditions declared beside them. This module knows how
that is told; it must not know any option, nor what is wrong with one: such an option refuses no run.
"""

from __future__ import annotations

from zimage_gui.config.schema import Options, options_of, show
from zimage_gui.errors import Problem
from zimage_gui.events import Run, Warning


def idle_options(config: Options) -> list[Problem]:
    """What this config sets and nothing will look at, each with when it would matter."""
    found = []
    for known in options_of(type(config)).values():
        value, matters = getattr(config, known.name), known.extra.matters
        if matters is None or value == known.default or matters.holds(config):
            continue
        shown = "" if known.extra.secret else show(value)
        found.append(Problem(known.name, shown, "has no effect here", known.when))
    return found


def tell_idle(config: Options, run: Run) -> None:
    """A warning for each of them."""
    for idle in idle_options(config):
        run.emit(Warning(text=idle.sentence()))
