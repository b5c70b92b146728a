"""Options whose text names Python code. Importing runs it, so a name from a file is asked about first.

This module knows which options these are; it must not import what they name.
"""

from __future__ import annotations

from zimage_gui.config.schema import Options

CODE_OPTIONS = ("optimizer_type", "lr_scheduler_type")
OURS = frozenset({"torch", "bitsandbytes", "transformers"})
"""Packages that this program imports anyway."""


def foreign_classes(config: Options) -> dict[str, str]:
    """Option -> the dotted class name it holds, where its package is not one that is used here anyway."""
    names = {option: str(getattr(config, option, "") or "") for option in CODE_OPTIONS}
    return {option: name for option, name in names.items() if "." in name and name.split(".")[0] not in OURS}
