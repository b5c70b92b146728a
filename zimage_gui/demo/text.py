"""Make the demo's text encoder: a small Qwen3 with random weights and its own byte-level vocabulary.

Knows transformers' Qwen3 and the tokenizer file format. Must not know pictures or training. Random layers
do no harm: the caption embedder in front of the transformer learns to read them, as every word of the
captions is one token with a direction of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from zimage_gui.demo.draw import BACKGROUNDS, COLOURS, NEW_SHAPE, SHAPES

VOCABULARY = 704  # rows of the embedding; the vocabulary below comes out at about 650
HIDDEN = 128
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_TOKENS = ("<think>", "</think>")
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
OTHER_WORDS = """
a an the one two three four five six of in on at by with and or not to from over under near beside behind
between above below left right top bottom middle centre small big large tiny huge little long short tall wide
picture photo drawing painting sketch image sharp soft bright dark light pale deep plain simple clean flat
circle square triangle star heart cross ring line dot shape object thing colour color background front side
red green blue yellow purple orange black white gray grey pink cyan brown golden silver cat dog bird fish
horse tree flower house car boat sea sky sun moon cloud mountain river forest city street road table chair
book cup hand face eye man woman child girl boy people standing sitting running flying holding looking
is are was has have make made show shows very more most no low quality high blurry user assistant system
"""


def corpus() -> list[str]:
    """Texts the vocabulary is learnt from: the captions' words first, so that each becomes one token."""
    words = [*SHAPES, NEW_SHAPE, *COLOURS, *BACKGROUNDS, "background", "on", "a"]
    captions = [f"a {word} {word} on a {word} background" for word in words]
    return ["user\nassistant\n"] * 200 + captions * 200 + ["a " + OTHER_WORDS.replace("\n", " ")] * 20


def make_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, ids ordered as Qwen's are."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = VOCABULARY - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_TOKENS])
    tokenizer.model.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_text_encoder(folder: Path, seed: int = 20) -> None:
    """Write config.json and model.safetensors (bf16) of a random three-layer Qwen3, the last layer unused.

    Embeddings of unit variance with layers of small ones: a token's feature stays mostly its own word.
    """
    import torch
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    )
    model = Qwen3Model(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 0.3 * weight.shape[1] ** -0.5)
    model.bfloat16().save_pretrained(folder)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["rope_theta"] = 1_000_000.0  # where transformers 4 and other programs look for it
    path.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
