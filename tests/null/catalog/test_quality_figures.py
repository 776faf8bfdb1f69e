# SPDX-License-Identifier: Apache-2.0
"""Figures of quality against scipy and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.catalog.quality.figures import TokenScores, agreement, paired_difference, task_figures

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def scores(logits: np.ndarray, tokens: np.ndarray, num_top: int) -> TokenScores:
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, :num_top]
    rows = np.arange(len(tokens))
    return TokenScores(
        logprobs=logprobs[rows, tokens], top_ids=order, top_logprobs=np.take_along_axis(logprobs, order, axis=1)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_divergence_is_the_exact_one_with_all_tokens_and_never_above_it(seed: int, num_top: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(5, 12)) * 2, rng.normal(size=(5, 12)) * 2
    tokens = rng.integers(0, 12, size=5)
    exact = scipy.stats.entropy(np.exp(p).T, np.exp(q).T).mean()
    found = agreement(scores(p, tokens, num_top), scores(q, tokens, num_top))["mean_kl_lower_bound"]
    assert -1e-12 <= found <= exact + 1e-9
    if num_top == 12:
        assert found == pytest.approx(exact, rel=1e-9)


def test_a_format_agrees_with_itself() -> None:
    rng = np.random.default_rng(0)
    same = scores(rng.normal(size=(50, 9)), rng.integers(0, 9, size=50), 4)
    found = agreement(same, same)
    assert found["top1_agreement"] == 1 and abs(found["mean_kl_lower_bound"]) < 1e-12
    assert found["top1_low"] == pytest.approx(50 / (50 + 1.959963984540054**2))
    assert same.perplexity == pytest.approx(math.exp(-same.logprobs.mean()))


@given(ANSWERS)
def test_the_paired_interval_holds_the_difference_and_turns_with_the_roles(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found, turned = paired_difference(first, second), paired_difference(second, first)
    assert found["difference_low"] <= found["difference"] <= found["difference_high"] or len(pairs) < 3
    assert found["difference_low"] == pytest.approx(-turned["difference_high"])
    assert task_figures(second)["accuracy"] - task_figures(first)["accuracy"] == pytest.approx(found["difference"])


def test_the_paired_interval_is_that_of_agresti_and_min() -> None:
    # 100 pairs, 12 lost and 5 gained: Wald on (12.5, 5.5) of 102.
    first = [True] * 12 + [False] * 5 + [True] * 83
    second = [False] * 12 + [True] * 5 + [True] * 83
    found = paired_difference(first, second)
    half = 1.959963984540054 * math.sqrt(18 - 49 / 102) / 102
    assert found["difference"] == pytest.approx(-0.07)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((-7 / 102 - half, -7 / 102 + half))
