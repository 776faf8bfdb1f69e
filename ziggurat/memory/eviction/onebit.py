# SPDX-License-Identifier: Apache-2.0
"""Eviction by one predicted bit per use: three policies of the paging paper (arXiv 2210.02775), with k ids in the cache and loads as
cost.

Bounds are ``cost <= alpha * optimum + beta * eta0 + gamma * eta1 + constant`` (see `BitErrors`). What the paper drops at once (a page
whose bit is 1 after it was served, all pages of a flush) stays here until its space is wanted, and leaves first. That never costs more:
the pages that the paper would hold are there in either case, and an id that is held by somebody is never taken away. None of the three
is robust alone but the last: wrong bits cost up to a load each, so `Succinct` puts a classical policy beside them.
"""

from __future__ import annotations

from random import Random

from ziggurat.memory.eviction.bits import BitSource
from ziggurat.memory.eviction.protocol import UNKNOWN, CacheShape, Entry
from ziggurat.memory.eviction.ranking import RankedPolicy

KEEP, DISCARD = 0, 1


class FlushWhenAllZeros(RankedPolicy):
    """An id whose bit is 1; if there is none, all leave. Deterministic, bound (1, k - 1, 1), which no deterministic policy betters.

    Ties by the order of uses. O(log n) amortised: a flush of k ids is paid by the k loads that emptied the ones.
    """

    def __init__(self, shape: CacheShape, bits: BitSource) -> None:
        super().__init__(shape)
        self._bits = bits
        self._entries: dict[int, Entry] = {}

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """Takes its bit."""
        self._entries[block] = entry
        self.on_access(block)

    def on_access(self, block: int) -> None:
        """Takes its bit; a 1 ranks before every 0."""
        bit = self._bits.bit(self._entries[block])
        self._ranked.place(block, (0 if bit else 1, self._tick()))

    def on_remove(self, block: int) -> None:
        """Gone."""
        super().on_remove(block)
        del self._entries[block]

    def victim(self) -> int | None:
        """The oldest 1; if there is none, everything becomes a 1."""
        block = self._ranked.first()
        if block is not None and self._ranked.rank(block)[0]:
            for other in self._ranked.offered():
                self._ranked.place(other, (0, self._ranked.rank(other)[1]))
        return self._ranked.first()


class DrawnSet:
    """A set of which a member can be drawn evenly in O(1)."""

    def __init__(self) -> None:
        self._members: list[int] = []
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: int) -> bool:
        return member in self._places

    def add(self, member: int) -> None:
        """Put it in."""
        if member not in self._places:
            self._places[member] = len(self._members)
            self._members.append(member)

    def discard(self, member: int) -> None:
        """Take it out; the last one gets its place."""
        place = self._places.pop(member, None)
        if place is not None:
            last = self._members.pop()
            if last != member:
                self._members[place] = last
                self._places[last] = place

    def draw(self, dice: Random) -> int:
        """Any member, all equally likely."""
        return self._members[dice.randrange(len(self._members))]


class _Marking:
    """Marks, bits and the offered ids by both. A mark is the number of its phase, so a new phase unmarks all at once."""

    def __init__(self, shape: CacheShape, bits: BitSource) -> None:
        self._bits = bits
        self._dice = Random(shape.seed)
        self._entries: dict[int, Entry] = {}
        self._said: dict[int, int] = {}
        self._marks: dict[int, int] = {}
        self._phase = 0
        self._offered: set[int] = set()
        self._unmarked = (DrawnSet(), DrawnSet())
        self._marked = (DrawnSet(), DrawnSet())
        self._choice: int | None = None

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """Takes its bit and a mark."""
        self._entries[block] = entry
        self.on_access(block)

    def on_access(self, block: int) -> None:
        """Takes its bit and a mark."""
        self._take_out(block)
        self._said[block] = DISCARD if self._bits.bit(self._entries[block]) else KEEP
        self._marks[block] = self._phase
        if block in self._offered:
            self._put_in(block)

    def on_release(self, block: int) -> None:
        """Changes nothing."""

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """See `EvictionPolicy.on_evictable`."""
        if is_evictable and block not in self._offered:
            self._offered.add(block)
            self._choice = None
            self._put_in(block)
        elif not is_evictable:
            self._offered.discard(block)
            self._take_out(block)

    def on_remove(self, block: int) -> None:
        """See `EvictionPolicy.on_remove`."""
        self._offered.discard(block)
        self._take_out(block)
        del self._entries[block], self._said[block], self._marks[block]

    def victim(self) -> int | None:
        """Drawn once; the draw stands until something happens."""
        if self._choice is None and self._offered:
            self._choice = self._choose().draw(self._dice)
        return self._choice

    def _choose(self) -> DrawnSet:
        """The set, not empty, that the victim is drawn from."""
        raise NotImplementedError

    def _new_phase(self) -> None:
        """All are marked: nobody is any more."""
        self._phase += 1
        self._unmarked, self._marked = self._marked, self._unmarked

    def _put_in(self, block: int) -> None:
        sets = self._marked if self._marks[block] == self._phase else self._unmarked
        sets[self._said[block]].add(block)

    def _take_out(self, block: int) -> None:
        self._choice = None
        for each in (*self._unmarked, *self._marked):
            each.discard(block)


class Mark0(_Marking):
    """MARK0: whose bit is 1 leaves first; among the others randomised marking. Bound (1, 2 H_k, 1) in the mean, H_k = 1 + 1/2 + .. + 1/k.

    Takes discard bits. With right bits it is Belady's optimum; with all bits 1 every request may be a load. O(1) per call.
    """

    def _choose(self) -> DrawnSet:
        for sets in (self._unmarked, self._marked):
            if sets[DISCARD]:
                return sets[DISCARD]
        if not self._unmarked[KEEP]:
            self._new_phase()
        return self._unmarked[KEEP]


class MarkAndPredict(_Marking):
    """MARK&PREDICT: a random unmarked id whose bit is 1, else a random unmarked one. Bound (2, H_k, 1) in the mean, never above O(log k).

    Takes phase bits: 1 if the id is not asked for in the next phase. O(1) per call.
    """

    def _choose(self) -> DrawnSet:
        if not any(self._unmarked):
            self._new_phase()
        return self._unmarked[DISCARD] if self._unmarked[DISCARD] else self._unmarked[KEEP]
