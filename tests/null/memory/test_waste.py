# SPDX-License-Identifier: Apache-2.0
"""Waste of held blocks: by hand, and against counting every slot of every block."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.null.memory.model import make_store
from ziggurat.memory.paged import PagedKVStore
from ziggurat.memory.waste import wasted_slots


def count_slots(store: PagedKVStore, group: int) -> int:
    """Slot by slot: held, and in nobody's visible span."""
    read: dict[int, int] = {}
    for seq in store.sequences.values():
        window = store.windows[group]
        begin = 0 if window is None else max(0, seq.num_computed - window + 1)
        for index in range(seq.first[group], len(seq.tables[group])):
            slots = range(index * store.block_size, (index + 1) * store.block_size)
            block = seq.tables[group][index]
            read[block] = max(read.get(block, 0), sum(begin <= slot < seq.num_computed for slot in slots))
    return sum(store.block_size - most for most in read.values())


def test_by_hand() -> None:
    store = make_store([None, 6], [16, 16], 4)
    assert wasted_slots(store) == (0, 0)
    store.open("a", list(range(13)))
    store.reserve("a", 13)
    assert wasted_slots(store) == (16, 16)
    store.commit("a", list(range(13)))
    # 13 tokens in four blocks; the window's two blocks hold [8, 16), and token 13 reads [8, 13).
    assert wasted_slots(store) == (3, 3)
    store.reserve("a", 1)
    store.commit("a", [13])
    assert wasted_slots(store) == (2, 3)
    store.fork("a", "b")
    assert wasted_slots(store) == (2, 3)
    store.release("a")
    store.release("b")
    assert wasted_slots(store) == (0, 0)


@given(st.data())
def test_edges_are_all_that_needs_counting(data: st.DataObject) -> None:
    window = data.draw(st.sampled_from([None, 1, 3, 4, 9]))
    store = make_store([None, window], [60, 60], 4, enable_prefix_caching=data.draw(st.booleans()))
    for name in "abc":
        tokens = [7] * data.draw(st.integers(1, 24))
        cached = store.open(name, tokens)
        while cached < len(tokens):
            chunk = data.draw(st.integers(1, len(tokens) - cached))
            store.reserve(name, chunk)
            store.commit(name, tokens[cached : cached + chunk])
            cached += chunk
        if data.draw(st.booleans()):
            store.fork(name, name + "2")
        store.reserve(name, data.draw(st.integers(0, 9)))
        assert wasted_slots(store) == tuple(count_slots(store, group) for group in (0, 1))
