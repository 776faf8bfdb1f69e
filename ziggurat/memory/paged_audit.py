# SPDX-License-Identifier: Apache-2.0
"""Everything that must be true of a paged store, checked from scratch. For tests and idle moments: O(everything)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ziggurat.memory.block_cache import BlockCache, first_visible_block
from ziggurat.memory.block_pool import BlockPool
from ziggurat.memory.kv import DROPPED
from ziggurat.memory.open_sequence import OpenSequence
from ziggurat.units import ceil_div

if TYPE_CHECKING:
    from ziggurat.memory.paged import PagedKVStore


def audit_store(store: PagedKVStore) -> None:
    """Raise an AssertionError that names the first broken invariant."""
    sequences = list(store.sequences.values())
    for seq in sequences:
        _audit_sequence(store, seq)
    for group, pool in enumerate(store.cache.pools):
        _audit_pool(group, pool, sequences)
    _audit_forest(store.cache, sequences)
    store.accounts.audit(sequences)


def _audit_sequence(store: PagedKVStore, seq: OpenSequence) -> None:
    name, block_size = f"sequence {seq.seq_id}", store.block_size
    assert 0 <= seq.num_computed <= seq.num_reserved, (
        f"{name}: {seq.num_computed} computed, {seq.num_reserved} reserved"
    )
    for group, (table, first) in enumerate(zip(seq.tables, seq.first, strict=True)):
        where = f"{name}, group {group}"
        assert len(table) == ceil_div(seq.num_reserved, block_size), f"{where}: table of {len(table)} blocks"
        assert all(block == DROPPED for block in table[:first]), f"{where}: a block before {first} is still there"
        assert all(block != DROPPED for block in table[first:]), f"{where}: a block is missing after {first}"
        assert len(set(table[first:])) == len(table) - first, f"{where}: a block stands twice in the table"
        visible = first_visible_block(store.windows[group], seq.num_computed, block_size)
        assert first <= visible, f"{where}: the window begins in block {visible}, held from {first}"
    if not store.enable_prefix_caching:
        assert not seq.nodes and not seq.rest, f"{name} has nodes without prefix caching"
        return
    assert len(seq.nodes) == seq.num_computed // block_size, f"{name}: {len(seq.nodes)} nodes"
    assert len(seq.rest) == seq.num_computed % block_size, f"{name}: {len(seq.rest)} tokens after the full blocks"
    assert seq.tail is (seq.nodes[-1] if seq.nodes else store.cache.forest.root(seq.tail.salt)), f"{name}: wrong tail"
    for index, node in enumerate(seq.nodes):
        assert node.parent is (seq.nodes[index - 1] if index else store.cache.forest.root(node.salt)), f"{name}: path"
        for group, table in enumerate(seq.tables):
            if index >= seq.first[group]:
                assert node.blocks[group] == table[index], f"{name}: block {index} of group {group} is not its node's"


def _audit_pool(group: int, pool: BlockPool, sequences: Iterable[OpenSequence]) -> None:
    holders: Counter[int] = Counter()
    for seq in sequences:
        holders.update(seq.tables[group][seq.first[group] :])
        charged = sum(payer == seq.seq_id for payer in pool.payers)
        assert charged == seq.num_charged[group], f"group {group}: {seq.seq_id} pays for {charged} blocks"
    names = {seq.seq_id for seq in sequences}
    assert len(pool.refs) == len(pool.nodes) == len(pool.payers) <= pool.total + len(pool.retired) <= pool.size, (
        f"group {group}: frontier"
    )
    idle = [*pool.free_list, *pool.retired]
    free = set(idle)
    assert len(free) == len(idle), f"group {group}: a block is free or retired twice"
    num_cached = 0
    for block, refs in enumerate(pool.refs):
        where = f"group {group}, block {block}"
        assert refs == holders[block], f"{where}: {refs} references, {holders[block]} holders"
        assert (block in free) == (refs == 0 and pool.nodes[block] is None), f"{where}: free list"
        assert pool.payers[block] is None or (refs > 0 and pool.payers[block] in names), f"{where}: payer"
        num_cached += refs == 0 and pool.nodes[block] is not None
    assert num_cached == pool.num_cached, f"group {group}: {num_cached} cached blocks, counted {pool.num_cached}"
    assert pool.num_charged == sum(payer is not None for payer in pool.payers), f"group {group}: charged blocks"
    num_used = sum(refs > 0 for refs in pool.refs)
    assert pool.num_free + pool.num_cached + num_used == pool.total, f"group {group}: blocks are lost"


def _audit_forest(cache: BlockCache, sequences: Iterable[OpenSequence]) -> None:
    pins = Counter(id(seq.tail) for seq in sequences)
    kept: list[set[int]] = [set() for _ in cache.pools]
    for node in cache.forest.nodes():
        parent = node.parent
        assert parent is not None and parent.children[node.key] is node and parent.salt == node.salt, "a lost node"
        assert node.num_pins == pins[id(node)], f"a node has {node.num_pins} pins for {pins[id(node)]} sequences"
        assert not node.is_empty, "a node that nothing needs stayed"
        for group, block in enumerate(node.blocks):
            if block != DROPPED:
                assert cache.pools[group].nodes[block] is node, f"group {group}: block {block} is of another node"
                kept[group].add(block)
        full = [cache.pools[g].refs[node.blocks[g]] for g, window in enumerate(cache.windows) if window is None]
        assert len(set(full)) <= 1, "full groups disagree about who holds a node"
        if full:
            assert node.is_offered == (not node.children and full[0] == 0), "the eviction policy was not told"
    for root in cache.forest.roots():
        assert root.num_pins == pins[id(root)] and not root.is_empty, f"root {root.salt!r} stayed or has wrong pins"
    for group, pool in enumerate(cache.pools):
        attached = {block for block, node in enumerate(pool.nodes) if node is not None}
        assert attached == kept[group], f"group {group}: blocks {attached ^ kept[group]} have no node in the forest"
