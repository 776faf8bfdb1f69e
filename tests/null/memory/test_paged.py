# SPDX-License-Identifier: Apache-2.0
"""The paged store, case by case: what a reader would ask of it."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.null.memory.model import Memory, make_ledger, make_store
from ziggurat.memory.kv import DROPPED, CopyOp, KVStore, OutOfBlocks, WindowPassed
from ziggurat.memory.paged import PagedKVStore

TEXT = list(range(100, 200))


def compute(store: PagedKVStore, seq_id: str, tokens: list[int], *, salt: str = "") -> int:
    """Open, compute everything that is not cached, and leave the sequence open. Returns the cached tokens."""
    cached = store.open(seq_id, tokens, salt=salt)
    store.reserve(seq_id, len(tokens) - cached)
    store.commit(seq_id, tokens[cached:])
    store.audit()
    return cached


def test_it_is_a_kv_store() -> None:
    store: KVStore = make_store([None], [4], 4)
    assert store.share_quantum_tokens == store.block_size == 4
    assert store.total_blocks() == store.free_blocks() == (4,)


def test_the_last_token_is_never_cached() -> None:
    store = make_store([None], [16], 4)
    compute(store, "a", TEXT[:12])
    assert store.match(TEXT[:12]) == 8
    assert store.match(TEXT[:13]) == 12
    assert store.match(TEXT[:4]) == 0
    assert store.match([]) == 0
    assert store.match(TEXT[:13], salt="tenant") == 0
    assert store.open("b", TEXT[:13], max_cached=7) == 4


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    store = make_store([None], [16], 4)
    compute(store, "a", TEXT[:10])
    assert compute(store, "b", TEXT[:20]) == 8
    assert store.view("b").tables[0][:2] == store.view("a").tables[0][:2]
    assert store.held_blocks("a") == (1,)
    assert store.held_blocks("b") == (3,)
    assert store.counters.query_tokens == 30
    assert store.counters.hit_tokens == 8


def test_equal_blocks_computed_side_by_side_become_one() -> None:
    """Both compute; the second goes on with the first one's block, so its own continuation is reusable too."""
    store = make_store([None], [16], 4)
    for name in ("a", "b"):
        store.open(name, TEXT[:9])
        store.reserve(name, 8)
    assert store.free_blocks() == (12,)
    store.commit("a", TEXT[:8])
    store.commit("b", TEXT[:8])
    assert store.free_blocks() == (14,)
    assert store.view("a").tables == store.view("b").tables
    store.reserve("b", 4)
    store.commit("b", [7, 7, 7, 7])
    store.release("a")
    store.release("b")
    assert store.match([*TEXT[:8], 7, 7, 7, 7, 1]) == 12
    store.audit()


def test_forks_copy_when_they_write_and_the_last_one_writes_in_place() -> None:
    store = make_store([None], [16], 4)
    compute(store, "a", TEXT[:6])
    store.fork("a", "b")
    store.fork("a", "c")
    assert store.view("a").tables == store.view("b").tables == store.view("c").tables
    full, partial = store.view("a").tables[0]
    assert store.needed_blocks("b", 2) == (1,)
    (copy,) = store.reserve("b", 2)
    assert copy == CopyOp(group=0, source=partial, destination=store.view("b").tables[0][1])
    store.release("c")
    assert store.needed_blocks("a", 3) == (1,)
    assert store.reserve("a", 3) == []
    assert store.view("a").tables[0][:2] == (full, partial)
    store.audit()


def test_a_window_gives_back_what_left_it() -> None:
    store = make_store([None, 6], [16, 16], 4)
    compute(store, "a", TEXT[:13])
    full, window = store.view("a").tables
    assert len(full) == 4
    # Token 13 sees [8, 13].
    assert window[:2] == (DROPPED, DROPPED)
    assert DROPPED not in window[2:]
    assert store.stats()[1].used == 2
    assert store.stats()[1].cached == 2
    assert store.held_blocks("a") == (4, 2)


def test_a_cached_prefix_needs_the_last_window_of_every_window_group() -> None:
    """16 tokens cached; a hit of L tokens needs the window group's blocks over [L - 5, L)."""
    store = make_store([None, 6], [16, 16], 4)
    compute(store, "a", TEXT[:17])
    store.release("a")
    assert store.match(TEXT[:17]) == 16
    assert compute(store, "b", TEXT[:17]) == 16
    assert store.view("b").tables[1][:2] == (DROPPED, DROPPED)


