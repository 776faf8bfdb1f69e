# SPDX-License-Identifier: Apache-2.0
"""The generated prose: no slot stays open, splits do not share names, the same seed gives the same text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.workload import prose
from ziggurat.workload.prose.expansion import polish


@pytest.mark.parametrize("split", ["train", "held_out"])
@given(seed=st.integers(0, 2**32))
def test_documents_are_finished_text(split: prose.Split, seed: int) -> None:
    text = prose.document(np.random.default_rng(seed), split)
    assert text == prose.document(np.random.default_rng(seed), split)
    assert not re.search(r"[{}]|>>|\|\|", text)
    assert text[0].isupper()
    assert text[-1] in '.!?"'
    assert not re.search(r"\ba [aeio]", text)


@pytest.mark.parametrize("split", ["train", "held_out"])
@given(seed=st.integers(0, 2**32))
def test_chats_have_both_sides(split: prose.Split, seed: int) -> None:
    exchanges = prose.chat(np.random.default_rng(seed), split)
    assert 1 <= len(exchanges) <= 6
    for exchange in exchanges:
        assert exchange.user
        assert exchange.assistant
        assert not re.search(r"[{}]|>>|\|\|", exchange.user + exchange.assistant)


def test_every_rule_can_be_expanded() -> None:
    for split in ("train", "held_out"):
        grammar = prose.grammar(split)
        for rule in grammar.rules:
            for seed in range(3):
                text = prose.Expansion(grammar, np.random.default_rng(seed)).text(rule)
                assert "{" not in text, (rule, text)


@pytest.mark.parametrize("kind", ["girl", "boy", "town"])
def test_held_out_names_never_occur_in_training_text(kind: str) -> None:
    held_out = set(prose.grammar("held_out").words[kind])
    assert not held_out & set(prose.grammar("train").words[kind])
    rng = np.random.default_rng(3)
    seen = set(re.findall(r"\w+", " ".join(prose.document(rng) for _ in range(300))))
    assert not held_out & seen


def test_the_reading_answers_stand_in_the_text() -> None:
    rng = np.random.default_rng(11)
    checked = 0
    for _ in range(400):
        for exchange in prose.chat(rng):
            place = re.search(r"Where is the (\w+)\?$", exchange.user)
            if place and len(exchange.user) > 40:
                assert exchange.assistant in exchange.user
                checked += 1
    assert checked > 5


def test_polish_mends_articles_and_capitals() -> None:
    assert (
        polish("a old owl saw  a bird. it flew.\nthen a apple fell")
        == "An old owl saw a bird. It flew.\nThen an apple fell"
    )
