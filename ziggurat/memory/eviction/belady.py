# SPDX-License-Identifier: Apache-2.0
"""Belady's rule (LFD), which needs the future: the yardstick of every other policy, for recorded requests only."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ziggurat.memory.eviction.protocol import UNKNOWN, CacheShape, Entry, EvictionPolicy
from ziggurat.memory.eviction.ranking import RankedPolicy
from ziggurat.registry import Registry


class Oracle(Protocol):
    """Makes a policy that knows what comes."""

    def __call__(self, shape: CacheShape, future: Future) -> EvictionPolicy:
        """For one cache."""
        ...


class Future:
    """When each key is asked for. Whoever replays the record says where it stands.

    Attributes:
        now: number of the request that is being served.
    """

    def __init__(self, uses: Mapping[int, Sequence[int]]) -> None:
        self._uses = uses
        self.now = -1

    @classmethod
    def of(cls, requests: Iterable[Iterable[int]]) -> Future:
        """From the keys of each request, in order."""
        uses: dict[int, list[int]] = {}
        for number, keys in enumerate(requests):
            for key in keys:
                uses.setdefault(key, []).append(number)
        return cls(uses)

    def next_use(self, key: int) -> float:
        """The first request after the present one that asks for the key; infinity if there is none. O(log uses)."""
        uses = self._uses.get(key, ())
        index = bisect_right(uses, self.now)
        return uses[index] if index < len(uses) else math.inf


ORACLES: Registry[Oracle] = Registry("eviction oracle")
"""What only a recorded trace can use."""


@ORACLES.register("belady")
class Belady(RankedPolicy):
    """The id whose next use is farthest away; of equals (those that are never used again) the smallest key. O(log n) amortised.

    Optimal for pages of one size that are asked for one by one (Belady 1966). On a forest a node's next use is never after its children's,
    so leaves-first costs nothing; but requests hold many blocks at once and always insert, for which no rule is proved optimal.
    """

    def __init__(self, shape: CacheShape, future: Future) -> None:
        super().__init__(shape)
        self._future = future
        self._keys: dict[int, int] = {}

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """Its next use."""
        self._keys[block] = entry.key
        self.on_access(block)

    def on_access(self, block: int) -> None:
        """Its next use."""
        key = self._keys[block]
        self._ranked.place(block, (-self._future.next_use(key), key))

    def on_remove(self, block: int) -> None:
        """Gone."""
        super().on_remove(block)
        del self._keys[block]
