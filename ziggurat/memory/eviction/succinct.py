# SPDX-License-Identifier: Apache-2.0
"""Advice that is followed only as long as it pays: MARK0 with learned bits beside LRU, whichever would have loaded less so far."""

from __future__ import annotations

from ziggurat.memory.eviction.bits import BitSource
from ziggurat.memory.eviction.classic import LRU
from ziggurat.memory.eviction.flat import FlatCache
from ziggurat.memory.eviction.learned import BitLearner
from ziggurat.memory.eviction.onebit import Mark0
from ziggurat.memory.eviction.protocol import EVICTION_POLICIES, UNKNOWN, CacheShape, Entry, EvictionPolicy

AHEAD = 1.02
"""The other one must have loaded less by this factor, so that a switch, which costs at most a cache full of loads, is paid."""


class _CurrentBit:
    """One prediction per use, read by everybody."""

    def __init__(self) -> None:
        self.now = 0

    def bit(self, entry: Entry) -> int:
        return self.now


@EVICTION_POLICIES.register("succinct")
class Succinct:
    """LRU or MARK0 with predicted bits, whichever had fewer loads in a shadow cache of keys (arXiv 2210.02775, robustness by combining).

    Both see every event of the real cache, and both have a shadow: a cache of the full capacity without pins or tree. It begins with
    LRU and changes over when the other's loads are fewer by the factor `AHEAD` and a quarter of a cache full. Bits are learned
    (`BitLearner`) unless a source is given. O(log n) amortised per call, about five times LRU's work and one key per block more. The
    wrong choice for a cache so large that nothing leaves.

    Attributes:
        num_switches: changes of the leader.
    """

    def __init__(self, shape: CacheShape, bits: BitSource | None = None) -> None:
        self._bits = bits or BitLearner(shape)
        self._bit = _CurrentBit()
        self._slack = shape.capacity_blocks // 4
        self._live: tuple[EvictionPolicy, ...] = (LRU(shape), Mark0(shape, self._bit))
        self._shadows = [FlatCache(policy, shape.capacity_blocks) for policy in (LRU(shape), Mark0(shape, self._bit))]
        self._entries: dict[int, Entry] = {}
        self._leader = 0
        self.num_switches = 0

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """See `EvictionPolicy.on_insert`."""
        self._entries[block] = entry
        self._use(entry)
        for policy in self._live:
            policy.on_insert(block, entry)

    def on_access(self, block: int) -> None:
        """See `EvictionPolicy.on_access`."""
        self._use(self._entries[block])
        for policy in self._live:
            policy.on_access(block)

    def on_release(self, block: int) -> None:
        """See `EvictionPolicy.on_release`."""
        for policy in self._live:
            policy.on_release(block)

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """See `EvictionPolicy.on_evictable`."""
        for policy in self._live:
            policy.on_evictable(block, is_evictable)

    def on_remove(self, block: int) -> None:
        """See `EvictionPolicy.on_remove`."""
        del self._entries[block]
        for policy in self._live:
            policy.on_remove(block)

    def victim(self) -> int | None:
        """The leader's."""
        return self._live[self._leader].victim()

    def _use(self, entry: Entry) -> None:
        self._bit.now = self._bits.bit(entry)
        for shadow in self._shadows:
            shadow.request(entry.key)
        mine, other = self._shadows[self._leader].num_loads, self._shadows[1 - self._leader].num_loads
        if mine > AHEAD * other + self._slack:
            self._leader = 1 - self._leader
            self.num_switches += 1
