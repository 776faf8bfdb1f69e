# SPDX-License-Identifier: Apache-2.0
"""Policies that are one number per id: the offered id with the smallest rank leaves. The number changes with events, never by itself."""

from __future__ import annotations

import heapq
from typing import TypeAlias

from ziggurat.memory.eviction.protocol import UNKNOWN, CacheShape, Entry

Rank: TypeAlias = tuple[float, int]
"""Compared first by value, then by a number that no two ids share, so that every order is total."""


class RankHeap:
    """Ids with ranks, some of them offered; the offered one of the smallest rank in O(log n) amortised.

    A binary heap of (rank, id). An entry is stale when the id is not offered or has another rank by now; stale ones leave when they
    surface, and all at once when they are more than the offered ones.
    """

    def __init__(self) -> None:
        self._ranks: dict[int, Rank] = {}
        self._offered: set[int] = set()
        self._heap: list[tuple[Rank, int]] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, block: int) -> bool:
        return block in self._ranks

    def is_offered(self, block: int) -> bool:
        """Whether the id may be chosen."""
        return block in self._offered

    def offered(self) -> list[int]:
        """All offered ids, sorted: O(n log n)."""
        return sorted(self._offered)

    def rank(self, block: int) -> Rank:
        """The id's rank."""
        return self._ranks[block]

    def place(self, block: int, rank: Rank) -> None:
        """Give an id, old or new, a rank."""
        self._ranks[block] = rank
        if block in self._offered:
            self._push(block)

    def offer(self, block: int, is_offered: bool) -> None:
        """The id may be chosen from now on, or not."""
        if is_offered and block not in self._offered:
            self._offered.add(block)
            self._push(block)
        elif not is_offered:
            self._offered.discard(block)

    def forget(self, block: int) -> None:
        """The id is gone."""
        self._offered.discard(block)
        del self._ranks[block]

    def first(self) -> int | None:
        """The offered id of the smallest rank."""
        while self._heap:
            rank, block = self._heap[0]
            if block in self._offered and self._ranks[block] == rank:
                return block
            heapq.heappop(self._heap)
        return None

    def _push(self, block: int) -> None:
        if len(self._heap) > 2 * len(self._offered) + 64:
            self._heap = [(self._ranks[other], other) for other in self._offered]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (self._ranks[block], block))


class RankedPolicy:
    """The part that ranked policies share. A policy says what an insert and an access do to the rank."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._ranked = RankHeap()
        self._num_events = 0

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """See `EvictionPolicy.on_insert`."""
        raise NotImplementedError

    def on_access(self, block: int) -> None:
        """Changes nothing unless the policy says so."""

    def on_release(self, block: int) -> None:
        """Changes nothing unless the policy says so."""

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """See `EvictionPolicy.on_evictable`."""
        self._ranked.offer(block, is_evictable)

    def on_remove(self, block: int) -> None:
        """See `EvictionPolicy.on_remove`."""
        self._ranked.forget(block)

    def victim(self) -> int | None:
        """See `EvictionPolicy.victim`."""
        return self._ranked.first()

    def _tick(self) -> int:
        """A number above all before: the order of events ends ties."""
        self._num_events += 1
        return self._num_events
