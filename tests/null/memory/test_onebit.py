# SPDX-License-Identifier: Apache-2.0
"""The one-bit policies against their bounds, labels by hand, the learner against leaking, the combiner against harm."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.memory.eviction import LRU, CacheShape, Entry, Succinct
from ziggurat.memory.eviction.bits import (
    GivenBits,
    discard_bits,
    discard_errors,
    flipped,
    phase_bits,
    phase_errors,
    phase_starts,
)
from ziggurat.memory.eviction.flat import FlatCache, lfd_loads
from ziggurat.memory.eviction.learned import BitLearner
from ziggurat.memory.eviction.onebit import DrawnSet, FlushWhenAllZeros, Mark0, MarkAndPredict

traces = st.lists(st.integers(0, 8), max_size=60)
capacities = st.integers(1, 6)
shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])
SEEDS = 30


def shape(capacity: int, seed: int = 0) -> CacheShape:
    return CacheShape(capacity_blocks=capacity, seed=seed)


def flush_loads(trace: list[int], bits: list[int], k: int) -> int:
    """The paper's policy as it is told there: a full cache without a 1 is emptied at once. Of several 1s the first page."""
    held: dict[int, int] = {}
    loads = 0
    for page, bit in zip(trace, bits, strict=True):
        if page not in held:
            loads += 1
            if len(held) == k:
                ones = [other for other, said in held.items() if said]
                if ones:
                    del held[min(ones)]
                else:
                    held.clear()
        held[page] = bit
    return loads


@given(trace=traces, k=capacities)
def test_right_bits_are_the_optimum(trace: list[int], k: int) -> None:
    bits, best = discard_bits(trace, k), lfd_loads(trace, k)
    assert FlatCache(FlushWhenAllZeros(shape(k), GivenBits(bits)), k).run(trace) == best
    assert FlatCache(Mark0(shape(k, seed=3), GivenBits(bits)), k).run(trace) == best


@given(trace=traces, k=capacities, share=shares, seed=st.integers(0, 99))
@settings(max_examples=300)
def test_the_deterministic_bound_holds_in_every_run(trace: list[int], k: int, share: float, seed: int) -> None:
    """And so it does for the policy as published, of which ours is the lazy form."""
    right = discard_bits(trace, k)
    given_bits = flipped(right, share, Random(seed))
    errors = discard_errors(given_bits, right)
    bound = lfd_loads(trace, k) + (k - 1) * errors.eta0 + errors.eta1 + k
    assert FlatCache(FlushWhenAllZeros(shape(k), GivenBits(given_bits)), k).run(trace) <= bound
    assert flush_loads(trace, given_bits, k) <= bound


