# SPDX-License-Identifier: Apache-2.0
"""Retrieval tasks in the manner of SCBench (Li et al. 2024): look-up, needle, prefix-suffix, variable tracking, many-shot.

Each generator fills a context to a length and asks questions about it. All randomness comes from the generator handed in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ziggurat.registry import Registry
from ziggurat.workload.tasks.item import Question, TaskItem, WordPool

Generator = np.random.Generator
Task = Callable[[Generator, WordPool, int, int], TaskItem]
"""(random generator, pool, length in tokens with begin token, questions and answers, number of questions) -> item."""
TASKS: Registry[Task] = Registry("retrieval task")

_BEGIN_TOKENS = 1
_MAX_NAMES = 60  # variables of an item; more would use up the words of one token
_RELATIONS = ("secret word", "name", "book", "key", "home", "light", "model")


def _words(rng: Generator, pool: WordPool, count: int) -> str:
    """`count` random words, each with its leading space."""
    return "".join(f" {pool.words[int(i)]}" for i in rng.integers(len(pool.words), size=count))


def _distinct(rng: Generator, pool: WordPool, count: int, num_words: int) -> list[str]:
    """`count` different phrases of `num_words` words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(_words(rng, pool, num_words))
    return list(found)


def _num_lines(length_tokens: int, line_tokens: int, num_questions: int, question_tokens: int) -> int:
    """Lines that fit beside the begin token, the first newline and the questions; at least one."""
    room = length_tokens - _BEGIN_TOKENS - 1 - num_questions * question_tokens
    if room < line_tokens:
        raise ValueError(
            f"{num_questions} questions of {question_tokens} tokens leave no room for a line in {length_tokens} tokens"
        )
    return room // line_tokens


def _ask(rng: Generator, num_choices: int, num_questions: int) -> list[int]:
    """Which facts are asked: different ones as long as there are enough."""
    order: list[int] = []
    while len(order) < num_questions:
        order += [int(i) for i in rng.permutation(num_choices)]
    return order[:num_questions]


def _asked(pairs: list[tuple[str, str]], asked: list[int], mark: str) -> tuple[Question, ...]:
    """Questions whose first line continues the context and whose later ones start a new line."""
    return tuple(
        Question(prompt=("\n" if turn else "") + pairs[i][0] + mark, answer=pairs[i][1]) for turn, i in enumerate(asked)
    )


