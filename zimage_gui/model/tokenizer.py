"""Prompts to token ids, exactly as the reference pipeline makes them.

Knows the chat template, the 512-token cut and where a tokenizer is found. Must not know the encoder's weights
and never downloads. The Qwen3 vocabulary is bundled as its merge rules: every other id follows from them.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage_gui.errors import Problem, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PREFIX = "<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PAD = "<|endoftext|>"
MAX_TOKENS = 512
BUNDLED_VOCAB_SIZE = 151_936
"""Rows of the embedding of every Qwen3-4B; its last 267 belong to no token."""

_DATA = Path(__file__).with_name("tokenizer_data")
# How Qwen cuts a text into words before merging; a fact of the vocabulary.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Bytes; the real tokenizer.json has 11.4 MB.
_LONGEST_FILE = 100_000_000
_SHOWN = 150
"""Characters of either end of the lost words that a warning names."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Ids of a prompt in its template, at most 512; `lost_words` is the text the cut took away, or ""."""

    ids: tuple[int, ...]
    lost_words: str

    @property
    def warning(self) -> str | None:
        """One sentence for the user when words were lost."""
        if not self.lost_words:
            return None
        lost = self.lost_words
        shown = lost if len(lost) <= 2 * _SHOWN else f"{lost[:_SHOWN]} … {lost[-_SHOWN:]}"
        return f"The prompt exceeds {MAX_TOKENS} tokens; its last words are not seen: {shown}"


class Tokenizer:
    """A byte-level BPE tokenizer that knows Qwen's chat tokens. `source` says where it came from."""

    def __init__(self, backend: Backend, source: str):
        """Raises ValueError when the chat tokens are missing."""
        pad_id = backend.token_to_id(PAD)
        missing = [
            token for token in ("<|im_start|>", "<|im_end|>", PAD) if backend.token_to_id(token) is None
        ]
        if missing or pad_id is None:
            raise ValueError(f"lacks the chat tokens {', '.join(missing)}")
        self._backend = backend
        self.source = source
        self.pad_id = pad_id
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode_prompt(self, text: str) -> EncodedPrompt:
        """Ids of the user turn `text` and the start of the answer, cut at 512 as the reference cuts them.

        The prompt is taken verbatim. The cut takes the template's end first, so a prompt of 505 to 509 tokens
        loses no words yet.
        """
        encoding = self._backend.encode(PREFIX + text + SUFFIX, add_special_tokens=False)
        ids = tuple(encoding.ids)
        if len(ids) <= MAX_TOKENS:
            return EncodedPrompt(ids, "")
        return EncodedPrompt(ids[:MAX_TOKENS], _lost(text, encoding.offsets[MAX_TOKENS][0] - len(PREFIX)))

    def ids(self, text: str) -> list[int]:
        """Ids of bare text, without template or cut."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, chat tokens included."""
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text


def _lost(text: str, start: int) -> str:
    """What of `text` lies behind the cut; a word cut in two counts as lost."""
    while 0 < start < len(text) and text[start].isalnum() and _continues_word(text[start - 1]):
        start -= 1
    return text[start:].strip()


def _continues_word(char: str) -> bool:
    # From here on scripts write without spaces (CJK and others): each sign is a word there.
    return char.isalnum() and ord(char) < 0x2E80


def load_tokenizer(path: Path | None, text_encoder: Path | None, vocab_size: int) -> Tokenizer:
    """The tokenizer for an embedding of `vocab_size` rows.

    Order: `path` (the option --tokenizer: a file or a folder), files beside the text encoder or in the hub
    folder's `tokenizer/`, then the bundled Qwen3 vocabulary when the embedding has its size. Raises UserError
    when none fits.
    """
    if path is not None:
        file = next(iter(_files_in(path)), None)
        if file is None:
            rule = "holds no tokenizer.json (or vocab.json with merges.txt)"
            raise UserError.one("tokenizer", path, rule, "Give the tokenizer folder of the model")
        return _checked(file, vocab_size)
    refused: list[Problem] = []
    for file in _beside(text_encoder) if text_encoder else ():
        try:
            return _checked(file, vocab_size)
        except UserError as error:
            refused.extend(error.problems)
    if vocab_size == BUNDLED_VOCAB_SIZE:
        return bundled_tokenizer()
    rule = f"none fits this text encoder of {vocab_size} tokens; the bundled one needs {BUNDLED_VOCAB_SIZE}"
    remedy = "Put its tokenizer.json beside the text encoder, or name it with --tokenizer"
    raise UserError([Problem("tokenizer", "", rule, remedy), *refused])


