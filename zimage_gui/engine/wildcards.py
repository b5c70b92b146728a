"""Prompts with choices in them: `{red|blue}` and `__animals__`, one of each chosen by the seed.

    resolved(text, seed) is a pure function of the text, the seed and the lines of the files. The k-th choice
    of a text takes the option sha256("seed:k") mod the number of options, so that it is the same on every
    machine and in every version.

Knows this syntax and the files of one folder, and opens nothing outside it. It must not know models or runs.
No torch.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zimage_gui.errors import Problem, UserError

_DEEPEST = 20
_LONGEST_TEXT = 100_000
_LARGEST_FILE = 10_000_000
_MOST_CHOICES = 10_000
# The innermost choice, one that holds no other; a backslash makes a brace plain text.
# Each sign can be read in one way only, so that a brace that is never closed is given up after one look.
_PLAIN = r"(?:[^{}\\|]|\\.|(?<=\\)\|)*"
_CHOICE = re.compile(rf"(?<!\\)\{{({_PLAIN}(?:(?<!\\)\|{_PLAIN})+)(?<!\\)\}}", re.DOTALL)
_NAME = re.compile(r"(?<![\\\w])__([^\W_](?:(?:(?!__)[\w\-./\x20])*?[^\W_])?)__(?!\w)")
_BAR = re.compile(r"(?<!\\)\|")
_ESCAPED = re.compile(r"\\([{}|]|__)")
_SPECIAL = re.compile(r"[{}|]|__")


@dataclass
class Wildcards:
    """The files of a folder, each read once; without a folder `__name__` stays as it is."""

    folder: Path | None
    _lines: dict[str, list[str]] = field(default_factory=dict)

    def resolved(self, text: str, seed: int) -> str:
        """The text with every choice made. Raises UserError for a name without a file, and for choices that
        never end."""
        given, picks = text, _picks(seed, text)
        for _ in range(_DEEPEST):
            before = text
            text = self._names(text, picks)
            while match := _CHOICE.search(text):
                options = _BAR.split(match[1])
                text = text[: match.start()] + options[next(picks) % len(options)] + text[match.end() :]
            if text == before:
                return _ESCAPED.sub(r"\1", text)
            if len(text) > max(_LONGEST_TEXT, 2 * len(given)):
                break
        rule = "has wildcards that name each other without end"
        raise UserError.one("prompt", given[:80], rule, "Correct the wildcard files")

    def problems(self, text: str) -> list[Problem]:
        """What is wrong with any file that the text may come to, whatever the seed."""
        found: list[Problem] = []
        waiting, seen = [text], set[str]()
        while waiting and self.folder is not None:
            for match in _NAME.finditer(waiting.pop()):
                if match[1] in seen:
                    continue
                seen.add(match[1])
                try:
                    waiting += self.lines(match[1])
                except UserError as error:
                    found += error.problems
        return found

    def lines(self, name: str) -> list[str]:
        """What `__name__` may become. Raises UserError; never leaves the folder."""
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _names(self, text: str, picks: Iterator[int]) -> str:
        if self.folder is None:
            return text

        def line(match: re.Match[str]) -> str:
            lines = self.lines(match[1])
            return lines[next(picks) % len(lines)]

        return _NAME.sub(line, text)

    def _read(self, name: str) -> list[str]:
        assert self.folder is not None
        folder = self.folder.resolve()
        try:
            file = (folder / f"{name}.txt").resolve()
            if not file.is_relative_to(folder):
                raise _wrong(name, f"leaves the folder {self.folder}", "Put the file into that folder")
            with file.open("rb") as opened:
                data = opened.read(_LARGEST_FILE + 1)
            text = data.decode("utf-8-sig")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a ring of links, on Python 3.11
            missing = isinstance(error, FileNotFoundError)
            rule = f"has no file {name}.txt in {self.folder}" if missing else f"cannot be read ({error})"
            raise _wrong(name, rule, "Make that file, one choice a line, as UTF-8") from error
        if len(data) > _LARGEST_FILE:
            raise _wrong(name, "is a file of more than 10 MB", "Is this a wildcard file?")
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise _wrong(name, f"has nothing in its file {file.name}", "Write one choice a line")
        return lines


def escaped(text: str) -> str:
    """A text that `resolved` turns into this one."""
    if not any(pattern.search(text) for pattern in (_CHOICE, _NAME, _ESCAPED)):
        return text
    return _SPECIAL.sub(lambda match: "\\" + match[0], text)


def _picks(seed: int, text: str) -> Iterator[int]:
    for number in range(_MOST_CHOICES):
        yield int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big")
    rule = f"has more than {_MOST_CHOICES} choices, or wildcards that name each other without end"
    raise UserError.one("prompt", text[:80], rule, "Use fewer, or correct the wildcard files")


def _wrong(name: str, rule: str, remedy: str) -> UserError:
    return UserError.one("prompt", f"__{name}__", rule, remedy)
