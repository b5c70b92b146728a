"""Whether the files a user named are there. This module looks at the disk; it opens no file but the
dataset file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from zimage_gui.config.schema import Option, Options, options_of
from zimage_gui.errors import Problem, UserError


def path_problems(config: Options) -> list[Problem]:
    """Every given input path that is missing or of the wrong kind, and every output path that cannot be
    made.
    """
    return [
        problem
        for known in options_of(type(config)).values()
        if known.kind == "path"
        for path in _given(getattr(config, known.name))
        if (problem := _problem(known, path)) is not None
    ]


def look(config: Options) -> tuple[list[Problem], list[str]]:
    """What can be found wrong on the disk without pictures or weights, and the dataset file's notes."""
    problems = path_problems(config)
    path = getattr(config, "dataset_config", None)
    if path is None or any(problem.option == "dataset_config" for problem in problems):
        return problems, []
    from zimage_gui.config.dataset import load_dataset

    try:
        return problems, list(load_dataset(path).notes)
    except UserError as error:
        return [*problems, *error.problems], []


def with_look(config: Options, problems: Sequence[Problem]) -> tuple[list[Problem], list[str]]:
    """`problems` and what `look` finds beside them, one for each option; and the dataset file's notes."""
    found, notes = look(config)
    named = {problem.option for problem in problems}
    return [*problems, *(problem for problem in found if problem.option not in named)], notes


def _given(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple):
        yield from value


def _problem(known: Option, path: Path) -> Problem | None:
    try:
        return _seen(known, path)
    except OSError as error:  # a name that no disk can hold, a folder that this user may not look into
        rule = f"cannot be looked at ({error.strerror or error})"
        return Problem(known.name, str(path), rule, "Check the path")


def _seen(known: Option, path: Path) -> Problem | None:
    name, kind = known.name, known.extra.path
    if kind in ("out_file", "out_folder", "out_any"):
        return output_problem(name, path, kind)
    if not os.path.lexists(path):
        return Problem(name, str(path), "does not exist", _nearest(path))
    if kind == "file" and not path.is_file():
        return Problem(name, str(path), "is not a file", "Give the path of the file itself")
    if kind == "folder" and not path.is_dir():
        return Problem(name, str(path), "is not a folder", "Give the folder that holds it")
    if not path.exists():
        return Problem(name, str(path), "is a link that leads nowhere", "Check where it leads")
    return None


def _nearest(path: Path) -> str:
    """The part of the path that does exist tells where the mistake is."""
    for parent in path.parents:
        if parent.is_dir():
            return f"Check the path; {parent} exists, {path.relative_to(parent).parts[0]} is not in it"
    return "Check the path"


def output_problem(name: str, path: Path, kind: str) -> Problem | None:
    """Why nothing can be written at `path`, an option of that kind."""
    if kind == "out_file" and path.is_dir():
        return Problem(name, str(path), "is a folder", "Give the name of a file")
    if kind == "out_folder" and path.exists() and not path.is_dir():
        return Problem(name, str(path), "is a file, not a folder", "Choose another folder")
    for parent in (path, *path.parents) if kind == "out_folder" else path.parents:
        if parent.is_symlink() and not parent.exists():
            return Problem(name, str(path), f"{parent} is a link that leads nowhere", "Check where it leads")
        if not parent.exists():
            continue
        if not parent.is_dir():
            return Problem(name, str(path), f"{parent} is a file", "Choose another folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            rule = f"{parent} cannot be written to by this user"
            return Problem(name, str(path), rule, "Choose another folder")
        return None
    return Problem(name, str(path), "lies on a drive that is not there", "Choose another folder")
