# SPDX-License-Identifier: Apache-2.0
"""The virtual KV space under the paged store's random operations, with a dictionary in the place of page tables; and its decisions."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.null.memory.model import Memory, kv_group, make_ledger
from tests.null.memory.test_paged_machine import PagedStoreMachine
from ziggurat.errors import ConfigError, KVCapacityExceeded
from ziggurat.memory.block_cache import Eviction
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.memory.ledger import Lease
from ziggurat.memory.virtual.slots import UNMAPPED, MapRun, SlotMap
from ziggurat.memory.virtual.store import VirtualKVStore


def make(
    num_blocks: int,
    block_size: int,
    *,
    num_slots: int = 6,
    max_model_len: int = 4000,
    lease: Lease | None = None,
    policy: str = "lru",
    is_caching: bool = True,
) -> VirtualKVStore:
    return VirtualKVStore(
        [kv_group(0, None)],
        [num_blocks],
        block_size,
        num_slots=num_slots,
        max_model_len=max_model_len,
        lease=lease,
        block_bytes=[10],
        enable_prefix_caching=is_caching,
        eviction=Eviction(new_policy=EVICTION_POLICIES.get(policy), recompute_cost=lambda num_tokens: 1.0 + num_tokens),
    )


class VirtualStoreMachine(PagedStoreMachine):
    store: VirtualKVStore

    @initialize(
        block_size=st.sampled_from([1, 2, 2, 4]),
        num_blocks=st.sampled_from([3, 6, 8, 10, 12, 16, 24]),
        is_caching=st.sampled_from([True, True, False]),
        policy=st.sampled_from(["lru", *EVICTION_POLICIES.names()]),
    )
    def start(self, block_size: int, num_blocks: int, is_caching: bool, policy: str) -> None:  # type: ignore[override]
        self.ledger, self.pool = make_ledger((None,), [num_blocks])
        self.store = make(num_blocks, block_size, lease=self.pool, policy=policy, is_caching=is_caching)
        self.memory = Memory(self.store)
        self.pages: dict[tuple[int, int], int] = {}

    @rule(num_tokens=st.integers(0, 9), max_blocks=st.integers(0, 4))
    def look_ahead(self, num_tokens: int, max_blocks: int) -> None:
        before = self.store.stats(), self.store.free_blocks()
        assert 0 <= self.store.look_ahead(num_tokens, max_blocks) <= max_blocks
        assert (self.store.stats(), self.store.free_blocks()) == before

    @invariant()
    def slots_show_the_tables(self) -> None:
        if not hasattr(self, "memory"):
            return
        for run in self.store.changes():
            for offset in range(run.num_blocks):
                place = run.slot, run.index + offset
                if run.block == UNMAPPED:
                    self.pages.pop(place, None)
                else:
                    self.pages[place] = run.block + offset
        assert self.store.changes() == []
        pool = self.store.cache.pools[0]
        for seq_id in self.memory.sequences:
            slot, table = self.store.slot(seq_id), self.store.view(seq_id).tables[0]
            assert [self.pages[slot, index] for index in range(len(table))] == list(table)
        for (slot, index), block in self.pages.items():
            tenant = self.store.slots.tenants[slot]
            if tenant is None or index >= len(self.store.view(tenant).tables[0]):
                # What nobody uses there is free, or was the slot's own before it was shared or cached: never a stranger's new memory.
                assert pool.refs[block] == 0 or pool.nodes[block] is not None or block in self._held_by_forks(block)

    def _held_by_forks(self, block: int) -> set[int]:
        return {block for name in self.memory.sequences if block in self.store.view(name).tables[0]}


TestVirtualStore = VirtualStoreMachine.TestCase
TestVirtualStore.settings = settings(max_examples=60, stateful_step_count=40)


def test_the_next_sequence_finds_its_slot_mapped() -> None:
    store = make(8, 4, num_slots=2, is_caching=False)
    store.open("a", range(12))
    store.reserve("a", 12)
    assert store.changes() == [MapRun(slot=0, index=0, block=0, num_blocks=3)]
    store.commit("a", range(12))
    store.release("a")
    store.open("b", range(9))
    store.reserve("b", 9)
    assert store.slot("b") == 0 and store.view("b").tables == ((0, 1, 2),)
    assert store.changes() == [], "nothing to map: the pages were still there"


def test_the_slot_that_fits_best_is_taken() -> None:
    store = make(16, 4, num_slots=3, is_caching=False)
    for name, length in (("a", 12), ("b", 4), ("c", 8)):
        store.open(name, range(length))
        store.reserve(name, length)
    for name in "abc":
        store.release(name)
    store.open("d", range(7))
    assert store.slot("d") == 2, "two blocks wanted: slot 2 has two, slot 0 three"
    store.open("e", range(16))
    assert store.slot("e") == 0, "nobody has four: the first"


def test_memory_is_taken_back_from_the_highest_slot_and_its_end() -> None:
    store = make(4, 4, num_slots=3, is_caching=False)
    for name, length in (("a", 4), ("b", 8)):
        store.open(name, range(length))
        store.reserve(name, length)
    store.release("b")
    store.changes()
    store.open("c", range(12), max_cached=0)
    slot = store.slot("c")
    assert slot == 1
    store.reserve("c", 12)
    assert store.view("c").tables == ((1, 2, 3),)
    store.release("c")
    store.reserve("a", 12)
    assert store.view("a").tables == ((0, 3, 2),)
    assert MapRun(slot=1, index=1, block=UNMAPPED, num_blocks=2) in store.changes()


def test_a_shared_prefix_is_one_memory_at_two_addresses() -> None:
    store = make(8, 4)
    store.open("a", range(9))
    store.reserve("a", 9)
    store.commit("a", range(9))
    assert store.open("b", range(9)) == 8
    assert store.slots.mapped[store.slot("b")][:2] == store.slots.mapped[store.slot("a")][:2]
    assert store.stats()[0].used == 3


def test_a_full_house_and_a_long_sequence_are_refused_with_numbers() -> None:
    store = make(8, 4, num_slots=1, max_model_len=10)
    store.open("a", [1])
    with pytest.raises(KVCapacityExceeded, match="all 1 slots"):
        store.open("b", [1])
    with pytest.raises(KVCapacityExceeded, match="11 tokens, a slot holds 10"):
        store.reserve("a", 11)
    store.reserve("a", 10)
    store.audit()


def test_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"windows \[8\]"):
        VirtualKVStore([kv_group(0, 8)], [4], 4, num_slots=1, max_model_len=8, lease=None, block_bytes=[1])


def test_looking_ahead_maps_what_comes_next_and_only_that() -> None:
    store = make(8, 4, num_slots=2, is_caching=False)
    store.open("a", [1])
    store.reserve("a", 4)
    store.commit("a", [1, 2])
    store.changes()
    assert store.look_ahead(1, 2) == 0, "two tokens are left in the block"
    assert store.look_ahead(2, 2) == 1
    assert store.changes() == [MapRun(slot=0, index=1, block=1, num_blocks=1)]
    assert store.look_ahead(2, 2) == 0, "it lies ready"
    store.reserve("a", 3)
    assert store.view("a").tables == ((0, 1),) and store.changes() == []


def test_random_slots_agree_with_a_dictionary() -> None:
    rng = random.Random(5)
    slots, shown = SlotMap(4, 6), {}
    for _ in range(400):
        slot = rng.randrange(4)
        if slots.tenants[slot] is None:
            opened = slots.open("s", 0, lambda block: False)
            assert opened is not None
            slot = opened
        slots.set_table(slot, rng.sample(range(20), rng.randrange(7)))
        for run in slots.changes():
            for offset in range(run.num_blocks):
                shown[run.slot, run.index + offset] = run.block if run.block == UNMAPPED else run.block + offset
        slots.audit()
        for each, row in enumerate(slots.mapped):
            assert [shown[each, index] for index in range(len(row))] == row
        if rng.random() < 0.3:
            slots.close(slot)
