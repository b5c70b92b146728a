"""The tokenizer rebuilt from the bundled merge rules gives the ids of the original Qwen3 tokenizer.

The original (11 MB) is not in the repository. `tests/data/tokenizer/qwen3_ids.json` holds what it gave; the proof on
100,000 strings runs where QWEN3_TOKENIZER_JSON names it, and `python tests/model/test_tokenizer_bundled.py` writes the data.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizer_strings import strings

from zimage_gui.model.tokenizer import BUNDLED_VOCAB_SIZE, bundled_tokenizer, load_tokenizer

DATA = Path(__file__).parents[1] / "data" / "tokenizer" / "qwen3_ids.json"
ORIGINAL_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
GROUP = 100


def group_hashes(encode: Callable[[str], Sequence[int]], groups: int) -> list[str]:
    texts = list(strings(groups * GROUP))
    hashes = []
    for start in range(0, len(texts), GROUP):
        ids = [list(encode(text)) for text in texts[start : start + GROUP]]
        hashes.append(hashlib.sha256(json.dumps(ids).encode()).hexdigest())
    return hashes


def test_four_thousand_strings_get_the_originals_ids() -> None:
    said = json.loads(DATA.read_text(encoding="utf-8"))
    assert said["original_sha256"] == ORIGINAL_SHA256
    assert group_hashes(bundled_tokenizer().ids, len(said["group_sha256"])) == said["group_sha256"]
    for text, ids in said["examples"].items():
        assert bundled_tokenizer().ids(text) == ids, text


@pytest.mark.slow
def test_a_hundred_thousand_strings_get_the_originals_ids() -> None:
    if "QWEN3_TOKENIZER_JSON" not in os.environ:
        pytest.skip("QWEN3_TOKENIZER_JSON does not name the original tokenizer.json")
    original = load_tokenizer(Path(os.environ["QWEN3_TOKENIZER_JSON"]), None, BUNDLED_VOCAB_SIZE)
    rebuilt = bundled_tokenizer()
    for text in strings(100_000, seed=1):
        assert rebuilt.ids(text) == original.ids(text), text
        assert rebuilt.encode_prompt(text) == original.encode_prompt(text), text


def test_ids_become_the_text_again() -> None:
    tokenizer = bundled_tokenizer()
    for text in ("a red circle, 一只猫 🙂", "  two\n\nlines ", "<|im_start|>user"):
        assert tokenizer.decode(tokenizer.ids(text)) == text


def test_the_template_and_an_empty_prompt_have_the_published_ids() -> None:
    tokenizer = bundled_tokenizer()
    assert tokenizer.encode_prompt("").ids == (151644, 872, 198, 151645, 198, 151644, 77091, 198)
    assert tokenizer.pad_id == 151643
    assert tokenizer.vocab_size == 151669


def write_data(original: Path) -> None:
    assert hashlib.sha256(original.read_bytes()).hexdigest() == ORIGINAL_SHA256
    tokenizer = load_tokenizer(original, None, BUNDLED_VOCAB_SIZE)
    examples = [
        "a photo of a red circle",
        "It's 2048",
        "一只猫坐在窗边",
        "cafe\u0301 ½ 🙂",
        "  \n\t x",
        "<think>hi</think>",
    ]
    said = {
        "original_sha256": ORIGINAL_SHA256,
        "examples": {text: tokenizer.ids(text) for text in examples},
        "group_sha256": group_hashes(tokenizer.ids, 40),
    }
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_data(Path(os.environ["QWEN3_TOKENIZER_JSON"]))
