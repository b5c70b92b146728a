"""The pictures that were generated lately, newest first, as one grid.

Knows run folders and HTML. Each picture can be enlarged, give its seed or all its settings back to the form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zimage_gui.ui.desk import Desk
from zimage_gui.ui.html import button, escape
from zimage_gui.ui.pictures import PictureCache, url

MOST_PICTURES = 36


@dataclass(frozen=True)
class Made:
    path: Path
    prompt: str
    seed: int


def recent_pictures(desk: Desk, most: int = MOST_PICTURES) -> list[Made]:
    """Newest first, over all requests; files that are gone are left out."""
    found: list[Made] = []
    for state in desk.of_command("generate"):
        samples = desk.readers.of(state.folder).poll().samples
        paths = [(state.folder / sample.path, sample) for sample in reversed(samples)]
        found += [Made(path, sample.prompt, sample.seed) for path, sample in paths if path.is_file()]
        if len(found) >= most:
            break
    return found[:most]


def gallery(pictures: list[Made], cache: PictureCache) -> str:
    if not pictures:
        return '<p class="zg-empty">Your pictures appear here.</p>'
    return f'<div class="zg-cards zg-gallery">{"".join(_card(one, cache) for one in pictures)}</div>'


def _card(made: Made, cache: PictureCache) -> str:
    small, whole = cache.thumbnail(made.path), cache.published(made.path)
    if small is None or whole is None:
        return ""
    words = escape(f"{made.prompt} · seed {made.seed}")
    image = (
        f'<img class="zg-thumb" loading="lazy" src="{url(small)}" '
        f'data-full="{url(whole)}" alt="{words}" title="{words}">'
    )
    path = str(made.path)
    actions = "".join([
        button("Settings", "picture", place=path, title="Put this picture's settings into the form"),
        button(f"Seed {made.seed}", "seed", place=path, title="Use this seed again"),
        button("Path", "copy", copy=path, title=path),
    ])  # fmt: skip
    return (
        f'<div class="zg-card">{image}<span class="zg-name" title="{words}">'
        f'{escape(made.prompt)}</span><div class="zg-chips">{actions}</div></div>'
    )
