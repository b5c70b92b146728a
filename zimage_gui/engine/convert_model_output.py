"""Results that appear whole or not at all: what may be replaced, room on the disk, temp names.

Knows paths. Must not know torch or what is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from zimage_gui.errors import Problem
from zimage_gui.files import replace_file, replace_folder, temp_path, unwritten

_SPARE = 64 << 20
"""Bytes that stay free beside the result."""
_OURS = re.compile(r"config\.json|.+\.safetensors|.+\.safetensors\.index\.json")


def output_problems(
    output: Path,
    sources: Sequence[Path],
    overwrite: bool,
    needed: int,
    *,
    folder: bool,
    free: int | None = None,
) -> list[Problem]:
    """All that keeps `needed` bytes from being written to `output`. free: bytes, instead of looking."""
    same = [source for source in sources if output.exists() and source.exists() and source.samefile(output)]
    inside = [
        source for source in sources if output.is_dir() and output.resolve() in source.resolve().parents
    ]
    if same or inside:
        rule = "is the input itself" if same else "is the folder in which the input lies"
        return [Problem("output", str(output), rule, "Choose another name")]
    problems = [] if not os.path.lexists(output) else _taken(output, overwrite, folder)
    parent = _existing(output.absolute().parent)
    if not os.access(parent, os.W_OK):
        problems.append(
            Problem("output", str(output), f"{parent} cannot be written to", "Choose another folder")
        )
        return problems
    found = shutil.disk_usage(parent).free if free is None else free
    if found < needed + _SPARE:
        rule = f"needs {_gigabytes(needed + _SPARE)} of free space and {parent} has {_gigabytes(found)}"
        problems.append(Problem("output", str(output), rule, "Make room or choose another drive"))
    return problems


def _taken(output: Path, overwrite: bool, folder: bool) -> list[Problem]:
    if folder != output.is_dir():
        rule = (
            "is a file, and a folder is to be written"
            if folder
            else "is a folder, and a file is to be written"
        )
        remedy = "Choose another name; one that ends in .safetensors or .bpk is a file"
        return [Problem("output", str(output), rule, remedy)]
    if folder:
        names = sorted(entry.name for entry in output.iterdir())
        foreign = [name for name in names if not _OURS.fullmatch(name) or (output / name).is_dir()]
        if not names:
            return []
        if foreign and overwrite:
            rule = f"holds other things too ({', '.join(foreign[:3])}), and a folder is replaced as a whole"
            return [Problem("output", str(output), rule, "Choose an empty or a new folder")]
    if overwrite:
        return []
    return [Problem("output", str(output), "exists already", "Choose another name, or set overwrite")]


def _existing(folder: Path) -> Path:
    return next((one for one in (folder, *folder.parents) if one.exists()), folder)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


@contextlib.contextmanager
def whole(output: Path, folder: bool) -> Iterator[Path]:
    """A temp path beside `output`, renamed to it when the block succeeds and removed when it does not.

    What the disk refuses becomes a UserError naming `output`.
    """
    temp = temp_path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            temp.mkdir()
        yield temp
        (replace_folder if folder else replace_file)(temp, output)
    except OSError as error:
        raise unwritten(error, output) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temp) if temp.is_dir() else temp.unlink(missing_ok=True)
