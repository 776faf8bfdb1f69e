# SPDX-License-Identifier: Apache-2.0
"""Who leaves when space is needed. A policy sees ids and events only; what an id stands for is the caller's business.

The caller offers an id (`on_evictable` with True) when nothing needs it: nobody holds it and nothing is reachable only through it
(in a tree: it is a leaf). A policy therefore never has to know of trees or pins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ziggurat.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of an id when it comes in.

    Attributes:
        key: names the contents, and so outlives the id: what was evicted and is computed again has the same key and another id. Keys may
            collide, for they decide who leaves and never what is read.
        cost: work to make the contents again, per byte that they take; any unit, the same for all ids of a cache.
        depth: blocks of its prefix before it.
    """

    key: int = 0
    cost: float = 1.0
    depth: int = 0


UNKNOWN = Entry()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """The cache that a policy decides about: how many ids it can hold, and the seed of a policy that draws."""

    capacity_blocks: int
    seed: int = 0


class EvictionPolicy(Protocol):
    """Chooses among the offered ids. Deterministic for its `CacheShape`: no clock, and dice only from the shape's seed."""

    def on_insert(self, block: int, entry: Entry = UNKNOWN) -> None:
        """A new id, used once by whoever made it; not offered yet."""
        ...

    def on_access(self, block: int) -> None:
        """What the id stands for was asked for again and found: a hit."""
        ...

    def on_release(self, block: int) -> None:
        """The last holder let go. No use of its own, but until then the id was in use."""
        ...

    def on_evictable(self, block: int, is_evictable: bool) -> None:
        """The id is offered, or no longer offered."""
        ...

    def on_remove(self, block: int) -> None:
        """The id is gone, evicted (then it was offered) or otherwise; it may come back as a new one."""
        ...

    def victim(self) -> int | None:
        """The offered id that should leave next, or None when nothing is offered. Asked again before anything else happens, it answers the
        same. O(log n) amortised."""
        ...


PolicyFactory: TypeAlias = Callable[[CacheShape], EvictionPolicy]
EVICTION_POLICIES: Registry[PolicyFactory] = Registry("eviction policy")
"""What an online cache can use."""
