# SPDX-License-Identifier: Apache-2.0
"""The plainest cache: pages of one size, asked for one by one, no tree and no pins. Where policies are compared with theory.

One step: the page that is asked for comes in (a load) unless it is there; only then somebody leaves, never the page being served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ziggurat.errors import ConfigError
from ziggurat.memory.eviction.belady import Belady, Future
from ziggurat.memory.eviction.protocol import CacheShape, Entry, EvictionPolicy


@dataclass(slots=True)
class FlatCache:
    """Up to ``capacity`` pages under a policy; a page's id is its key.

    Attributes:
        num_loads: requests that did not find their page: the cost of the paging problem.

    Raises:
        ConfigError: a capacity below one page.
    """

    policy: EvictionPolicy
    capacity: int
    num_loads: int = 0
    pages: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError(f"a cache needs at least one page, got {self.capacity}")

    def request(self, page: int) -> int | None:
        """Serve one request. Returns the page that left for it, if one did."""
        if page in self.pages:
            self.policy.on_access(page)
            return None
        self.num_loads += 1
        self.policy.on_insert(page, Entry(key=page))
        victim = None
        if len(self.pages) == self.capacity:
            victim = self.policy.victim()
            assert victim is not None and victim != page, "a full cache offers all its pages"
            self.policy.on_remove(victim)
            self.pages.remove(victim)
        self.pages.add(page)
        self.policy.on_evictable(page, True)
        return victim

    def run(self, trace: Iterable[int]) -> int:
        """Serve all of them; returns the loads so far."""
        for page in trace:
            self.request(page)
        return self.num_loads


def lfd_loads(trace: Sequence[int], capacity: int) -> int:
    """The fewest loads that any cache of that capacity needs for the trace: Belady's rule. O(n log n)."""
    future = Future.of([page] for page in trace)
    cache = FlatCache(Belady(CacheShape(capacity_blocks=capacity), future), capacity)
    for now, page in enumerate(trace):
        future.now = now
        cache.request(page)
    return cache.num_loads
