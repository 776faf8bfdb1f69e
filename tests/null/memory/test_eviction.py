# SPDX-License-Identifier: Apache-2.0
"""The contract of every registered eviction policy, and each one's own rule against a model of lists and loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.memory.eviction import EVICTION_POLICIES, LRU, ORACLES, CacheShape, Entry, EvictionPolicy, Future
from ziggurat.memory.eviction.flat import FlatCache, lfd_loads

SHAPE = CacheShape(capacity_blocks=5)
FUTURE = Future.of([[key] for key in (3, 1, 4, 1, 5, 2, 6, 5, 3, 5)])
FACTORIES: dict[str, Callable[[CacheShape], EvictionPolicy]] = {
    **{name: EVICTION_POLICIES.get(name) for name in EVICTION_POLICIES},
    **{name: partial(ORACLES.get(name), future=FUTURE) for name in ORACLES},
}
blocks = st.integers(0, 7)
kinds = st.sampled_from(["access", "release", "offer", "withdraw", "remove", "evict"])
events = st.lists(st.tuples(kinds, blocks), max_size=60)
pages = st.lists(st.integers(0, 9), max_size=80)
capacities = st.integers(1, 6)


@pytest.mark.parametrize("name", FACTORIES)
@given(events=events)
def test_every_policy_chooses_among_what_is_offered(name: str, events: list[tuple[str, int]]) -> None:
    """Same events, same choice; asked again, the same; nothing offered, nothing chosen; everything offered can be had."""
    policy, twin = FACTORIES[name](SHAPE), FACTORIES[name](SHAPE)
    known: set[int] = set()
    offered: set[int] = set()
    for kind, block in events:
        for each in (policy, twin):
            if block not in known:
                each.on_insert(block, Entry(key=block % 5, cost=1.0 + block, depth=block % 3))
            if kind == "access":
                each.on_access(block)
            elif kind == "release":
                each.on_release(block)
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


@pytest.mark.parametrize("name", FACTORIES)
@given(trace=pages, capacity=capacities)
@settings(max_examples=30)
def test_no_policy_beats_belady_and_none_overfills(name: str, trace: list[int], capacity: int) -> None:
    cache_ = FlatCache(FACTORIES[name](CacheShape(capacity_blocks=capacity)), capacity)
    for page in trace:
        cache_.request(page)
        assert page in cache_.pages and len(cache_.pages) <= capacity
    assert cache_.num_loads >= lfd_loads(trace, capacity) >= len(set(trace))


@pytest.mark.parametrize("name", EVICTION_POLICIES.names())
@given(trace=pages, capacity=capacities)
@settings(max_examples=20)
def test_the_names_of_pages_do_not_matter(name: str, trace: list[int], capacity: int) -> None:
    shape = CacheShape(capacity_blocks=capacity)
    loads = [
        FlatCache(FACTORIES[name](shape), capacity).run([(factor * page + 1) % 11 for page in trace])
        for factor in (1, 7)
    ]
    assert loads[0] == loads[1]


@given(trace=st.lists(st.integers(0, 5), max_size=12), capacity=st.integers(1, 4))
def test_belady_is_the_optimum(trace: list[int], capacity: int) -> None:
    """Every eviction that could have been chosen, tried."""

    @cache
    def fewest(index: int, held: frozenset[int]) -> int:
        if index == len(trace):
            return 0
        page = trace[index]
        if page in held:
            return fewest(index + 1, held)
        if len(held) < capacity:
            return 1 + fewest(index + 1, held | {page})
        return 1 + min(fewest(index + 1, held - {out} | {page}) for out in held)

    assert lfd_loads(trace, capacity) == fewest(0, frozenset())


# ---- each rule, told with lists: (state, page, capacity) -> the page that leaves


def fifo_victims(trace: list[int], capacity: int) -> list[int | None]:
    queue: list[int] = []
    victims: list[int | None] = []
    for page in trace:
        victims.append(None)
        if page not in queue:
            if len(queue) == capacity:
                victims[-1] = queue.pop(0)
            queue.append(page)
    return victims


def lru_victims(trace: list[int], capacity: int) -> list[int | None]:
    stack: list[int] = []
    victims: list[int | None] = []
    for page in trace:
        victims.append(None)
        if page in stack:
            stack.remove(page)
        elif len(stack) == capacity:
            victims[-1] = stack.pop(0)
        stack.append(page)
    return victims


def lfu_victims(trace: list[int], capacity: int) -> list[int | None]:
    held: dict[int, tuple[int, int]] = {}
    victims: list[int | None] = []
    for now, page in enumerate(trace):
        victims.append(None)
        if page not in held and len(held) == capacity:
            victims[-1] = min(held, key=lambda other: held[other])
            del held[victims[-1]]
        held[page] = (held.get(page, (0, 0))[0] + 1, now)
    return victims


def gdsf_victims(trace: list[int], capacity: int) -> list[int | None]:
    """Unit costs: uses plus the value of whoever left last."""
    held: dict[int, tuple[int, float, int]] = {}
    victims: list[int | None] = []
    age = 0.0
    for now, page in enumerate(trace):
        victims.append(None)
        if page not in held and len(held) == capacity:
            victims[-1] = min(held, key=lambda other: held[other][1:])
            age = held.pop(victims[-1])[1]
        uses = held[page][0] + 1 if page in held else 1
        held[page] = (uses, age + uses, now)
    return victims


def sieve_victims(trace: list[int], capacity: int) -> list[int | None]:
    """The publication's pseudo-code: a queue from new (index 0) to old, the hand an entry of it."""
    queue: list[int] = []
    visited: set[int] = set()
    hand: int | None = None
    victims: list[int | None] = []
    for page in trace:
        victims.append(None)
        if page in queue:
            visited.add(page)
            continue
        if len(queue) == capacity:
            place = len(queue) - 1 if hand is None else queue.index(hand)
            while queue[place] in visited:
                visited.discard(queue[place])
                place = place - 1 if place else len(queue) - 1
            hand = queue[place - 1] if place else None
            victims[-1] = queue.pop(place)
        queue.insert(0, page)
    return victims


