"""Settings that make Python import a class named by a text, and the question asked before that.

Knows the options that take a dotted path. A preset, an imported TOML or another run may have brought such a
name, and importing a module runs its code, so a person says yes once per name and page. Knows nothing of
gradio.
"""

from __future__ import annotations

from zimage_gui.config.schema import Options
from zimage_gui.ui.html import button, escape, notice

OPTIONS = ("optimizer_type", "lr_scheduler_type")
OURS = frozenset({"torch", "bitsandbytes", "transformers"})
"""Packages that this program imports anyway."""


def foreign_classes(config: Options) -> list[str]:
    """Dotted class names in a config whose package is not one that is used here anyway."""
    names = [str(getattr(config, option, "") or "") for option in OPTIONS]
    return [name for name in names if "." in name and name.split(".")[0] not in OURS]


def question(names: list[str]) -> str:
    """What is asked, with the button that answers yes (action `trust`)."""
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in names)
    words = (
        f"These settings import Python code from outside this program: {shown}. Only go on if you trust it."
    )
    return notice(
        f"<p>{words}</p>{button('Import it and train', 'trust', tone='bad', names='|'.join(names))}",
        "warn",
        raw=True,
    )
