# SPDX-License-Identifier: Apache-2.0
"""What a retrieval task is made of: a context, questions about it, and the exact answers, all as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, without a begin token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Asked by appending `prompt` to what was said before; right iff the continuation starts with `answer`."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """One context with one or more questions, asked in order (each sees the earlier questions and right answers).

    Attributes:
        task: the generator's name.
        context: what is given; with the begin token, the questions and answers it takes at most the length asked for.
    """

    task: str
    context: str
    questions: tuple[Question, ...]

    def prompt(self, turn: int = 0) -> str:
        """The text before the answer of question `turn`."""
        said = [question.prompt + question.answer for question in self.questions[:turn]]
        return self.context + "".join(said) + self.questions[turn].prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class WordPool:
    """What a task may say.

    Attributes:
        words: lower-case words that are one token each when a space stands before them.
        encode: the tokenizer.
        document: a piece of prose from a random generator, for the tasks that hide something in text.
    """

    words: tuple[str, ...]
    encode: Encode
    document: Callable[[np.random.Generator], str]


def single_token_words(vocabulary: Mapping[str, int], known_words: Sequence[str]) -> tuple[str, ...]:
    """Known lower-case ASCII words of three letters or more that a byte-level vocabulary holds with their leading space."""
    return tuple(
        sorted(
            word
            for word in set(known_words)
            if len(word) >= 3 and word.isascii() and word.isalpha() and word.islower() and f"Ġ{word}" in vocabulary
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """Token ids of an item; `parts` are (prompt ids, answer ids) per question."""

    context: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def prompt(self, turn: int = 0) -> list[int]:
        """Ids before the answer of question `turn`."""
        ids = list(self.context)
        for question, answer in self.parts[:turn]:
            ids += [*question, *answer]
        return ids + list(self.parts[turn][0])

    def num_tokens(self) -> int:
        """All tokens, answers included."""
        return len(self.context) + sum(len(question) + len(answer) for question, answer in self.parts)


def encode_item(item: TaskItem, encode: Encode, begin: int) -> EncodedItem:
    """Ids of an item with the begin token in front.

    The generators break text only where a byte-level pre-tokenizer breaks it too, so encoding the parts one by one
    gives the same ids as encoding the whole (tested).
    """
    parts = tuple((tuple(encode(question.prompt)), tuple(encode(question.answer))) for question in item.questions)
    return EncodedItem(context=(begin, *encode(item.context)), parts=parts)
