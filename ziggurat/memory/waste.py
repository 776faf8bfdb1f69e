# SPDX-License-Identifier: Apache-2.0
"""How much of the held KV blocks nobody will read: what blocks of fixed size cost."""

from __future__ import annotations

from ziggurat.memory.paged import PagedKVStore


def wasted_slots(store: PagedKVStore) -> tuple[int, ...]:
    """Token slots per group, in blocks that sequences hold, whose entries no holder's next token will read.

    They are reserved and not computed yet, behind the last token of a block, or have left the window while their block has not. Of
    a shared block the holder that reads most counts. Takes time in proportion to the sequences, not to their blocks.
    """
    return tuple(_wasted(store, group) for group in range(len(store.windows)))


def _wasted(store: PagedKVStore, group: int) -> int:
    size, window, refs = store.block_size, store.windows[group], store.cache.pools[group].refs
    partly: dict[int, tuple[int, int]] = {}  # block -> holders that read a part of it, the most that one of them reads
    for seq in store.sequences.values():
        begin, end, table, first = 0, seq.num_computed, seq.tables[group], seq.first[group]
        if window is not None:
            begin = max(0, end - window + 1)
        # Every block between the first one and the one that is being filled is read as a whole.
        for index in sorted({first, *range(max(first, end // size), len(table))}):
            if index >= len(table):
                continue
            num_read = max(0, min(end, (index + 1) * size) - max(begin, index * size))
            if num_read < size:
                holders, most = partly.get(table[index], (0, 0))
                partly[table[index]] = (holders + 1, max(most, num_read))
    return sum(size - most for block, (holders, most) in partly.items() if holders == refs[block])
