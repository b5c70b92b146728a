"""The generated documentation is fresh."""

from pathlib import Path

import pytest

from zimage_gui.config.foreign import ELSEWHERE, INERT
from zimage_gui.config.tables import pages, with_lists

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run: python -m zimage_gui.config.tables"


@pytest.mark.parametrize("name", pages())
def test_the_option_tables_are_fresh(name):
    assert (DOCS / "options" / name).read_text(encoding="utf-8") == pages()[name], AGAIN


def test_no_page_is_left_over():
    assert {path.name for path in (DOCS / "options").iterdir()} == set(pages())


def test_the_compatibility_lists_are_fresh():
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    assert with_lists(page) == page, AGAIN
    assert all(f"`{entry.name}`" in page for entry in (*INERT, *ELSEWHERE))


def test_a_page_without_marks_is_not_touched():
    with pytest.raises(ValueError, match="needs the lines"):
        with_lists("# Compatibility")