@given(trace=traces, k=capacities, share=shares, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_the_randomised_bounds_hold_in_the_mean(trace: list[int], k: int, share: float, seed: int) -> None:
    best, harmonic = lfd_loads(trace, k), sum(1 / number for number in range(1, k + 1))
    right, phases = discard_bits(trace, k), phase_bits(trace, k)
    bits, phase = flipped(right, share, Random(seed)), flipped(phases, share, Random(seed))
    discard, predict = discard_errors(bits, right), phase_errors(phase, phases, trace, k)
    bounds = (
        best + 2 * harmonic * discard.eta0 + discard.eta1 + k,
        2 * best + harmonic * predict.eta0 + predict.eta1 + k,
    )
    for policy, given_bits, bound in zip((Mark0, MarkAndPredict), (bits, phase), bounds, strict=True):
        loads = [FlatCache(policy(shape(k, seed), GivenBits(given_bits)), k).run(trace) for seed in range(SEEDS)]
        assert statistics.fmean(loads) <= bound + 3 * statistics.pstdev(loads) / math.sqrt(SEEDS)


def test_all_ones_make_mark0_load_what_the_paper_says_and_the_combiner_does_not() -> None:
    """Nine pages round and round and one of them between all others, all bits 1: following them costs, being beside LRU does not."""
    trace = [page for index in range(400) for page in (0, 1 + index % 3)]
    ones = [1] * len(trace)
    k = 4
    assert FlatCache(LRU(shape(k)), k).run(trace) == 4
    assert FlatCache(Succinct(shape(k), GivenBits(ones)), k).run(trace) == 4
    long = [page for index in range(400) for page in (0, 1 + index % 30)]
    lru = FlatCache(LRU(shape(k)), k).run(long)
    assert FlatCache(Succinct(shape(k), GivenBits([1] * len(long))), k).run(long) <= 1.02 * lru + 2 * k


@given(trace=st.lists(st.integers(0, 12), max_size=150), k=capacities, share=shares)
@settings(max_examples=60)
def test_the_combiner_is_near_the_better_one(trace: list[int], k: int, share: float) -> None:
    bits = flipped(discard_bits(trace, k), share, Random(5))
    cache = FlatCache(Succinct(shape(k), GivenBits(bits)), k)
    loads = cache.run(trace)
    policy = cache.policy
    assert isinstance(policy, Succinct)
    better = min(shadow.num_loads for shadow in policy._shadows)
    # Each stretch may cost a cache full more than what it follows, and draws of MARK0 differ between the cache and its shadow.
    assert loads <= 1.02 * better + (3 + policy.num_switches) * k


def test_labels_by_hand() -> None:
    """k = 2, pages 1 2 3 2 1: at the load of 3 Belady evicts 1 (next use 5th), at the last load of 1 the page 2 (it never comes)."""
    trace = [1, 2, 3, 2, 1]
    assert discard_bits(trace, 2) == [1, 0, 0, 1, 0]
    assert phase_starts([1, 2, 1, 3, 3, 2, 4], 2) == [0, 3, 6]
    assert phase_bits([1, 2, 1, 3, 3, 2, 4], 2) == [1, 0, 1, 1, 1, 1, 1]
    assert phase_errors([0, 0, 0, 1, 1, 0, 1], [1, 0, 1, 1, 1, 1, 1], [1, 2, 1, 3, 3, 2, 4], 2).eta0 == 2


@given(trace=traces, k=capacities)
def test_labels_do_not_depend_on_the_names(trace: list[int], k: int) -> None:
    """With the same order of ties."""
    assert discard_bits(trace, k) == discard_bits([3 * page + 5 for page in trace], k)
    assert phase_bits(trace, k) == phase_bits([40 - page for page in trace], k)


def test_a_missing_bit_is_0_and_counted() -> None:
    bits = GivenBits([1, None])
    assert [bits.bit(Entry()) for _ in range(4)] == [1, 0, 0, 0] and bits.num_missing == 3


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ConfigError, match="a probability between 0 and 1, got 1"):
        BitLearner(shape(4), threshold=1.0)


def test_the_learner_knows_only_what_is_past() -> None:
    """What comes later changes no bit that was said; and it does learn: pages that come once are told from those that stay."""
    dice = Random(1)
    start = [dice.randrange(8) if dice.random() < 0.5 else 100 + index for index in range(6000)]
    said = []
    for end in ([0] * 3000, list(range(9000, 12000))):
        learner = BitLearner(shape(16))
        said.append([learner.bit(Entry(key=page)) for page in start + end][:6000])
    assert said[0] == said[1] and learner.num_trained > 0
    late = list(zip(start, said[0], strict=True))[3000:]
    assert statistics.fmean(bit for page, bit in late if page >= 100) > 0.95
    assert statistics.fmean(bit for page, bit in late if page < 8) < 0.05
    loads = FlatCache(Succinct(shape(16)), 16).run(start)
    lru, ours, best = FlatCache(LRU(shape(16)), 16).run(start), loads, lfd_loads(start, 16)
    assert lru - ours > 0.5 * (lru - best) > 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_a_drawn_set_is_a_set(changes: list[tuple[bool, int]]) -> None:
    ours, model = DrawnSet(), set[int]()
    for is_in, member in changes:
        (ours.add if is_in else ours.discard)(member)
        (model.add if is_in else model.discard)(member)
        assert len(ours) == len(model) and all((number in ours) == (number in model) for number in range(6))
        assert not model or ours.draw(Random(member)) in model
