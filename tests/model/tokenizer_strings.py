"""Deterministic strings of every kind a prompt may hold, for comparing tokenizers."""

import random
from collections.abc import Iterator

# First and last code point of what one draw may take.
SCRIPTS = (
    (0x20, 0x7E), (0x61, 0x7A), (0x30, 0x39), (0xA0, 0xFF), (0x100, 0x17F), (0x300, 0x36F), (0x391, 0x3C9),
    (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE2E), (0x1100, 0x1112), (0x1E00, 0x1EFF),
    (0x2000, 0x206F), (0x2190, 0x21FF), (0x2460, 0x24FF), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF01, 0xFF5E), (0x1D400, 0x1D4FF),
    (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x20000, 0x20100), (0x00, 0x1F),
)  # fmt: skip
PIECES = (
    " ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", " \n ", "'s", "'LL", "don't", "I'VE", "it's", "_", "__init__", "...", "!!",
    "a photo of", "masterpiece", "1024x1024", "(weights:1.2)", "<lora:x:0.8>", "<b>", "https://example.org/a?b=c", "日本語の", "一只猫",
    "고양이가", "кошка", "القط", "बिल्ली", "แมว", "γάτα", "café", "cafe\u0301", "ﬁne", "²", "½", "🙂", "👩‍👩‍👧", "🇨🇳", "\u200b", "\ufeff",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|vision_pad|>", "<|im_", "|>",
)  # fmt: skip


def strings(count: int, seed: int = 0) -> Iterator[str]:
    """Mixtures of words, marks, chat tokens and random letters of one or several scripts."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(_part(rng) for _ in range(1 + int(rng.random() * 12)))


def _part(rng: random.Random) -> str:
    if rng.random() < 0.45:
        return PIECES[int(rng.random() * len(PIECES))]
    first, last = SCRIPTS[int(rng.random() * len(SCRIPTS))]
    letters = 1 + int(rng.random() * 8)
    return "".join(chr(first + int(rng.random() * (last - first + 1))) for _ in range(letters))
