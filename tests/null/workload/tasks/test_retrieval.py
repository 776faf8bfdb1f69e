# SPDX-License-Identifier: Apache-2.0
"""The retrieval tasks: answers are in the context where promised, text and tokens agree, lengths are kept, seeds decide."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ziggurat.workload import prose
from ziggurat.workload.tasks.item import TaskItem, WordPool, encode_item, single_token_words
from ziggurat.workload.tasks.retrieval import TASKS

BEGIN = 1


@functools.cache
def pool() -> WordPool:
    """A small byte-level BPE over the prose, so that these tests need no shipped model."""
    rng = np.random.default_rng(5)
    words = [word for word in prose.all_words() if word.islower() and 3 <= len(word) <= 4]
    corpus = [" " + prose.document(rng) for _ in range(200)] + [f" {word}" for word in words for _ in range(50)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    )
    known = single_token_words(tokenizer.get_vocab(), prose.all_words())
    assert len(known) > 100
    return WordPool(
        words=known,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        document=lambda rng: prose.document(rng, "held_out"),
    )


def make(task: str, seed: int, length: int, num_questions: int) -> TaskItem:
    return TASKS.get(task)(np.random.default_rng(seed), pool(), length, num_questions)


@pytest.mark.parametrize("task", TASKS.names())
@given(seed=st.integers(0, 2**32), length=st.integers(160, 900), num_questions=st.integers(1, 4))
def test_parts_encode_as_the_whole_and_fit_the_length(task: str, seed: int, length: int, num_questions: int) -> None:
    item = make(task, seed, length, num_questions)
    encoded = encode_item(item, pool().encode, BEGIN)
    last = num_questions - 1
    whole = item.prompt(last) + item.questions[last].answer
    assert [BEGIN, *pool().encode(whole)] == encoded.prompt(last) + list(encoded.parts[last][1])
    assert len(item.questions) == num_questions
    # Filled to within one line; prose is cut at words, so up to a handful of tokens stay free.
    assert length - 12 <= encoded.num_tokens() <= length


@pytest.mark.parametrize("task", TASKS.names())
def test_same_seed_same_item_other_seed_other_item(task: str) -> None:
    assert make(task, 7, 300, 2) == make(task, 7, 300, 2)
    assert make(task, 7, 300, 2) != make(task, 8, 300, 2)


@pytest.mark.parametrize("task", ["key_value", "key_value_short", "prefix_suffix", "needle"])
@given(seed=st.integers(0, 2**32))
def test_the_answer_stands_once_after_the_question_in_the_context(task: str, seed: int) -> None:
    item = make(task, seed, 400, 3)
    for question in item.questions:
        line = question.prompt.removeprefix("\n")
        places = [match.end() for match in re.finditer(r"(?<=\n)" + re.escape(line), item.context)]
        ends = [item.context[place:].split("\n")[0].removesuffix(".") for place in places]
        assert [end for end in ends if end == question.answer], (question, ends)
        if task == "key_value":
            assert len(places) == 1


@given(seed=st.integers(0, 2**32))
def test_variable_tracking_answers_follow_the_assignments(seed: int) -> None:
    item = make("variable_tracking", seed, 500, 4)
    values: dict[str, str] = {}
    for line in item.context.strip("\n").split("\n"):
        if not re.fullmatch(r" [a-z]+ is [a-z]+", line):
            continue  # prose
        name, source = line.split(" is")
        assert name not in values
        values[name] = values.get(source, source)
    for question in item.questions:
        name = question.prompt.removeprefix("\n").removesuffix(" is")
        assert values[name] == question.answer


@given(seed=st.integers(0, 2**32))
def test_many_shot_labels_depend_on_the_first_word_and_the_question_is_new(seed: int) -> None:
    item = make("many_shot", seed, 500, 4)
    shots = [line.split(" is") for line in item.context.strip("\n").split("\n")]
    meaning: dict[str, set[str]] = {}
    for words, label in shots:
        meaning.setdefault(words.split()[0], set()).add(label)
    assert all(len(labels) == 1 for labels in meaning.values())
    for question in item.questions:
        words = question.prompt.removeprefix("\n").removesuffix(" is")
        assert meaning[words.split()[0]] == {question.answer}
        assert words not in [shot for shot, _ in shots]


@pytest.mark.parametrize("task", ["key_value", "prefix_suffix", "variable_tracking", "many_shot"])
def test_no_room_for_a_line_is_said_with_numbers(task: str) -> None:
    with pytest.raises(ValueError, match="in 20 tokens"):
        make(task, 0, 20, 5)


def test_words_of_the_pool_are_single_tokens() -> None:
    assert all(len(pool().encode(f" {word}")) == 1 for word in pool().words)
