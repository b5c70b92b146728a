"""The gallery as HTML: one page of cards, the bar to search with, and what a press on a card asks for.

Knows the history and HTML. What is looked for is a text that the page keeps and sends with every look, so
that two browsers can look for different things. Changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from zimage_gui.ui.history import Found, History, Made
from zimage_gui.ui.html import button, escape, plural
from zimage_gui.ui.live import Look
from zimage_gui.ui.pictures import PictureCache, url

PER_PAGE = 24
LONGEST_QUERY = 500

BAR = """
<div class="zg-search">
  <input type="search" data-gallery="query" placeholder="Search in prompts and settings" aria-label="Search">
  <label><input type="checkbox" data-gallery="favourites"> Favourites</label>
</div>
"""


@dataclass(frozen=True)
class Asked:
    """What a page wants to see; page counts from 1."""

    query: str = ""
    favourites: bool = False
    page: int = 1


def asked_for(text: str) -> Asked:
    """From the page's text; anything that makes no sense is the default."""
    try:
        found: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return Asked()
    if not isinstance(found, dict):
        return Asked()
    page = found.get("page")
    number = page if isinstance(page, int) and not isinstance(page, bool) and 0 < page < 10**6 else 1
    return Asked(str(found.get("query", ""))[:LONGEST_QUERY], found.get("favourites") is True, number)


def gallery_look(history: History, cache: PictureCache, text: str) -> Look:
    """One page of what is asked for, as a live part."""
    asked = asked_for(text)
    found = history.search(asked.query, asked.favourites)
    pages = max(1, -(-len(found.pictures) // PER_PAGE))
    page = min(asked.page, pages)
    shown = found.pictures[(page - 1) * PER_PAGE : page * PER_PAGE]
    mark = (asked, page, len(found.pictures), found.looked, found.total, hash(tuple(shown)))
    return Look(mark, lambda: _page(history, cache, found, shown, asked, (page, pages)))


def _page(
    history: History,
    cache: PictureCache,
    found: Found,
    shown: list[Made],
    asked: Asked,
    place: tuple[int, int],
) -> str:
    cards = "".join(_card(made, history.settings(made), cache) for made in shown)
    head = _words(found, asked)
    if not shown:
        return f'<p class="zg-empty">{head}</p>'
    turning = _turning(*place)
    return (
        f'<div class="zg-pages"><span class="zg-muted">{head}</span>{turning}</div>'
        f'<div class="zg-cards zg-gallery">{cards}</div>'
    )


def _words(found: Found, asked: Asked) -> str:
    looking = found.looked < found.total
    so_far = f" so far, {found.looked:,} of {found.total:,} looked through" if looking else ""
    count = len(found.pictures)
    if asked.query or asked.favourites:
        return f"{plural(count, 'picture')} found{so_far}" if count or looking else "No picture is like that."
    return plural(count, "picture") if count else "Your pictures appear here."


def _turning(page: int, pages: int) -> str:
    """Buttons to other pages; gallery.js answers them."""
    if pages == 1:
        return ""
    words = {"First": 1, "Newer": page - 1, "Older": page + 1, "Last": pages}
    buttons = [
        f'<button type="button" class="zg-button" data-page="{to}"'
        f"{'' if 1 <= to <= pages and to != page else ' disabled'}>{name}</button>"
        for name, to in words.items()
    ]
    return "".join([*buttons[:2], f"<span>{page} / {pages}</span>", *buttons[2:]])


def _card(made: Made, settings: dict[str, Any], cache: PictureCache) -> str:
    small, whole = cache.thumbnail(made.path), cache.published(made.path)
    if small is None or whole is None:
        return ""
    prompt, seed = str(settings.get("prompt", made.path.name)), settings.get("seed")
    words = escape(f"{prompt} · seed {seed}" if seed is not None else prompt)
    image = (
        f'<img class="zg-thumb" loading="lazy" src="{url(small)}" '
        f'data-full="{url(whole)}" alt="{words}" title="{words}">'
    )
    return (
        f'<div class="zg-card">{image}<span class="zg-name" title="{words}">'
        f'{escape(prompt)}</span><div class="zg-chips">{_actions(made, seed)}</div></div>'
    )


def _actions(made: Made, seed: object) -> str:
    path = str(made.path)
    question = f"Delete {made.path.name} from the disk? It cannot be brought back."
    star = (
        button("★", "plain", place=path, title="No longer a favourite", tone="busy")
        if made.favourite
        else button("☆", "favourite", place=path, title="Mark as favourite")
    )
    return "".join([
        star,
        button("Settings", "picture", place=path, title="Put this picture's settings into the form"),
        button(f"Seed {seed}", "seed", place=path, title="Use this seed again") if seed is not None else "",
        button("Wipe", "wipe", place=path, title="Lay it beside another one, with a wipe slider"),
        button("Path", "copy", copy=path, title=path),
        button("Delete", "delete", place=path, title="Remove the file", confirm=question),
    ])  # fmt: skip
