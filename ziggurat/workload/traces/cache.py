# SPDX-License-Identifier: Apache-2.0
"""What a prefix cache of a given size would have found in a trace: the engine's own paged store, forest and eviction policies, no model.

Requests go through the store one after another, in order of arrival: each finds what is cached, adds what is not, and lets go. What is
left out: requests that overlap in time (they hold blocks while they run), and generated tokens (their ids are in no trace). An oracle
(Belady) is told the whole trace beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.memory.block_cache import Eviction
from ziggurat.memory.eviction import EVICTION_POLICIES, ORACLES, CacheShape, EvictionPolicy, Future
from ziggurat.memory.forest import next_hash, root_hash
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.blocks import PrefixSymbols, prefix_source

UNLIMITED_BLOCKS = 1 << 40
"""A pool costs nothing until its blocks are taken, so this is a cache that never evicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetting:
    """One cache to try.

    Attributes:
        policy: a name of `EVICTION_POLICIES` or of `ORACLES`.
        capacity_blocks: None never evicts.

    Raises:
        ConfigError: no such policy, or a capacity below one block.
    """

    policy: str
    capacity_blocks: int | None

    def __post_init__(self) -> None:
        if self.policy not in ORACLES:
            EVICTION_POLICIES.get(self.policy)
        if self.capacity_blocks is not None and self.capacity_blocks < 1:
            raise ConfigError(f"a cache needs at least one block, got {self.capacity_blocks}")


def _same(setting: CacheSetting) -> CacheSetting:
    """A cache that never evicts is the same under every policy."""
    return setting if setting.capacity_blocks is not None else CacheSetting(policy="lru", capacity_blocks=None)


@dataclass(slots=True)
class _Cache:
    store: PagedKVStore
    unit_tokens: int
    hit_tokens: int = 0
    hit_blocks: int = 0
    num_hit_requests: int = 0
    num_oversized: int = 0

    def serve(self, symbols: Sequence[int], num_whole: int, salt: str) -> None:
        store, block = self.store, self.store.block_size
        num_cached = store.open("request", symbols, salt=salt)
        self.hit_tokens += num_cached * self.unit_tokens
        self.hit_blocks += num_cached // block
        self.num_hit_requests += num_cached > 0
        # A prompt may be longer than the cache: then its beginning is cached.
        num_kept = min(num_whole, store.total_blocks()[0])
        self.num_oversized += num_kept < num_whole
        new = symbols[num_cached : num_kept * block]
        if new:
            store.reserve("request", len(new))
            store.commit("request", new)
        store.release("request")


@dataclass(slots=True)
class CacheSimulation:
    """Sends a trace through several caches at once.

    Args:
        block_tokens: tokens per block.

    Raises:
        ConfigError: no cache, or a block below one token.
    """

    settings: Sequence[CacheSetting]
    block_tokens: int
    num_requests: int = 0
    query_tokens: int = 0
    query_blocks: int = 0
    num_unknown: int = 0
    _caches: dict[CacheSetting, _Cache] = field(default_factory=dict)
    _symbols: PrefixSymbols = field(init=False)
    _future: Future | None = None

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise ConfigError(f"a block must have at least one token, got {self.block_tokens}")
        if not self.settings:
            raise ConfigError("no cache to simulate: give at least one policy and one capacity")
        self._symbols = PrefixSymbols(self.block_tokens)

    def run(self, arrivals: Iterable[Arrival]) -> CacheSimulation:
        """Send all of them. With an oracle among the settings they are held in memory and gone through twice.

        Raises:
            TraceError: see `PrefixSymbols.of`.
        """
        if any(setting.policy in ORACLES for setting in self.settings):
            arrivals = list(arrivals)
            self._future = Future.of(self._keys(arrivals))
        for arrival in arrivals:
            self.add(arrival)
        return self

    def add(self, arrival: Arrival) -> None:
        """Send one request. Requests of different models never share."""
        symbols = self._symbols.of(arrival)
        unit = self._symbols.unit
        assert unit is not None
        if not self._caches:
            size = self.block_tokens // unit
            different = dict.fromkeys(_same(setting) for setting in self.settings)
            self._caches = {each: _Cache(_store(each, size, self._future), unit) for each in different}
        if self._future is not None:
            self._future.now = self.num_requests
        self.num_requests += 1
        self.num_unknown += prefix_source(arrival) == "none"
        self.query_tokens += arrival.prompt_len
        self.query_blocks += arrival.prompt_len // self.block_tokens
        num_whole = arrival.prompt_len // self.block_tokens
        for cache in self._caches.values():
            # Only whole blocks are cached: the last number may stand for a part of a unit.
            cache.serve(symbols, num_whole, arrival.model)

    def _keys(self, arrivals: Iterable[Arrival]) -> Iterator[list[int]]:
        """The keys of every request's whole blocks, as the forest makes them."""
        for arrival in arrivals:
            symbols = self._symbols.of(arrival)
            assert self._symbols.unit is not None
            size, path_hash, keys = self.block_tokens // self._symbols.unit, root_hash(arrival.model), []
            for index in range(arrival.prompt_len // self.block_tokens):
                path_hash = next_hash(path_hash, tuple(symbols[index * size : (index + 1) * size]))
                keys.append(path_hash)
            yield keys

    def rows(self) -> list[dict[str, Any]]:
        """One row per cache; docs/traces.md has the keys."""
        return [
            {
                "policy": setting.policy,
                "capacity_blocks": setting.capacity_blocks,
                "query_tokens": self.query_tokens,
                "hit_tokens": cache.hit_tokens,
                "token_hit_ratio": cache.hit_tokens / self.query_tokens,
                "query_blocks": self.query_blocks,
                "hit_blocks": cache.hit_blocks,
                "block_hit_ratio": cache.hit_blocks / self.query_blocks if self.query_blocks else None,
                "num_hit_requests": cache.num_hit_requests,
                "evicted_blocks": cache.store.counters.evicted_blocks,
                "cached_blocks": cache.store.stats()[0].cached,
                "num_oversized_requests": cache.num_oversized,
            }
            for setting, cache in ((setting, self._caches[_same(setting)]) for setting in self.settings if self._caches)
        ]


def _store(setting: CacheSetting, block_size: int, future: Future | None) -> PagedKVStore:
    # Only names of blocks are handled, so layers and shapes of the group do not matter.
    group = KVGroup(index=0, layers=(0,), num_kv_heads=1, head_dim=1)
    blocks = UNLIMITED_BLOCKS if setting.capacity_blocks is None else setting.capacity_blocks
    if setting.policy in ORACLES:
        if future is None:
            raise ConfigError(f"policy {setting.policy!r} needs the whole trace: use run(), not add()")
        new_policy: Callable[[CacheShape], EvictionPolicy] = partial(ORACLES.get(setting.policy), future=future)
    else:
        new_policy = EVICTION_POLICIES.get(setting.policy)
    return PagedKVStore(
        [group], [blocks], block_size, lease=None, block_bytes=[0], eviction=Eviction(new_policy=new_policy)
    )