@TASKS.register("key_value")
def key_value(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """The context is filled with lines ` key key: value value`; the question is a key. The acceptance form."""
    return _lookup(rng, pool, length_tokens, num_questions, "key_value", 2, 2)


@TASKS.register("key_value_short")
def key_value_short(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """As key_value with keys and values of one or two words, one shape per item."""
    key_words = int(rng.integers(1, 3))
    limit = len(pool.words) // 2  # one-word keys run out
    if key_words == 1 and _num_lines(length_tokens, 4, num_questions, 4) > limit:
        key_words = 2
    return _lookup(rng, pool, length_tokens, num_questions, "key_value_short", key_words, int(rng.integers(1, 3)))


def _lookup(
    rng: Generator, pool: WordPool, length_tokens: int, num_questions: int, name: str, key_words: int, value_words: int
) -> TaskItem:
    line_tokens = key_words + value_words + 2
    num_pairs = _num_lines(length_tokens, line_tokens, num_questions, line_tokens)
    pairs = [(key, _words(rng, pool, value_words)) for key in _distinct(rng, pool, num_pairs, key_words)]
    context = "\n" + "".join(f"{key}:{value}\n" for key, value in pairs)
    return TaskItem(task=name, context=context, questions=_asked(pairs, _ask(rng, num_pairs, num_questions), ":"))


@TASKS.register("needle")
def needle(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """Sentences ` The secret word of key key is value value.` hidden in prose, one per question; asked by their beginning."""
    relations = [_RELATIONS[int(i)] for i in rng.integers(len(_RELATIONS), size=num_questions)]
    keys = _distinct(rng, pool, num_questions, 2)
    facts = [
        (f" The {relation} of{key} is", _words(rng, pool, 2)) for relation, key in zip(relations, keys, strict=True)
    ]
    questions = _asked(facts, [int(i) for i in rng.permutation(num_questions)], "")
    needles = [f"{statement}{value}.\n" for statement, value in facts]
    room = length_tokens - _BEGIN_TOKENS - 2 - sum(len(pool.encode(text)) for text in needles)
    room -= sum(len(pool.encode(question.prompt + question.answer)) for question in questions)
    lines = _prose_lines(rng, pool, room)
    for text in needles:
        lines.insert(int(rng.integers(len(lines) + 1)), text)
    return TaskItem(task="needle", context="\n" + "".join(lines), questions=questions)


def _prose_lines(rng: Generator, pool: WordPool, room_tokens: int) -> list[str]:
    """Documents, one line each (newlines become spaces), cut at a word so that they take at most `room_tokens`."""
    lines: list[str] = []
    while room_tokens > 3:
        line = " " + " ".join(pool.document(rng).split()) + "\n"
        size = len(pool.encode(line))
        if size > room_tokens:
            words = line.split()
            while words and size > room_tokens:
                words = words[: max(0, min(len(words) - 1, len(words) * room_tokens // size))]
                line = " " + " ".join(words) + "\n"
                size = len(pool.encode(line))
            if words:
                lines.append(line)
            break
        lines.append(line)
        room_tokens -= size
    return lines


@TASKS.register("prefix_suffix")
def prefix_suffix(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """Lines of eight random words; the first four are given, the last four are the answer."""
    num_lines = _num_lines(length_tokens, 9, num_questions, 9)
    prefixes = _distinct(rng, pool, num_lines, 4)
    pairs = [(prefix, _words(rng, pool, 4)) for prefix in prefixes]
    context = "\n" + "".join(f"{prefix}{suffix}\n" for prefix, suffix in pairs)
    return TaskItem(
        task="prefix_suffix", context=context, questions=_asked(pairs, _ask(rng, num_lines, num_questions), "")
    )


@TASKS.register("variable_tracking")
def variable_tracking(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """Lines ` name is value` and ` name is name` scattered in prose; one to three of them lead from the question to its value.

    A chain's lines keep their order among the lines of the others (RULER's variable tracking, Hsieh et al. 2024).
    """
    room = length_tokens - _BEGIN_TOKENS - 1 - num_questions * 4
    if room < 4:
        raise ValueError(f"{num_questions} questions of 4 tokens leave no room for a line in {length_tokens} tokens")
    num_names = min(room // 4, _MAX_NAMES)
    words = _distinct(rng, pool, min(2 * num_names, len(pool.words)), 1)
    names, others = words[:num_names], words[num_names:]
    chains: list[list[str]] = []
    for name in names:
        if chains and len(chains[-1]) < 3 and rng.random() < 0.5:
            chains[-1].append(name)
        else:
            chains.append([name])
    values = [others[int(i)] for i in rng.integers(len(others), size=len(chains))]
    owners = rng.permutation(np.repeat(np.arange(len(chains)), [len(chain) for chain in chains]))
    done = [0] * len(chains)
    statements = []
    for owner in owners.tolist():
        source = values[owner] if done[owner] == 0 else chains[owner][done[owner] - 1]
        statements.append(f"{chains[owner][done[owner]]} is{source}\n")
        done[owner] += 1
    lines = _prose_lines(rng, pool, room - 4 * num_names)
    places = np.sort(rng.integers(len(lines) + 1, size=num_names))[::-1].tolist()
    for place, statement in zip(places, reversed(statements), strict=True):
        lines.insert(place, statement)
    pairs = [(chain[-1], value) for chain, value in zip(chains, values, strict=True)]
    asked = _asked(pairs, _ask(rng, len(pairs), num_questions), " is")
    return TaskItem(task="variable_tracking", context="\n" + "".join(lines), questions=asked)


@TASKS.register("many_shot")
def many_shot(rng: Generator, pool: WordPool, length_tokens: int, num_questions: int) -> TaskItem:
    """Examples ` word word is label`, where the first word decides the label; asked with a second word not seen with it."""
    num_lines = _num_lines(length_tokens, 5, num_questions, 5)
    num_words = int(min(max(2, num_lines // 6), 24))
    labels = _distinct(rng, pool, 4, 1)
    firsts = _distinct(rng, pool, num_words, 1)
    meaning = {first: labels[int(rng.integers(len(labels)))] for first in firsts}
    seen: set[tuple[str, str]] = set()
    lines = []
    for index in range(num_lines):
        first = firsts[index] if index < num_words else firsts[int(rng.integers(num_words))]
        second = _words(rng, pool, 1)
        seen.add((first, second))
        lines.append(f"{first}{second} is{meaning[first]}\n")
    order = [lines[int(i)] for i in rng.permutation(num_lines)]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < num_questions:
        first, second = firsts[int(rng.integers(num_words))], _words(rng, pool, 1)
        if (first, second) not in seen:
            pairs.append((first + second, meaning[first]))
    questions = _asked(pairs, list(range(num_questions)), " is")
    return TaskItem(task="many_shot", context="\n" + "".join(order), questions=questions)
