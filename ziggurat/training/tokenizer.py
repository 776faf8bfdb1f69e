# SPDX-License-Identifier: Apache-2.0
"""The embedded model's tokenizer: byte-level BPE trained on generated prose, in Hugging Face's file format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ziggurat.workload import prose
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS, VOCABULARY_SIZE

_CORPUS_SEED = 20_001
_NUM_DOCUMENTS = 6_000
_WORD_REPEATS = 500

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|turn|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def prose_corpus(num_documents: int = _NUM_DOCUMENTS) -> Iterator[str]:
    """What the vocabulary is learnt from: documents, chats, and the word lists themselves, so that list words become tokens."""
    rng = np.random.default_rng(_CORPUS_SEED)
    for _ in range(num_documents):
        yield " " + prose.document(rng)
        for exchange in prose.chat(rng):
            yield exchange.user
            yield exchange.assistant
    for word in prose.all_words():
        if word.islower() and len(word) <= 4:
            for _ in range(_WORD_REPEATS * num_documents // _NUM_DOCUMENTS):
                yield " " + word


def train_tokenizer(corpus: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Byte-level BPE with our special tokens first, then the 256 bytes, then merges. Encoding prepends <|begin|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = "<|begin|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, SPECIAL_TOKENS.index(begin))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length_tokens: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|turn|>",
        "pad_token": "<|pad|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` without <|begin|>."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
