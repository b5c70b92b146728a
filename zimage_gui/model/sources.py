"""Where each tensor of our networks lies in a checkpoint of any layout.

Knows which layout is which part's. Must not know torch or files.
"""

from collections.abc import Callable, Mapping

from zimage_gui.model.burn_names import burn_sources, is_burn
from zimage_gui.model.keymaps import (
    Shape,
    Source,
    own_names,
    text_encoder_sources,
    transformer_sources,
    vae_sources,
)

_OTHERS: dict[str, Callable[[Mapping[str, Shape]], dict[str, Source]]] = {
    "transformer": transformer_sources,
    "vae": vae_sources,
    "text_encoder": text_encoder_sources,
}


def sources_of(part: str, shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """{our name: where it lies} of a part ("transformer", "vae", "text_encoder") in any layout and prefix."""
    if is_burn(own_names(shapes, part).values()):
        return burn_sources(part, shapes)
    return _OTHERS[part](shapes)
