# SPDX-License-Identifier: Apache-2.0
"""The generated sources by name: start-up tasks, retrieval tasks, prose, chats, and windows of user text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ziggurat.errors import ConfigError
from ziggurat.training.sources import Ids, Mask, Source
from ziggurat.training.tokenizer import encode
from ziggurat.workload import prose
from ziggurat.workload.prose import Split
from ziggurat.workload.tasks import curriculum
from ziggurat.workload.tasks.item import WordPool, encode_item, single_token_words
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS, plain_layout
from ziggurat.workload.tasks.retrieval import TASKS, Task

BEGIN, END, USER, ASSISTANT, TURN, PAD = (
    SPECIAL_TOKENS.index(f"<|{name}|>") for name in ("begin", "end", "user", "assistant", "turn", "pad")
)
_HELD_OUT_SHARE = 0.05


def word_pool(tokenizer: Tokenizer, split: Split) -> WordPool:
    """Words and prose of a split for the retrieval tasks; the words are the same in both splits, their combinations are not."""
    return WordPool(
        words=single_token_words(tokenizer.get_vocab(), prose.all_words()),
        encode=lambda text: encode(tokenizer, text),
        document=lambda rng: prose.document(rng, split),
    )


def build_sources(tokenizer: Tokenizer, texts: Sequence[str] = (), split: Split = "train") -> dict[str, Source]:
    """Every source that a recipe may name. `text` is there only if files are given.

    Raises:
        ConfigError: a text file cannot be read or is too short.
    """
    layout, pool = plain_layout(), word_pool(tokenizer, split)
    sources: dict[str, Source] = {
        "copy": lambda rng, length: curriculum.dense_copy(rng, layout, length),
        "lookup": lambda rng, length: curriculum.dense_lookup(rng, layout, length, _one_or_two(rng), _one_or_two(rng)),
        "prose": lambda rng, length: _packed(rng, length, lambda: _document(rng, tokenizer, split)),
        "chat": lambda rng, length: _packed(rng, length, lambda: _chat(rng, tokenizer, split)),
        "chat_task": lambda rng, length: _chat_task(rng, length, tokenizer, pool),
    }
    for name in TASKS.names():
        sources[name] = _task_source(TASKS.get(name), name, pool)
    if texts:
        sources["text"] = text_source(tokenizer, texts, split)
    return sources


def _one_or_two(rng: np.random.Generator) -> int:
    return 2 if rng.random() < 0.7 else 1


def _task_source(task: Task, name: str, pool: WordPool) -> Source:
    def sample(rng: np.random.Generator, length: int) -> tuple[Ids, Mask]:
        most = max(2, length // (100 if name == "needle" else 20))
        item = encode_item(task(rng, pool, length, int(rng.integers(1, most))), pool.encode, BEGIN)
        ids, is_answer = list(item.context), [False] * len(item.context)
        for question, answer in item.parts:
            ids += [*question, *answer]
            is_answer += [False] * len(question) + [True] * len(answer)
        return _fit(ids, is_answer, length)

    return sample


def _chat_task(rng: np.random.Generator, length: int, tokenizer: Tokenizer, pool: WordPool) -> tuple[Ids, Mask]:
    """A task asked by a user: context and question in the first message, further questions in later ones.

    The assistant answers in whole lines, the question first: what continues a line in the context continues it there too.
    """
    names = TASKS.names()
    task = TASKS.get(names[int(rng.integers(len(names)))])
    num_questions = int(rng.integers(1, 4))
    item = task(rng, pool, max(64, length - 12 * num_questions - 8), num_questions)
    answers = [question.prompt.strip() + question.answer for question in item.questions]
    exchanges = [(item.context.strip() + "\n" + item.questions[0].prompt, answers[0])]
    exchanges += [(question.prompt, answer) for question, answer in zip(item.questions[1:], answers[1:], strict=True)]
    return _fit(*_render_chat(tokenizer, exchanges), length)


def _document(rng: np.random.Generator, tokenizer: Tokenizer, split: Split) -> tuple[list[int], list[bool]]:
    ids = [BEGIN, *encode(tokenizer, " " + prose.document(rng, split)), END]
    return ids, [False] + [True] * (len(ids) - 1)


def _chat(rng: np.random.Generator, tokenizer: Tokenizer, split: Split) -> tuple[list[int], list[bool]]:
    return _render_chat(tokenizer, [(exchange.user, exchange.assistant) for exchange in prose.chat(rng, split)])


def _render_chat(tokenizer: Tokenizer, exchanges: Sequence[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    """As the chat template renders it; the assistant's words and its turn mark are predicted, the user's are not."""
    ids, is_predicted = [BEGIN], [False]
    for user, assistant in exchanges:
        asked = [USER, *encode(tokenizer, " " + user.strip()), TURN, ASSISTANT]
        said = [*encode(tokenizer, " " + assistant.strip()), TURN]
        ids += asked + said
        is_predicted += [False] * len(asked) + [True] * len(said)
    return ids, is_predicted


def _packed(rng: np.random.Generator, length: int, make: object) -> tuple[Ids, Mask]:
    """Pieces one after another until the sequence is full; the last one is cut."""
    assert callable(make)
    ids: list[int] = []
    is_predicted: list[bool] = []
    while len(ids) < length:
        more_ids, more_predicted = make()
        ids += more_ids
        is_predicted += more_predicted
    return _fit(ids, is_predicted, length)


def _fit(ids: Sequence[int], is_predicted: Sequence[bool], length: int) -> tuple[Ids, Mask]:
    """Cut or padded on the right to `length`."""
    fitted = np.full(length, PAD, dtype=np.int64)
    mask = np.zeros(length, dtype=bool)
    size = min(length, len(ids))
    fitted[:size] = ids[:size]
    mask[:size] = is_predicted[:size]
    return fitted, mask


def text_source(tokenizer: Tokenizer, texts: Sequence[str], split: Split) -> Source:
    """Random windows of the user's files; the last 5 % of each file are held out.

    Raises:
        ConfigError: a file cannot be read as UTF-8 or has fewer than 200 tokens.
    """
    parts: list[Ids] = []
    for name in texts:
        try:
            ids = np.asarray(encode(tokenizer, Path(name).read_text(encoding="utf-8")), dtype=np.int64)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"text file {name} cannot be read as UTF-8: {error}") from error
        if len(ids) < 200:
            raise ConfigError(
                f"text file {name} has {len(ids)} tokens; at least 200 are needed (190 to train, 10 held out)"
            )
        border = len(ids) - max(10, int(len(ids) * _HELD_OUT_SHARE))
        parts.append(np.concatenate([[BEGIN], ids[:border] if split == "train" else ids[border:], [END]]))
    stream = np.concatenate(parts)

    def sample(rng: np.random.Generator, length: int) -> tuple[Ids, Mask]:
        start = int(rng.integers(max(1, len(stream) - length + 1)))
        window = stream[start : start + length]
        return _fit(window.tolist(), [True] * len(window), length)

    return sample
