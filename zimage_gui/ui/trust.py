"""The question asked before a class named by a text is imported.

Knows its words. Which settings name code is `config.trust`'s knowledge: a preset, an imported TOML or another
run may have brought such a name, so a person says yes once per name and page.
"""

from __future__ import annotations

from zimage_gui.ui.html import button, escape, notice


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
