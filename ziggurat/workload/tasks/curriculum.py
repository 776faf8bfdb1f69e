# SPDX-License-Identifier: Apache-2.0
"""Dense start-up tasks: sequences in which many positions can be predicted by looking back, and only those count.

Each generator returns `(ids, is_answer)`: int64 ids [length] and a bool mask [length] that marks the predictable ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ziggurat.workload.tasks.layout import TokenLayout

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def dense_copy(rng: np.random.Generator, layout: TokenLayout, length_tokens: int) -> tuple[Ids, Mask]:
    """Random tokens in which earlier segments return at random distances.

    A fixed distance would teach position instead of content. The first two tokens of a returned segment are not
    counted: before them nothing says which segment it will be.
    """
    ids = rng.choice(np.asarray(layout.fill, dtype=np.int64), size=length_tokens)
    is_answer = np.zeros(length_tokens, dtype=bool)
    ids[0] = layout.begin
    longest = max(6, min(64, length_tokens // 3))
    position = int(rng.integers(min(5, length_tokens), max(6, length_tokens // 2)))
    while position < length_tokens:
        size = int(rng.integers(4, longest + 1))
        source = int(rng.integers(1, max(2, position - size)))
        size = min(size, position - source, length_tokens - position)
        ids[position : position + size] = ids[source : source + size]
        is_answer[position + 2 : position + size] = True
        position += size + int(rng.integers(0, max(2, longest // 2)))
    return ids, is_answer


def dense_lookup(
    rng: np.random.Generator, layout: TokenLayout, length_tokens: int, key_tokens: int, value_tokens: int
) -> tuple[Ids, Mask]:
    """Lines ` key: value` of which some return; the values of those that return count.

    Half of the sequences interleave first and second mentions, half fill the context first and ask at the end. One key
    in four borrows a word from another key, so that both words of a key have to be read.
    """
    line = key_tokens + value_tokens + 2
    num_lines = (length_tokens - 2) // line + 1
    words = np.asarray(layout.words, dtype=np.int64)
    lines = np.full((num_lines, line), layout.newline, dtype=np.int64)
    lines[:, key_tokens] = layout.colon
    keys: list[tuple[int, ...]] = []
    values: list[Ids] = []
    seen: set[tuple[int, ...]] = set()
    is_filled_first = bool(rng.random() < 0.5)
    first_question = int(num_lines * rng.uniform(0.5, 0.8))
    is_repeat = np.zeros(num_lines, dtype=bool)
    for index in range(num_lines):
        wants_repeat = index >= first_question if is_filled_first else rng.random() < 0.5
        if keys and (wants_repeat or len(seen) >= 0.5 * len(words) ** key_tokens):
            chosen = int(rng.integers(len(keys)))
            is_repeat[index] = True
        else:
            chosen = len(keys)
            keys.append(_fresh_key(rng, words, keys, seen, key_tokens))
            seen.add(keys[-1])
            values.append(rng.choice(words, size=value_tokens))
        lines[index, :key_tokens] = keys[chosen]
        lines[index, key_tokens + 1 : -1] = values[chosen]
    ids = np.concatenate([[layout.begin, layout.newline], lines.reshape(-1)])[:length_tokens]
    is_value = np.zeros((num_lines, line), dtype=bool)
    is_value[is_repeat, key_tokens + 1 : -1] = True
    is_answer = np.concatenate([[False, False], is_value.reshape(-1)])[:length_tokens]
    return ids, is_answer


def _fresh_key(
    rng: np.random.Generator, words: Ids, keys: list[tuple[int, ...]], seen: set[tuple[int, ...]], key_tokens: int
) -> tuple[int, ...]:
    while True:
        key = [int(word) for word in rng.choice(words, size=key_tokens)]
        if key_tokens > 1 and keys and rng.random() < 0.25:
            slot = int(rng.integers(key_tokens))
            key[slot] = keys[int(rng.integers(len(keys)))][slot]
        if tuple(key) not in seen:
            return tuple(key)
