# SPDX-License-Identifier: Apache-2.0
"""The textbook: least recently used, least frequently used, first in first out, SIEVE, and the price of a second computation."""

from __future__ import annotations

from ziggurat.memory.eviction.protocol import EVICTION_POLICIES, UNKNOWN, CacheShape, Entry
from ziggurat.memory.eviction.ranking import RankedPolicy


@EVICTION_POLICIES.register("lru")
class LRU(RankedPolicy):
    """The id whose last use is longest ago; use ends when the last holder lets go. O(log n) amortised per call.

    An id that was used long ago but is offered only now (its last child left) keeps its old place in the order, so a tree is taken
    down in the order of use, not in turns. The wrong choice for scans larger than the cache: each pass evicts what the next one needs.
    """

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """Used now."""
        self._ranked.place(block, (self._tick(), 0))

    def on_access(self, block: int) -> None:
        """Used now."""
        self._ranked.place(block, (self._tick(), 0))

    def on_release(self, block: int) -> None:
        """Used until now."""
        self._ranked.place(block, (self._tick(), 0))


@EVICTION_POLICIES.register("fifo")
class FIFO(RankedPolicy):
    """The id that came first leaves first, however much it was used. O(log n) amortised. The wrong choice where old beginnings stay in
    use, as system prompts do."""

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """Its place for ever."""
        self._ranked.place(block, (self._tick(), 0))


@EVICTION_POLICIES.register("lfu")
class LFU(RankedPolicy):
    """The id that was used least often since it came in; of equals the one whose last use is longest ago. O(log n) amortised.

    Counts are forgotten with the id. The wrong choice when what is popular changes: yesterday's favourites stay.
    """

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self._num_uses: dict[int, int] = {}

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """The first use."""
        self._num_uses[block] = 1
        self._ranked.place(block, (1, self._tick()))

    def on_access(self, block: int) -> None:
        """One more use."""
        self._num_uses[block] += 1
        self._ranked.place(block, (self._num_uses[block], self._tick()))

    def on_remove(self, block: int) -> None:
        """The count goes with the id."""
        super().on_remove(block)
        del self._num_uses[block]


@EVICTION_POLICIES.register("sieve")
class Sieve(RankedPolicy):
    """SIEVE (Zhang et al., NSDI 2024): a hand goes from old to new; who was used since it last came by is spared once. O(log n) amortised.

    Ids stand in the order in which they came in and never move. The hand's way is a rank: (lap, place). Who stands before the hand
    meets it in this lap, who stands behind it in the next; when it has taken the newest, the next lap begins. Ids that are not offered are
    passed by and keep their mark. The wrong choice for pure recency: a new id that is not used at once leaves early.
    """

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self._places: dict[int, int] = {}
        self._is_visited: set[int] = set()
        self._lap = 0
        self._hand = 0
        self._newest = 0
        """The last place of those that were ever offered: who is still with its maker is not in the queue yet."""

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """To the new end, not visited."""
        self._places[block] = self._tick()
        self._ranked.place(block, (self._lap, self._places[block]))

    def on_access(self, block: int) -> None:
        """Spared when the hand comes by."""
        self._is_visited.add(block)

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """The hand meets it in this lap or in the next."""
        if is_evictable and not self._ranked.is_offered(block):
            place = self._places[block]
            self._newest = max(self._newest, place)
            self._ranked.place(block, (self._lap + (place <= self._hand), place))
        super().on_evictable(block, is_evictable)

    def on_remove(self, block: int) -> None:
        """The hand goes on from where the id stood, if it was the hand that took it."""
        if block == self._ranked.first():
            self._move_hand(block)
            if self._hand == self._newest:
                self._lap, self._hand = self._lap + 1, 0
        super().on_remove(block)
        self._is_visited.discard(block)
        del self._places[block]

    def victim(self) -> int | None:
        """The first one that was not used since the last lap; the hand moves up to it."""
        while (block := self._ranked.first()) is not None and block in self._is_visited:
            self._is_visited.discard(block)
            self._move_hand(block)
            self._ranked.place(block, (self._lap + 1, self._places[block]))
        return block

    def _move_hand(self, block: int) -> None:
        lap, self._hand = self._ranked.rank(block)
        self._lap = int(lap)


@EVICTION_POLICIES.register("cost-aware")
class CostAware(RankedPolicy):
    """Greedy-Dual-Size-Frequency (Cherkasova 1998): uses times the work to make the contents again per byte, plus an age.

    O(log n) amortised. The age is the value of the last one that left, so that what was valuable once does not stay for ever. A late block
    of a long prompt costs more than an early one, because it attends to everything before it. With equal costs it is LFU with ageing.
    The wrong choice when the cost says nothing about who comes back.
    """

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self._age = 0.0
        self._uses: dict[int, tuple[int, float]] = {}
        self._new: set[int] = set()

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """The first use; its age counts from when its maker lets go, for space is still being made for it."""
        self._uses[block] = (0, entry.cost)
        self._new.add(block)
        self._use(block)

    def on_access(self, block: int) -> None:
        """One more use."""
        self._use(block)

    def on_release(self, block: int) -> None:
        """Of its maker, the first time."""
        if block in self._new:
            self._new.discard(block)
            count, cost = self._uses[block]
            self._ranked.place(block, (self._age + count * cost, self._tick()))

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """Offered: its maker has let go."""
        if is_evictable:
            self.on_release(block)
        super().on_evictable(block, is_evictable)

    def on_remove(self, block: int) -> None:
        """Who was evicted sets the age."""
        if self._ranked.is_offered(block):
            self._age = max(self._age, self._ranked.rank(block)[0])
        super().on_remove(block)
        self._new.discard(block)
        del self._uses[block]

    def _use(self, block: int) -> None:
        count, cost = self._uses[block]
        self._uses[block] = (count + 1, cost)
        self._ranked.place(block, (self._age + (count + 1) * cost, self._tick()))
