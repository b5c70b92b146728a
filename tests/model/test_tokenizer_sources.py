"""Where a tokenizer is found, what is refused, and what the 512-token cut loses."""

import json
import shutil
from pathlib import Path

import pytest
from golden import REFERENCE, manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from zimage_gui.errors import UserError
from zimage_gui.model.tokenizer import BUNDLED_VOCAB_SIZE, MAX_TOKENS, bundled_tokenizer, load_tokenizer

TINY = REFERENCE / "hub" / "tokenizer" / "tokenizer.json"
TINY_SIZE = 600


def test_the_named_tokenizer_wins_over_the_one_beside(tmp_path: Path) -> None:
    beside = tmp_path / "encoder" / "tokenizer.json"
    beside.parent.mkdir()
    beside.write_text("broken", encoding="utf-8")
    for named in (TINY, TINY.parent, REFERENCE / "hub"):
        assert load_tokenizer(named, beside.parent, TINY_SIZE).source == str(TINY)


@pytest.mark.parametrize(
    "text_encoder", ["hub/text_encoder", "hub", "hub/text_encoder/model-00001-of-00002.safetensors"]
)
def test_the_hub_folders_own_tokenizer_is_found(text_encoder: str) -> None:
    assert load_tokenizer(None, REFERENCE / text_encoder, TINY_SIZE).source == str(TINY)


@pytest.mark.parametrize("name", ["tokenizer.json", "qwen3-tokenizer.json", "tokenizer/tokenizer.json"])
def test_a_tokenizer_beside_a_single_file_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(TINY, tmp_path / name)
    encoder = tmp_path / "qwen.safetensors"
    encoder.touch()
    assert load_tokenizer(None, encoder, TINY_SIZE).source == str(tmp_path / name)


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "no config"])
def test_the_older_file_pair_gives_the_same_ids(with_config: bool, tmp_path: Path) -> None:
    names = ["vocab.json", "merges.txt"] + ["tokenizer_config.json"] * with_config
    for name in names:
        shutil.copy(TINY.with_name(name), tmp_path)
    if not with_config:
        with pytest.raises(UserError, match="vocabulary"):
            load_tokenizer(tmp_path, None, TINY_SIZE)
        return
    pair, whole = load_tokenizer(tmp_path, None, TINY_SIZE), load_tokenizer(TINY, None, TINY_SIZE)
    for case in manifest()["cases"]["text"]:
        assert pair.encode_prompt(case["prompt"]) == whole.encode_prompt(case["prompt"])


def test_the_bundled_vocabulary_serves_an_embedding_of_its_size_even_beside_an_unfit_file(
    tmp_path: Path,
) -> None:
    encoder = tmp_path / "qwen_3_4b.safetensors"
    encoder.touch()
    assert load_tokenizer(None, encoder, BUNDLED_VOCAB_SIZE).source == "bundled"
    (tmp_path / "tokenizer.json").write_text('{"of": "another model"}', encoding="utf-8")
    assert load_tokenizer(None, encoder, BUNDLED_VOCAB_SIZE).source == "bundled"
    assert load_tokenizer(None, None, BUNDLED_VOCAB_SIZE) is bundled_tokenizer()


def test_no_fitting_tokenizer_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none fits this text encoder of 600 tokens.*--tokenizer"):
        load_tokenizer(None, tmp_path / "qwen.safetensors", 600)
    with pytest.raises(UserError, match=r"has 6\d\d tokens, but the text encoder knows 300|tokens, but"):
        load_tokenizer(TINY, None, 300)
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path, None, 600)


def test_an_unfit_file_beside_is_named_when_nothing_else_serves(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_tokenizer(None, tmp_path, 600)
    assert len(caught.value.problems) == 2 and "tokenizer.json" in caught.value.problems[1].value


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 14_000), junk=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_a_damaged_tokenizer_never_gives_anything_but_a_user_error(
    at: int, junk: bytes, cut: bool, tmp_path: Path
) -> None:
    whole = TINY.read_bytes()
    file = tmp_path / "tokenizer.json"
    file.write_bytes(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))
    try:
        load_tokenizer(file, None, TINY_SIZE).encode_prompt("a red circle")
    except UserError as error:
        assert "tokenizer" in str(error)


def test_a_tokenizer_without_chat_tokens_is_refused(tmp_path: Path) -> None:
    table = json.loads(TINY.read_text(encoding="utf-8"))
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] != "<|im_end|>"]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks the chat tokens <\|im_end\|>"):
        load_tokenizer(file, None, TINY_SIZE)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    shutil.copy(TINY, file)
    first = load_tokenizer(file, None, TINY_SIZE)
    assert load_tokenizer(file, None, TINY_SIZE) is first
    file.write_text(TINY.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert load_tokenizer(file, None, TINY_SIZE) is not first


@pytest.mark.parametrize("words", [0, 1, 503, 504, 505, 509, 510, 700])
def test_the_cut_equals_the_reference_and_tells_what_it_lost(words: int) -> None:
    tokenizer = bundled_tokenizer()
    names = [f"{'abcdefghij'[i % 10]}" for i in range(words)]
    text = " ".join(names)
    encoded = tokenizer.encode_prompt(text)
    whole = tokenizer.ids(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert list(encoded.ids) == whole[:MAX_TOKENS]
    assert encoded.lost_words == " ".join(names[MAX_TOKENS - 3 :])
    assert (encoded.warning is None) == (words <= MAX_TOKENS - 3)


def test_a_word_cut_in_two_counts_as_lost_and_chinese_is_lost_sign_by_sign() -> None:
    tokenizer = bundled_tokenizer()
    text = "a " * 508 + "antidisestablishmentarianism end"
    assert tokenizer.encode_prompt(text).lost_words == "antidisestablishmentarianism end"
    chinese = "猫" * 600
    lost = tokenizer.encode_prompt(chinese).lost_words
    assert 0 < len(lost) < 600 and set(lost) == {"猫"}


def test_ids_equal_what_transformers_makes_of_the_same_folder() -> None:
    reference = AutoTokenizer.from_pretrained(REFERENCE / "hub" / "tokenizer")
    tokenizer = load_tokenizer(TINY, None, TINY_SIZE)
    for case in manifest()["cases"]["text"]:
        ids = reference(case["string"], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        assert list(tokenizer.encode_prompt(case["prompt"]).ids) == ids
