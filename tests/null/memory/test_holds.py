# SPDX-License-Identifier: Apache-2.0
"""Beginnings that are held for requests to come, and what is forgotten when nobody will ask again."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup

BLOCK_SIZE = 2
FULL, WINDOW = None, 3


def make_store(windows: list[int | None], num_blocks: int = 12) -> PagedKVStore:
    count = len(windows)
    groups = [
        KVGroup(index=index, layers=(index,), num_kv_heads=1, head_dim=4, window=window)
        for index, window in enumerate(windows)
    ]
    return PagedKVStore(groups, [num_blocks] * count, BLOCK_SIZE, lease=None, block_bytes=[64] * count)


def compute(store: PagedKVStore, seq_id: str, tokens: list[int]) -> int:
    """Run a whole sequence but its end; returns what was found cached."""
    num_cached = store.open(seq_id, tokens)
    rest = tokens[num_cached:]
    store.reserve(seq_id, len(rest))
    store.commit(seq_id, rest)
    return num_cached


def test_a_held_beginning_outlives_its_sequence_and_everything_else_goes() -> None:
    store = make_store([FULL])
    compute(store, "a", [1, 2, 3, 4, 5, 6, 7])
    assert store.hold("beginning", [1, 2, 3, 4, 9]) == 4
    assert store.counters.query_tokens == 7
    store.release("a")
    store.forget([1, 2, 3, 4, 5, 6, 7])
    assert (store.stats()[0].used, store.stats()[0].cached) == (2, 0)
    assert store.match([1, 2, 3, 4, 8]) == 4
    store.release("beginning")
    store.forget([1, 2, 3, 4])
    assert store.stats()[0].free == store.stats()[0].total
    store.audit()


@given(
    st.sampled_from([[FULL], [FULL, WINDOW], [WINDOW]]),
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_forgetting_takes_nothing_that_somebody_holds(
    windows: list[int | None], prompts: list[list[int]], seed: int
) -> None:
    rng = random.Random(seed)
    store = make_store(windows, 40)
    open_ones: list[tuple[str, list[int]]] = []
    for number, prompt in enumerate(prompts):
        compute(store, str(number), prompt)
        open_ones.append((str(number), prompt))
        if rng.random() < 0.5:
            name, _ = open_ones.pop(rng.randrange(len(open_ones)))
            store.release(name)
        views = {name: store.view(name) for name, _ in open_ones}
        store.forget(rng.choice(prompts))
        store.audit()
        assert {name: store.view(name) for name, _ in open_ones} == views
    for name, _ in open_ones:
        store.release(name)
    for prompt in prompts:
        store.forget(prompt)
    for prompt in sorted(prompts, key=len, reverse=True):
        store.forget(prompt)
    store.audit()
    assert all(group.free == group.total for group in store.stats())
