# SPDX-License-Identifier: Apache-2.0
"""The start-up tasks: what counts as predictable really is, and distances vary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.workload.tasks.curriculum import dense_copy, dense_lookup
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS, VOCABULARY_SIZE, byte_alphabet, byte_token, plain_layout

LAYOUT = plain_layout()


@given(seed=st.integers(0, 2**32), length=st.integers(16, 300))
def test_copied_tokens_repeat_an_earlier_run(seed: int, length: int) -> None:
    ids, is_answer = dense_copy(np.random.default_rng(seed), LAYOUT, length)
    assert ids.shape == is_answer.shape == (length,)
    text = ids.tolist()
    for position in np.flatnonzero(is_answer).tolist():
        triple = text[position - 2 : position + 1]
        assert any(text[i : i + 3] == triple for i in range(position - 2)), position


def test_copies_return_at_many_distances() -> None:
    distances = set()
    for seed in range(50):
        ids, is_answer = dense_copy(np.random.default_rng(seed), LAYOUT, 64)
        text = ids.tolist()
        for position in np.flatnonzero(is_answer).tolist():
            triple = text[position - 2 : position + 1]
            distances.add(position - 2 - max(i for i in range(position - 2) if text[i : i + 3] == triple))
    assert len(distances) > 20


@pytest.mark.parametrize("key_tokens", [1, 2])
@pytest.mark.parametrize("value_tokens", [1, 2])
@given(seed=st.integers(0, 2**32), length=st.integers(24, 300))
def test_looked_up_values_were_given_before(seed: int, length: int, key_tokens: int, value_tokens: int) -> None:
    ids, is_answer = dense_lookup(np.random.default_rng(seed), LAYOUT, length, key_tokens, value_tokens)
    assert ids.shape == is_answer.shape == (length,)
    line = key_tokens + value_tokens + 2
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for start in range(2, length - line + 1, line):
        key = tuple(ids[start : start + key_tokens].tolist())
        value = tuple(ids[start + key_tokens + 1 : start + line - 1].tolist())
        counted = is_answer[start : start + line]
        assert bool(counted.any()) == (key in known)
        assert known.setdefault(key, value) == value
        assert not counted[: key_tokens + 1].any()
        assert not counted[-1]


def test_byte_tokens_follow_the_special_ones() -> None:
    assert sorted(byte_alphabet()) == list(range(256))
    assert byte_token("!") == len(SPECIAL_TOKENS)
    assert max(LAYOUT.words) == VOCABULARY_SIZE - 1
    assert byte_token("\n") not in LAYOUT.words
