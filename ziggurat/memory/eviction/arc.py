# SPDX-License-Identifier: Apache-2.0
"""ARC (Megiddo and Modha, FAST 2003): recency against frequency, weighed by what was evicted and came back."""

from __future__ import annotations

from collections import OrderedDict

from ziggurat.memory.eviction.protocol import EVICTION_POLICIES, UNKNOWN, CacheShape, Entry
from ziggurat.memory.eviction.ranking import RankHeap

ONCE, OFTEN = 0, 1


@EVICTION_POLICIES.register("arc")
class ARC:
    """Adaptive replacement. Two lists, used once and used more often, each with the keys of what it lost. O(log n) amortised.

    A key that comes back from the ghosts of a list was evicted too early, so that list gets more of the space. On a cache in which every
    id is offered (and an id is inserted before its space is made) it is the published algorithm, step by step; ids that are held or
    inside a tree are passed over. Remembers at most as many keys as the cache has blocks. The wrong choice where that is too much.
    """

    def __init__(self, shape: CacheShape) -> None:
        self._capacity = shape.capacity_blocks
        self._target = 0.0
        self._lists = (RankHeap(), RankHeap())
        self._ghosts: tuple[OrderedDict[int, None], OrderedDict[int, None]] = (OrderedDict(), OrderedDict())
        self._keys: dict[int, int] = {}
        self._new: dict[int, int] = {}
        """Inserted and still with who made them: space is being made for them, so no list counts them yet."""
        self._is_back_from_often = False
        self._num_events = 0

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """New, or back from the ghosts: then the target moves."""
        once, often = self._ghosts
        self._keys[block] = entry.key
        self._is_back_from_often = entry.key in often
        self._new[block] = ONCE
        if entry.key in once:
            self._target = min(self._capacity, self._target + max(1.0, len(often) / len(once)))
        elif entry.key in often:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(often)))
        else:
            return
        self._new[block] = OFTEN
        self._ghosts[entry.key in often].pop(entry.key)

    def on_access(self, block: int) -> None:
        """Used more than once."""
        self._settle(block)
        once, often = self._lists
        if block in once:
            is_offered = once.is_offered(block)
            once.forget(block)
            often.place(block, self._now())
            often.offer(block, is_offered)
        else:
            often.place(block, self._now())

    def on_release(self, block: int) -> None:
        """In use until now; not one use more."""
        self._settle(block)
        self._list_of(block).place(block, self._now())

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """See `EvictionPolicy.on_evictable`."""
        if is_evictable:
            self._settle(block)
        if block not in self._new:
            self._list_of(block).offer(block, is_evictable)

    def on_remove(self, block: int) -> None:
        """Its key becomes a ghost of its list."""
        key = self._keys.pop(block)
        if self._new.pop(block, None) is not None:
            return
        which = OFTEN if block in self._lists[OFTEN] else ONCE
        self._lists[which].forget(block)
        ghosts = self._ghosts[which]
        ghosts[key] = None
        ghosts.move_to_end(key)
        self._trim()

    def victim(self) -> int | None:
        """From the list that has more than its target."""
        once, often = self._lists
        num_once = len(once)
        from_once = num_once > self._target or (self._is_back_from_often and num_once == self._target)
        first, second = (once, often) if num_once and from_once else (often, once)
        block = first.first()
        return second.first() if block is None else block

    def _list_of(self, block: int) -> RankHeap:
        return self._lists[OFTEN if block in self._lists[OFTEN] else ONCE]

    def _settle(self, block: int) -> None:
        which = self._new.pop(block, None)
        if which is not None:
            self._lists[which].place(block, self._now())
            self._trim()

    def _trim(self) -> None:
        """At most `capacity` keys of things used once, and twice that in all; the newest are kept."""
        once, often = self._ghosts
        while once and len(self._lists[ONCE]) + len(once) > self._capacity:
            once.popitem(last=False)
        while often and len(self._keys) - len(self._new) + len(once) + len(often) > 2 * self._capacity:
            often.popitem(last=False)

    def _now(self) -> tuple[float, int]:
        self._num_events += 1
        return (self._num_events, 0)
