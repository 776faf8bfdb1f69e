# SPDX-License-Identifier: Apache-2.0
"""The ledger against a model of nested dictionaries."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ziggurat.clock import VirtualClock, WallClock
from ziggurat.errors import DoesNotFit
from ziggurat.memory.ledger import Lease, Ledger


def ledger(**limits: int) -> Ledger:
    return Ledger(limits or {"ram": 100, "swap": 10}, VirtualClock())


def test_over_budget_names_the_numbers_and_takes_nothing() -> None:
    books = ledger(ram=100)
    books.reserve("weights", "model", "ram", 70)
    with pytest.raises(
        DoesNotFit, match=r"kv of pool needs 31 B, 30 B available in tier ram .*raise --memory by 1 B"
    ) as error:
        books.reserve("kv", "pool", "ram", 31)
    assert (error.value.needed_bytes, error.value.available_bytes) == (31, 30)
    assert books.free("ram") == 30
    assert len(books.rows()) == 1
    books.reserve("kv", "pool", "ram", 30)
    assert books.free("ram") == 0


def test_growing_over_budget_leaves_the_lease_as_it_was() -> None:
    books = ledger(ram=100)
    lease = books.reserve("kv", "pool", "ram", 60)
    books.reserve("weights", "model", "ram", 20)
    with pytest.raises(DoesNotFit) as error:
        lease.resize(90)
    assert (error.value.needed_bytes, error.value.available_bytes) == (90, 80)
    assert lease.num_bytes == 60
    lease.resize(80)
    lease.resize(5)
    assert (lease.num_bytes, lease.peak_bytes) == (5, 80)


def test_children_live_inside_their_parent() -> None:
    books = ledger(ram=100)
    pool = books.reserve("kv", "pool", "ram", 50)
    first = pool.reserve("kv", "a", 30)
    assert books.used("ram") == 50
    with pytest.raises(DoesNotFit, match="kv of pool"):
        pool.reserve("kv", "b", 21)
    with pytest.raises(DoesNotFit, match="cannot shrink"):
        pool.resize(29)
    pool.resize(30)
    assert pool.free_bytes == 0
    with pytest.raises(AssertionError):
        pool.release()
    first.release()
    pool.release()
    assert books.used() == 0
    assert books.rows() == []


def test_releasing_twice_is_our_own_fault() -> None:
    lease = ledger().reserve("kv", "pool", "ram", 5)
    lease.release()
    with pytest.raises(AssertionError):
        lease.release()
    with pytest.raises(AssertionError):
        lease.resize(1)


def test_context_manager_releases() -> None:
    books = ledger()
    with books.reserve("workspace", "step", "ram", 5):
        assert books.used("ram") == 5
    assert books.used("ram") == 0
    with books.reserve("workspace", "step", "ram", 5) as lease:
        lease.release()
    assert books.used("ram") == 0


def test_peaks_by_kind_and_tier() -> None:
    books = ledger(ram=100, swap=100)
    pool = books.reserve("kv", "pool", "ram", 50)
    pool.reserve("kv", "a", 20)
    other = pool.reserve("adapter", "b", 5)
    swapped = books.reserve("kv", "swapped", "swap", 7)
    # The child of the same kind is part of its parent; the one of another kind shows under its own kind, and not in the tier.
    assert books.used(kind="kv") == 57
    assert books.used(kind="adapter") == 5
    assert books.used() == 57
    swapped.release()
    other.release()
    assert books.peak() == 57
    assert books.peak("kv") == 57
    assert books.peak("kv", tier="swap") == 7
    assert books.peak("adapter") == 5
    assert books.peak("nothing") == 0
    books.audit()


def test_rows_show_who_why_and_since_when() -> None:
    clock = VirtualClock()
    books = Ledger({"ram": 100}, clock)
    pool = books.reserve("kv", "pool", "ram", 50)
    books.reserve("weights", "model", "ram", 10)
    clock.sleep_until(3.0)
    pool.reserve("kv", "a", 20, why="one sequence")
    shown = [(row.owner, row.num_bytes, row.depth, row.since_s, row.why) for row in books.rows()]
    assert shown == [("pool", 50, 0, 0.0, ""), ("a", 20, 1, 3.0, "one sequence"), ("model", 10, 0, 0.0, "")]


def test_a_limit_below_what_is_in_use_is_refused() -> None:
    books = ledger(ram=100)
    lease = books.reserve("kv", "pool", "ram", 60)
    with pytest.raises(DoesNotFit) as error:
        books.set_limit("ram", 59)
    assert (error.value.needed_bytes, error.value.available_bytes) == (60, 59)
    assert books.limit("ram") == 100
    books.set_limit("ram", 60)
    with pytest.raises(DoesNotFit):
        lease.resize(61)


def test_rows_can_be_read_while_another_thread_writes() -> None:
    books = Ledger({"ram": 1000}, WallClock())
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with books.reserve("kv", "pool", "ram", 100) as pool, pool.reserve("kv", "a", 40):
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(300):
            for row in books.rows():
                assert row.num_bytes in (0, 40, 100)
            books.audit()
    finally:
        stop.set()
        thread.join()


class LedgerMachine(RuleBasedStateMachine):
    """The model is a list of leases with what they should hold."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.books = ledger(ram=100, swap=10)
        self.held: dict[Lease, int] = {}

    def room(self, tier: str, parent: Lease | None) -> int:
        if parent is not None:
            return self.held[parent] - sum(size for lease, size in self.held.items() if lease.parent is parent)
        limit = self.books.limit(tier)
        return limit - sum(size for lease, size in self.held.items() if lease.parent is None and lease.tier == tier)

    @rule(target=leases, tier=st.sampled_from(["ram", "swap"]), size=st.integers(0, 60))
    def reserve(self, tier: str, size: int) -> Lease | None:
        if size > self.room(tier, None):
            with pytest.raises(DoesNotFit):
                self.books.reserve("kv", "x", tier, size)
            return None
        lease = self.books.reserve("kv", "x", tier, size)
        self.held[lease] = size
        return lease

    @rule(target=leases, parent=leases, size=st.integers(0, 30), kind=st.sampled_from(["kv", "adapter"]))
    def reserve_child(self, parent: Lease | None, size: int, kind: str) -> Lease | None:
        if parent is None or not parent.is_open:
            return None
        if size > self.room(parent.tier, parent):
            with pytest.raises(DoesNotFit):
                parent.reserve(kind, "y", size)
            return None
        lease = parent.reserve(kind, "y", size)
        self.held[lease] = size
        return lease

    @rule(lease=leases, size=st.integers(0, 80))
    def resize(self, lease: Lease | None, size: int) -> None:
        if lease is None or not lease.is_open:
            return
        held_by_children = self.held[lease] - self.room(lease.tier, lease)
        if size - self.held[lease] > self.room(lease.tier, lease.parent) or size < held_by_children:
            with pytest.raises(DoesNotFit):
                lease.resize(size)
        else:
            lease.resize(size)
            self.held[lease] = size

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if lease is None or not lease.is_open:
            return
        for child in [child for child in self.held if child.parent is lease]:
            self.release(child)
        lease.release()
        del self.held[lease]

    @rule(tier=st.sampled_from(["ram", "swap"]), size=st.integers(0, 120))
    def set_limit(self, tier: str, size: int) -> None:
        if size < self.books.used(tier):
            with pytest.raises(DoesNotFit):
                self.books.set_limit(tier, size)
        else:
            self.books.set_limit(tier, size)

    @invariant()
    def sums_are_right(self) -> None:
        self.books.audit()
        assert all(lease.num_bytes == size for lease, size in self.held.items())
        assert len(self.books.rows()) == len(self.held)
        for tier in ("ram", "swap"):
            assert self.books.free(tier) == self.room(tier, None) >= 0

    def teardown(self) -> None:
        for lease in [lease for lease in self.held if lease.parent is None]:
            self.release(lease)
        assert self.books.used() == 0
        assert self.books.rows() == []
        self.books.audit()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=30, stateful_step_count=25)
