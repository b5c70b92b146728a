"""Errors a person can act on. This module knows how a mistake is worded; it must not know who made it, nor
where it is shown.

One sentence form serves the command line, the TOML reader, the window's fields and the engine's checks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130

_SHOWN_VALUE = 200


@dataclass(frozen=True)
class Problem:
    """One thing the user can put right.

    option: name of the option or file concerned; value: what was given ("" when nothing was given);
    rule: what must hold, as the rest of a sentence ("must be at least 1");
    remedy: the way out, a sentence of its own, may be empty.
    """

    option: str
    value: str
    rule: str
    remedy: str

    def sentence(self) -> str:
        value = self.value if len(self.value) <= _SHOWN_VALUE else self.value[:_SHOWN_VALUE] + "…"
        head = f"{self.option} = {visible(value)}" if value else self.option
        rule = self.rule.rstrip(". ")
        remedy = self.remedy.rstrip(". ")
        if not remedy:
            return f"{head}: {rule}."
        return f"{head}: {rule}. {remedy}" + ("" if remedy.endswith(("?", "!")) else ".")


def visible(text: str) -> str:
    """A stranger's text for a terminal: control characters would rewrite the line, bidi marks turn it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class UserError(Exception):
    """Everything the user must put right, all at once. Exit code 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        if not self.problems:
            raise ValueError("a UserError needs at least one problem")
        super().__init__("\n".join(problem.sentence() for problem in self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Problem, ...]]]:
        return UserError, (self.problems,)

    @classmethod
    def one(cls, option: str, value: object, rule: str, remedy: str = "") -> UserError:
        return cls([Problem(option, str(value), rule, remedy)])


def raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise one UserError with all problems, if there are any."""
    found = tuple(problems)
    if found:
        raise UserError(found)


def tried(look: Callable[[], _T], problems: list[Problem]) -> _T | None:
    """What `look` gives; None when it raises UserError, whose problems then join `problems`: a person is to
    hear of all mistakes at once.
    """
    try:
        return look()
    except UserError as error:
        problems += (one for one in error.problems if one not in problems)
        return None


class Interrupted(Exception):
    """The run was stopped by the user, all saved (exit 130 after Ctrl-C, 0 after a stop file)."""


class NoMemory(Exception):
    """Memory ran out. hint: what to change, in order; settings: the same as options with their values."""

    def __init__(self, message: str, hint: str, settings: dict[str, str]) -> None:
        super().__init__(message)
        self.hint, self.settings = hint, settings


class ProcessLost(Exception):
    """Another process of this run has ended or gives no answer, so this one cannot go on. Exit code 1."""
