# SPDX-License-Identifier: Apache-2.0
"""The contract of every registered eviction policy, and LRU's own rule against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.memory.eviction import EVICTION_POLICIES, LRU

blocks = st.integers(0, 7)
events = st.lists(st.tuples(st.sampled_from(["access", "offer", "withdraw", "remove", "evict"]), blocks), max_size=60)


@pytest.mark.parametrize("name", EVICTION_POLICIES.names())
@given(events=events)
def test_every_policy_chooses_among_what_is_offered(name: str, events: list[tuple[str, int]]) -> None:
    """Same events, same choice; asking changes nothing; nothing offered, nothing chosen; everything offered can be had."""
    policy, twin = EVICTION_POLICIES.get(name)(), EVICTION_POLICIES.get(name)()
    known: set[int] = set()
    offered: set[int] = set()
    for kind, block in events:
        for each in (policy, twin):
            if block not in known:
                each.on_insert(block)
            if kind == "access":
                each.on_access(block)
            elif kind in ("offer", "withdraw"):
                each.on_evictable(block, kind == "offer")
            elif kind == "remove":
                each.on_remove(block)
        known.add(block)
        if kind == "offer":
            offered.add(block)
        elif kind in ("withdraw", "remove"):
            offered.discard(block)
        if kind == "remove":
            known.discard(block)
        victim = policy.victim()
        assert victim == policy.victim() == twin.victim()
        assert victim in offered if offered else victim is None
        if kind == "evict" and victim is not None:
            policy.on_remove(victim)
            twin.on_remove(victim)
            offered.discard(victim)
            known.discard(victim)
    for _ in range(len(offered)):
        victim = policy.victim()
        assert victim in offered
        offered.discard(victim)
        policy.on_remove(victim)
    assert policy.victim() is None


@given(uses=st.lists(blocks, min_size=1, max_size=300), late=st.lists(blocks, max_size=8, unique=True))
def test_lru_goes_by_the_last_use_whenever_something_was_offered(uses: list[int], late: list[int]) -> None:
    policy = LRU()
    known = list(dict.fromkeys(uses))
    for block in known:
        policy.on_insert(block)
        policy.on_evictable(block, block not in late)
    for block in uses:
        policy.on_access(block)
    for block in known:
        policy.on_evictable(block, True)
    order = []
    while (victim := policy.victim()) is not None:
        order.append(victim)
        policy.on_remove(victim)
    assert order == sorted(known, key=lambda block: max(index for index, used in enumerate(uses) if used == block))


def test_lru_does_not_grow_with_the_number_of_events() -> None:
    policy = LRU()
    for block in range(10):
        policy.on_insert(block)
        policy.on_evictable(block, True)
    for event in range(5000):
        policy.on_access(event % 10)
    assert len(policy._heap) <= 2 * 10 + 65
    assert policy.victim() == 0


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown eviction policy 'lur', did you mean 'lru'"):
        EVICTION_POLICIES.get("lur")