def _beside(text_encoder: Path) -> Iterator[Path]:
    folder = text_encoder if text_encoder.is_dir() else text_encoder.parent
    for place in (folder, folder / "tokenizer", folder.parent / "tokenizer"):
        yield from _files_in(place)


def _files_in(place: Path) -> Iterator[Path]:
    """Tokenizer files at `place`: itself, or the usual names; a vocab.json only with its merges.txt."""
    if place.is_file():
        yield place
        return
    for folder in (place, place / "tokenizer"):
        for name in ("qwen3-tokenizer.json", "tokenizer.json"):
            if (folder / name).is_file():
                yield folder / name
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            yield folder / "vocab.json"


def _checked(file: Path, vocab_size: int) -> Tokenizer:
    try:
        stat = file.stat()
        if stat.st_size > _LONGEST_FILE:
            raise ValueError(f"is larger than {_LONGEST_FILE} bytes")
        tokenizer = _load(file, stat.st_mtime_ns, stat.st_size)
    except Exception as error:  # the tokenizers library raises bare Exception
        rule = f"is not a usable Qwen tokenizer ({error})"
        raise UserError.one("tokenizer", file, rule, "Give the tokenizer.json of the text encoder") from error
    if tokenizer.vocab_size > vocab_size:
        rule = f"has {tokenizer.vocab_size} tokens, but the text encoder knows {vocab_size}"
        raise UserError.one("tokenizer", file, rule, "Give the tokenizer that belongs to this text encoder")
    return tokenizer


@lru_cache(maxsize=4)
def _load(file: Path, changed_ns: int, size: int) -> Tokenizer:
    """Reading takes a quarter of a second, so the last few stay; time and size tell a changed file."""
    from tokenizers import Tokenizer as Backend

    if file.name == "vocab.json":
        return Tokenizer(_from_vocab_and_merges(file), str(file))
    return Tokenizer(Backend.from_str(file.read_text(encoding="utf-8")), str(file))


@lru_cache(maxsize=1)
def bundled_tokenizer() -> Tokenizer:
    """The Qwen3 tokenizer rebuilt from the bundled merge rules; equal to the original on every text."""
    merges = lzma.decompress((_DATA / "qwen3_merges.txt.xz").read_bytes()).decode("utf-8")
    pairs = [_pair(line) for line in merges.splitlines()]
    vocab = {char: index for index, char in enumerate(_byte_alphabet())}
    for left, right in pairs:
        vocab[left + right] = len(vocab)
    added = json.loads((_DATA / "qwen3_added_tokens.json").read_text(encoding="utf-8"))
    return Tokenizer(_build(vocab, pairs, added), "bundled")


def _byte_alphabet() -> list[str]:
    """The 256 signs that stand for bytes in a byte-level vocabulary, in the order of their ids.

    Printable Latin-1 stands for itself; the other bytes take the code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


def _from_vocab_and_merges(vocab_file: Path) -> Backend:
    """A tokenizer of the older file pair; its config, else the real Qwen3, numbers the chat tokens."""
    vocab: dict[str, int] = json.loads(vocab_file.read_text(encoding="utf-8"))
    lines = vocab_file.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
    config_file = vocab_file.with_name("tokenizer_config.json")
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    added: list[dict[str, Any]]
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"]
        added = [
            {"id": int(key), "content": t["content"], "special": t["special"]} for key, t in decoder.items()
        ]
    else:
        added = json.loads((_DATA / "qwen3_added_tokens.json").read_text(encoding="utf-8"))
    return _build(vocab, pairs, sorted(added, key=lambda token: int(token["id"])))


def _build(vocab: dict[str, int], merges: list[tuple[str, str]], added: list[dict[str, Any]]) -> Backend:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(vocab, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for token in added:
        made = AddedToken(token["content"], special=token["special"], normalized=False)
        (backend.add_special_tokens if token["special"] else backend.add_tokens)([made])
        if backend.token_to_id(token["content"]) != token["id"]:
            raise ValueError(f"numbers its added token {token['content']} other than its vocabulary")
    return backend
