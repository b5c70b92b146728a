"""Knows what must never reach a file or a screen: tokens and keys. Knows nothing of where the text is
going.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache

# Whole words of an environment variable's name: HF_TOKEN is a secret, TOKENIZERS_PARALLELISM is not.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API|ACCESS|SECRET|PRIVATE)_?KEY)(?:_|$)|_AUTH$",
    re.IGNORECASE,
)
_SECRET_SHAPE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
# Shorter values ("true", "1234") are no secrets and would tear holes into ordinary text.
_SHORTEST = 8
_MASK = "***"


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values of the variables whose names say that they are secret, longest first.

    Of a `user:password` the password counts alone, too.
    """
    values = [value.strip() for name, value in environment.items() if _SECRET_NAME.search(name)]
    values += [value.partition(":")[2] for value in values]
    found = {value for value in values if len(value) >= _SHORTEST}
    return tuple(sorted(found, key=len, reverse=True))


@lru_cache(maxsize=1)
def _own_secrets() -> tuple[str, ...]:
    return secrets_of(os.environ)


def redact(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """The text with every secret (by default those of this process's environment) replaced with ***."""
    for secret in _own_secrets() if secrets is None else secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    if "hf_" in text or "://" in text:
        text = _SECRET_SHAPE.sub(_MASK, text)
    return text
