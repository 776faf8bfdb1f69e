# SPDX-License-Identifier: Apache-2.0
"""Who leaves when space is needed. A policy sees ids and events only; what an id stands for is the caller's business.

The caller offers an id (`on_evictable` with True) when nothing needs it: nobody holds it and nothing is reachable only through it
(in a tree: it is a leaf). A policy therefore never has to know of trees or pins.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from ziggurat.registry import Registry


class EvictionPolicy(Protocol):
    """Chooses among the offered ids. Deterministic, no clock, no randomness."""

    def on_insert(self, block: int) -> None:
        """A new id; not offered yet."""
        ...

    def on_access(self, block: int) -> None:
        """The id was used: taken up by a sequence, or let go by its last holder."""
        ...

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """The id is offered, or no longer offered."""
        ...

    def on_remove(self, block: int) -> None:
        """The id is gone, evicted or otherwise; it may come back as a new one."""
        ...

    def victim(self) -> int | None:
        """The offered id that should leave next, or None when nothing is offered. Changes nothing; O(log n) amortised."""
        ...


EVICTION_POLICIES: Registry[Callable[[], EvictionPolicy]] = Registry("eviction policy")


@EVICTION_POLICIES.register("lru")
class LRU:
    """The id whose last use is longest ago. O(log n) amortised per call.

    An id that was used long ago but is offered only now (its last child left) keeps its old place in the order, so a tree is taken
    down in the order of use, not in turns. The wrong choice for scans larger than the cache: each pass evicts what the next one needs.
    """

    def __init__(self) -> None:
        self._uses = 0
        self._last_use: dict[int, int] = {}
        self._offered: set[int] = set()
        # (last use, id); an entry is stale when the id is not offered or was used since. Stale ones leave when they surface.
        self._heap: list[tuple[int, int]] = []

    def on_insert(self, block: int) -> None:
        self.on_access(block)

    def on_access(self, block: int) -> None:
        self._uses += 1
        self._last_use[block] = self._uses
        if block in self._offered:
            self._push(block)

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        if is_evictable:
            self._offered.add(block)
            self._push(block)
        else:
            self._offered.discard(block)

    def on_remove(self, block: int) -> None:
        self._offered.discard(block)
        del self._last_use[block]

    def victim(self) -> int | None:
        while self._heap:
            last_use, block = self._heap[0]
            if block in self._offered and self._last_use[block] == last_use:
                return block
            heapq.heappop(self._heap)
        return None

    def _push(self, block: int) -> None:
        if len(self._heap) > 2 * len(self._offered) + 64:
            self._heap = [(self._last_use[other], other) for other in self._offered]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (self._last_use[block], block))