def test_window_blocks_may_leave_alone_and_shorten_the_hit() -> None:
    store = make_store([None, 5], [16, 4], 4)
    compute(store, "a", TEXT[:9])
    store.release("a")
    # The window group's four blocks: the first, the second (both full, cached) and the tail's, which was freed.
    assert [stats.cached for stats in store.stats()] == [2, 2]
    store.open("x", [1] * 11)
    store.reserve("x", 9)
    # Three blocks: two free ones and the least recently used cached one, which is the one that left the window first.
    assert store.stats()[1].cached == 1
    assert store.match(TEXT[:9]) == 8
    store.release("x")
    store.open("y", [1] * 17)
    store.reserve("y", 16)
    assert store.stats()[1].cached == 0
    assert store.match(TEXT[:9]) == 0
    store.release("y")
    assert store.open("z", TEXT[:9]) == 0
    assert store.last_miss_reason == "evicted"
    store.audit()


def test_shared_beginnings_survive_longest() -> None:
    store = make_store([None], [6], 4)
    compute(store, "a", TEXT[:16])
    store.release("a")
    compute(store, "b", [1] * 16)
    # Four blocks for b: the two free ones, and a's last two.
    assert store.match(TEXT[:17]) == 8
    assert store.counters.evicted_blocks == 2


def test_least_recently_used_first_and_a_hit_counts_as_use() -> None:
    store = make_store([None], [6], 4)
    for name, token in (("a", 1), ("b", 2), ("c", 3)):
        compute(store, name, [token] * 8)
        store.release(name)
    compute(store, "a2", [1] * 9)
    store.release("a2")
    compute(store, "d", [4] * 8)
    # a2 needed a third block and got b's last; d took that one again (it was not full), and b's first.
    assert [store.match([token] * 9) for token in (1, 2, 3)] == [8, 0, 8]


@pytest.mark.parametrize(
    ("tokens", "salt", "reason"),
    [
        (TEXT[:4], "", "prompt shorter than one block"),
        ([1, 2, 3, 4, 5], "", "no block of this prompt is cached (first 4 tokens differ)"),
        (TEXT[:9], "tenant", "other salt"),
        ([*TEXT[:4], 1, 2, 3, 4, 5], "", "nothing cached continues this prompt after 4 tokens"),
        (TEXT[:12], "", None),
        (TEXT[:9], "", None),
    ],
)
def test_a_miss_is_explained(tokens: list[int], salt: str, reason: str | None) -> None:
    store = make_store([None], [16], 4)
    compute(store, "a", TEXT[:8])
    store.release("a")
    store.open("b", tokens, salt=salt)
    assert store.last_miss_reason == reason


def test_misses_by_choice_and_by_eviction_are_explained() -> None:
    store = make_store([None], [4], 4, enable_prefix_caching=False)
    compute(store, "a", TEXT[:8])
    store.release("a")
    assert store.open("b", TEXT[:8]) == 0
    assert store.last_miss_reason == "caching off"
    assert store.stats()[0].cached == 0

    store = make_store([None], [4], 4)
    compute(store, "a", TEXT[:16])
    store.release("a")
    assert store.open("b", TEXT[:17], max_cached=3) == 0
    assert store.last_miss_reason == "limited by the caller"
    store.release("b")
    compute(store, "c", [1] * 12)
    store.release("c")
    assert store.open("d", TEXT[:17]) == 4
    assert store.last_miss_reason == "evicted"
    store.release("d")
    store.drop_cache()
    store.open("e", TEXT[:17])
    assert store.last_miss_reason == "evicted"


def test_too_much_is_refused_and_changes_nothing() -> None:
    store = make_store([None, 8], [4, 8], 4)
    compute(store, "a", TEXT[:9])
    before = (store.view("a"), store.stats())
    with pytest.raises(OutOfBlocks, match=r"needs \(2, 2\) blocks, \(1, 5\) can be had"):
        store.reserve("a", 8)
    assert (store.view("a"), store.stats()) == before
    store.reserve("a", 7)
    store.audit()


def test_truncate_gives_back_reserved_space_and_forgets_computed_tokens() -> None:
    store = make_store([None], [16], 4)
    compute(store, "a", TEXT[:6])
    store.reserve("a", 9)
    assert store.view("a").num_tokens == 15
    store.truncate("a", 8)
    assert store.view("a").num_tokens == 8
    assert store.held_blocks("a") == (2,)
    store.truncate("a", 3)
    assert store.view("a").num_tokens == 3
    # The first block is in the cache as TEXT[:4]; writing another fourth token must not change that.
    assert store.reserve("a", 1) == []
    store.commit("a", [9])
    store.release("a")
    assert store.match(TEXT[:8]) == 0
    assert store.match([*TEXT[:3], 9, 9]) == 4
    store.audit()


