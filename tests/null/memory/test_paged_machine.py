# SPDX-License-Identifier: Apache-2.0
"""The paged store under random operations, against the model of model.py: tiny pools, few tokens, so that everything collides."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.null.memory.model import Memory, make_ledger, make_store
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.memory.kv import DROPPED, OutOfBlocks, WindowPassed
from ziggurat.memory.ledger import Lease

WINDOWS = ((None,), (5,), (13,), (1,), (None, 3), (None, 6, None), (2, 9))
# Sequences follow one of few texts with common beginnings, so that they meet in the cache and while they compute.
FIRST = list(range(24))
TEXTS = (FIRST, FIRST[:6] + [2, 1] * 9, FIRST[:13] + [3] * 11, [2, 1] * 12)
texts = st.sampled_from(TEXTS)
lengths = st.sampled_from([1, 4, 7, 9, 13, 13, 17, 20])
picks = st.integers(0, 5)


class PagedStoreMachine(RuleBasedStateMachine):
    memory: Memory
    pool: Lease

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.texts: dict[str, list[int]] = {}

    @initialize(
        windows=st.sampled_from(WINDOWS),
        block_size=st.sampled_from([1, 2, 2, 4]),
        num_blocks=st.sampled_from([3, 6, 8, 10, 12, 16, 24]),
        spread=st.integers(-2, 3),
        is_caching=st.sampled_from([True, True, True, False]),
        policy=st.sampled_from(["lru", *EVICTION_POLICIES.names()]),
    )
    def start(
        self,
        windows: tuple[int | None, ...],
        block_size: int,
        num_blocks: int,
        spread: int,
        is_caching: bool,
        policy: str,
    ) -> None:
        sizes = [max(1, num_blocks + spread * group) for group in range(len(windows))]
        self.ledger, self.pool = make_ledger(windows, sizes)
        self.store = make_store(
            windows, sizes, block_size, enable_prefix_caching=is_caching, lease=self.pool, policy=policy
        )
        self.memory = Memory(self.store)

    def pick(self, number: int) -> str:
        names = sorted(self.memory.sequences)
        return names[number % len(names)]

    def new_id(self) -> str:
        self.opened += 1
        return f"s{self.opened:03d}"

    def has_sequences(self) -> bool:
        return bool(self.memory.sequences)

    def fits(self, needed: tuple[int, ...]) -> bool:
        return all(want <= have for want, have in zip(needed, self.store.free_blocks(), strict=True))

    @precondition(lambda self: len(self.memory.sequences) < 6)
    @rule(text=texts, length=lengths, salt=st.sampled_from(["", "", "", "b"]), chunk=st.integers(1, 20))
    def open_and_compute(self, text: list[int], length: int, salt: str, chunk: int) -> None:
        """`needed_to_open` says exactly what opening and reserving take, whatever has to be evicted for it."""
        name, tokens = self.new_id(), text[:length]
        chunk = min(chunk, length - self.store.match(tokens, salt=salt))
        free, needed = self.store.free_blocks(), self.store.needed_to_open(tokens, chunk, salt=salt)
        cached = self.memory.open(name, tokens, salt)
        if any(want > have for want, have in zip(needed, free, strict=True)):
            with pytest.raises(OutOfBlocks):
                self.memory.reserve(name, chunk)
            self.memory.release(name)
            assert self.store.free_blocks() == free
            return
        self.texts[name] = text
        assert self.memory.reserve(name, chunk) == []
        assert self.store.free_blocks() == tuple(have - want for have, want in zip(free, needed, strict=True))
        self.memory.commit(name, tokens[cached : cached + chunk])

    @precondition(lambda self: len(self.memory.sequences) < 6)
    @rule(text=texts, length=lengths, max_cached=st.integers(0, 20))
    def open_only(self, text: list[int], length: int, max_cached: int) -> None:
        name = self.new_id()
        self.memory.open(name, text[:length], "", max_cached)
        self.texts[name] = text

    @precondition(has_sequences)
    @rule(numbers=st.lists(picks, min_size=1, max_size=6, unique=True), num_tokens=st.sampled_from([1, 2, 3, 6, 12]))
    def follow(self, numbers: list[int], num_tokens: int) -> None:
        """One step of a batch: space for all, then all are committed, each with the next tokens of its text."""
        names = dict.fromkeys(self.pick(number) for number in numbers)
        running = []
        for name in names:
            if self.fits(self.store.needed_blocks(name, num_tokens)):
                self.memory.reserve(name, num_tokens)
                running.append(name)
        for name in running:
            start = len(self.memory.sequences[name].tokens)
            self.memory.commit(name, [self.texts[name][(start + index) % 24] for index in range(num_tokens)])

    @precondition(has_sequences)
    @rule(number=picks, num_tokens=st.integers(0, 9), accepted=st.integers(0, 9), token=st.integers(1, 9))
    def step(self, number: int, num_tokens: int, accepted: int, token: int) -> None:
        """Reserve and commit some of it; `needed_blocks` is exact, and too much is refused without a trace."""
        name = self.pick(number)
        free, needed = self.store.free_blocks(), self.store.needed_blocks(name, num_tokens)
        if not self.fits(needed):
            before = (self.store.view(name), self.store.stats(), self.ledger.rows())
            with pytest.raises(OutOfBlocks):
                self.memory.reserve(name, num_tokens)
            assert (self.store.view(name), self.store.stats(), self.ledger.rows()) == before
            return
        self.memory.reserve(name, num_tokens)
        assert self.store.free_blocks() == tuple(have - want for have, want in zip(free, needed, strict=True))
        assert not any(self.store.needed_blocks(name, num_tokens))
        self.memory.commit(name, [token] * min(num_tokens, accepted))

    @precondition(has_sequences)
    @rule(number=picks, num_tokens=st.integers(1, 6))
    def reserve_only(self, number: int, num_tokens: int) -> None:
        name = self.pick(number)
        if self.fits(self.store.needed_blocks(name, num_tokens)):
            self.memory.reserve(name, num_tokens)

    @rule(shares=st.lists(st.floats(0, 1), min_size=3, max_size=3))
    def resize(self, shares: list[float]) -> None:
        """Any size between what sequences hold and what there is address space for."""
        stats, sizes = self.store.stats(), self.store.cache.sizes
        wanted = [
            each.used + round((size - each.used) * share)
            for each, size, share in zip(stats, sizes, shares, strict=False)
        ]
        retired = self.store.cache.resize(wanted)
        self.store.accounts.settle(None)
        assert self.store.total_blocks() == tuple(wanted)
        for each, blocks, total, before in zip(self.store.stats(), retired, wanted, stats, strict=True):
            assert each.used == before.used and each.free + each.cached == total - each.used
            assert each.cached <= before.cached and len(blocks) <= max(0, before.total - total)

    @precondition(lambda self: 0 < len(self.memory.sequences) < 6)
    @rule(number=picks)
    def fork(self, number: int) -> None:
        parent, child = self.pick(number), self.new_id()
        free = self.store.free_blocks()
        self.memory.fork(parent, child)
        self.texts[child] = self.texts[parent]
        assert self.store.free_blocks() == free
        assert all(
            child_table == parent_table[: len(child_table)]
            for child_table, parent_table in zip(
                self.store.view(child).tables, self.store.view(parent).tables, strict=True
            )
        )

    @precondition(has_sequences)
    @rule(number=picks, num_back=st.sampled_from([-1, 0, 1, 2, 3, 5, 8, 20]))
    def truncate(self, number: int, num_back: int) -> None:
        name = self.pick(number)
        num_computed = len(self.memory.sequences[name].tokens)
        before = (self.store.view(name), self.store.stats())
        try:
            self.memory.truncate(name, max(0, num_computed - num_back))
        except WindowPassed:
            assert 0 < num_back < num_computed
            assert (self.store.view(name), self.store.stats()) == before

    @precondition(has_sequences)
    @rule(number=picks, num_back=st.integers(1, 5), num_tokens=st.integers(1, 8), token=st.integers(7, 9))
    def go_back_and_write_other_tokens(self, number: int, num_back: int, num_tokens: int, token: int) -> None:
        self.truncate(number, num_back)
        self.step(number, num_tokens, num_tokens, token)

    @precondition(has_sequences)
    @rule(number=picks)
    def release(self, number: int) -> None:
        name = self.pick(number)
        free, held = self.store.free_blocks(), self.store.held_blocks(name)
        self.memory.release(name)
        assert self.store.free_blocks() == tuple(map(sum, zip(free, held, strict=True)))

    @precondition(lambda self: sum(stats.cached for stats in self.store.stats()) > 12)
    @rule()
    def drop_cache(self) -> None:
        before = self.store.free_blocks()
        self.store.drop_cache()
        assert self.store.free_blocks() == before
        assert all(stats.cached == 0 for stats in self.store.stats())

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.store.audit()
        self.ledger.audit()
        self.memory.check()
        for group, stats in enumerate(self.store.stats()):
            # A window group holds nothing that its next token cannot see.
            for name in self.memory.sequences:
                num_seen = len(self.memory.sequences[name].tokens) - (self.store.windows[group] or 1000) + 1
                table = self.store.view(name).tables[group]
                assert all(block == DROPPED for block in table[: max(0, num_seen) // self.store.block_size])
            used = {block for name in self.memory.sequences for block in self.store.view(name).tables[group]}
            assert len(used - {DROPPED}) == stats.used

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        for name in list(self.memory.sequences):
            self.memory.release(name)
        assert all(stats.used == 0 for stats in self.store.stats())
        self.store.drop_cache()
        assert all(stats.free == stats.total for stats in self.store.stats())
        self.store.audit()
        assert self.pool.children_bytes == 0
        self.store.close()
        self.pool.release()
        assert self.ledger.rows() == []


TestPagedStore = PagedStoreMachine.TestCase
TestPagedStore.settings = settings(max_examples=80, stateful_step_count=40)
