"""A section of docs/benchmarks.md replaced by a newer one; the sections around it stay."""

import re
from pathlib import Path


def put_section(page: Path, heading: str, text: str) -> None:
    """`text` begins with `heading`; it takes the place of the section of that name, or comes last."""
    before, _, rest = page.read_text(encoding="utf-8").partition(heading + "\n")
    following = re.search(r"^## ", rest, re.MULTILINE)
    after = "\n" + rest[following.start() :] if following else ""
    page.write_text(f"{before.rstrip()}\n\n{text.rstrip()}\n{after}", encoding="utf-8")