def test_truncating_a_shared_block_copies_it() -> None:
    memory = Memory(make_store([None], [16], 4))
    for name in ("a", "b"):
        cached = memory.open(name, TEXT[:9], "")
        memory.reserve(name, 9 - cached)
        memory.commit(name, TEXT[cached:9])
    memory.truncate("b", 6)
    assert memory.store.needed_blocks("b", 1) == (1,)
    assert len(memory.reserve("b", 1)) == 1
    memory.commit("b", [5])
    memory.check()
    memory.store.audit()


def test_truncate_refuses_to_go_back_behind_a_window() -> None:
    store = make_store([6], [16], 4)
    compute(store, "a", TEXT[:16])
    before = (store.view("a"), store.stats())
    with pytest.raises(WindowPassed):
        store.truncate("a", 10)
    assert (store.view("a"), store.stats()) == before
    store.truncate("a", 14)
    store.truncate("a", 0)
    assert store.stats()[0].used == 0
    compute(store, "b", [3] * 16)
    store.audit()


def test_clear_forgets_everything() -> None:
    ledger, pool = make_ledger([None, 5], [8, 8])
    store = make_store([None, 5], [8, 8], 4, lease=pool)
    compute(store, "a", TEXT[:20])
    store.fork("a", "b")
    store.clear()
    assert store.free_blocks() == (8, 8)
    assert [stats.free for stats in store.stats()] == [8, 8]
    assert store.counters.query_tokens == 0
    assert store.open("a", TEXT[:20]) == 0
    assert store.last_miss_reason == "no block of this prompt is cached (first 4 tokens differ)"
    store.close()
    pool.release()
    assert ledger.rows() == []


def test_leases_show_who_holds_what() -> None:
    """One block of the only group is 10 bytes."""
    ledger, pool = make_ledger([None], [16])
    store = make_store([None], [16], 4, lease=pool)

    def held() -> dict[str, int]:
        ledger.audit()
        return {row.owner: row.num_bytes for row in ledger.rows() if row.depth == 1}

    compute(store, "a", TEXT[:10])
    assert held() == {"shared and cached": 0, "a": 30}
    compute(store, "b", TEXT[:18])
    assert held() == {"shared and cached": 0, "a": 30, "b": 30}
    store.fork("b", "c")
    assert held()["c"] == 0
    # What "a" took and "b" still reads belongs to nobody alone; its partial block is free again.
    store.release("a")
    assert held() == {"shared and cached": 20, "b": 30, "c": 0}
    store.release("b")
    store.release("c")
    assert held() == {"shared and cached": 40}
    store.drop_cache()
    assert held() == {"shared and cached": 0}
    assert ledger.used("ram") == pool.num_bytes == 160


@settings(max_examples=40)
@given(
    window=st.sampled_from([None, 1, 2, 5, 9]),
    block_size=st.sampled_from([1, 3, 4]),
    num_tokens=st.integers(1, 30),
    chunk=st.integers(1, 8),
    is_bounded=st.booleans(),
)
def test_peak_blocks_is_reached_and_never_exceeded(
    window: int | None, block_size: int, num_tokens: int, chunk: int, is_bounded: bool
) -> None:
    """Brute force: before every token of the sequence, reserve the largest chunk and look."""
    store = make_store([window], [40], block_size, max_chunk_tokens=chunk if is_bounded else None)
    store.open("a", [])
    most = 0
    for start in range(num_tokens):
        store.reserve("a", min(chunk, num_tokens - start) if is_bounded else num_tokens - start)
        most = max(most, store.held_blocks("a")[0])
        store.truncate("a", start)
        store.reserve("a", 1)
        store.commit("a", [start])
    assert store.peak_blocks(num_tokens) == (most,)


def test_a_million_blocks_cost_nothing_until_they_are_used() -> None:
    tracemalloc.start()
    try:
        store = make_store([None, 64], [1_000_000, 1_000_000], 16)
        compute(store, "a", [1] * 64)
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    start_s = time.perf_counter()
    for number in range(50):
        compute_only = [number] * 32
        store.open("b", compute_only)
        store.reserve("b", 32)
        store.commit("b", compute_only)
        store.free_blocks()
        store.release("b")
    assert time.perf_counter() - start_s < 2.0


def test_opening_twice_is_our_own_fault() -> None:
    store = make_store([None], [4], 4)
    store.open("a", TEXT[:3])
    with pytest.raises(AssertionError):
        store.open("a", TEXT[:3])
    with pytest.raises(AssertionError):
        store.fork("a", "a")
    with pytest.raises(AssertionError):
        store.commit("a", TEXT[:1])