def arc_victims(trace: list[int], capacity: int) -> list[int | None]:
    """The publication's figure 4; lists from old to new."""
    t1: list[int] = []
    t2: list[int] = []
    b1: list[int] = []
    b2: list[int] = []
    target = 0.0
    victims: list[int | None] = []

    def replace(is_from_b2: bool) -> int:
        if t1 and ((is_from_b2 and len(t1) == target) or len(t1) > target):
            b1.append(t1.pop(0))
            return b1[-1]
        b2.append(t2.pop(0))
        return b2[-1]

    for page in trace:
        victims.append(None)
        if page in t1 or page in t2:
            (t1 if page in t1 else t2).remove(page)
            t2.append(page)
        elif page in b1 or page in b2:
            is_from_b2 = page in b2
            if is_from_b2:
                target = max(0.0, target - max(1.0, len(b1) / len(b2)))
            else:
                target = min(capacity, target + max(1.0, len(b2) / len(b1)))
            if len(t1) + len(t2) == capacity:
                victims[-1] = replace(is_from_b2)
            (b2 if is_from_b2 else b1).remove(page)
            t2.append(page)
        else:
            if len(t1) + len(b1) == capacity:
                if len(t1) < capacity:
                    b1.pop(0)
                    victims[-1] = replace(False)
                else:
                    victims[-1] = t1.pop(0)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= capacity:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * capacity:
                    b2.pop(0)
                victims[-1] = replace(False)
            t1.append(page)
    return victims


MODELS = {
    "arc": arc_victims,
    "cost-aware": gdsf_victims,
    "fifo": fifo_victims,
    "lfu": lfu_victims,
    "lru": lru_victims,
    "sieve": sieve_victims,
}


@pytest.mark.parametrize("name", MODELS)
@given(trace=pages, capacity=capacities)
@settings(max_examples=200)
def test_each_is_its_model(name: str, trace: list[int], capacity: int) -> None:
    cache_ = FlatCache(FACTORIES[name](CacheShape(capacity_blocks=capacity)), capacity)
    assert [cache_.request(page) for page in trace] == MODELS[name](trace, capacity)


@given(uses=st.lists(blocks, min_size=1, max_size=300), late=st.lists(blocks, max_size=8, unique=True))
def test_lru_goes_by_the_last_use_whenever_something_was_offered(uses: list[int], late: list[int]) -> None:
    policy = LRU(SHAPE)
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


def test_the_costly_stay_until_the_age_has_caught_up() -> None:
    """Twice the work is worth as much as twice the uses; what is not used any more leaves when cheap ones have come and gone."""
    policy = EVICTION_POLICIES.get("cost-aware")(SHAPE)
    for block, cost in enumerate((1.0, 2.0, 4.5)):
        policy.on_insert(block, Entry(cost=cost))
        policy.on_evictable(block, True)
    policy.on_access(0)
    policy.on_access(0)
    order = []
    for block in range(3, 9):
        victim = policy.victim()
        assert victim is not None
        order.append(victim)
        policy.on_remove(victim)
        policy.on_insert(block, Entry(cost=1.0))
        policy.on_evictable(block, True)
    assert order == [1, 0, 3, 4, 5, 2]  # by hand: values 2, 3, 3, 4, 4, 4.5


def test_the_heap_does_not_grow_with_the_number_of_events() -> None:
    policy = LRU(SHAPE)
    for block in range(10):
        policy.on_insert(block)
        policy.on_evictable(block, True)
    for event in range(5000):
        policy.on_access(event % 10)
    assert len(policy._ranked._heap) <= 2 * 10 + 65
    assert policy.victim() == 0


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown eviction policy 'lur', did you mean 'lru'"):
        EVICTION_POLICIES.get("lur")
    with pytest.raises(ConfigError, match="at least one page, got 0"):
        FlatCache(LRU(SHAPE), 0)
