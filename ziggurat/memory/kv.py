# SPDX-License-Identifier: Apache-2.0
"""The interface of every KV space, and the plain descriptors that cross it.

Layout of a paged group (block-major: one block is one copy and one hole punched)::

    pool of group g:  [block][layer of the group][key | value][kv head][what the kernels keep there]
    one block table per (sequence, group): token t lives in block table[t // block_size], slot t % block_size

Half-open token ranges of one sequence::

    [0, num_cached)             found in the prefix forest, computed earlier by somebody
    [num_cached, num_computed)  computed for this sequence and committed
    [num_computed, reserved)    space taken, values not there yet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ziggurat.memory.forest import PrefixNode

DROPPED = -1
"""Table entry of a block that left the window: never read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOp:
    """Copy one whole block of a group, before the step runs (copy-on-write)."""

    group: int
    source: int
    destination: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVView:
    """What an executor needs to know of one sequence's KV: block tables per group and how many tokens have space."""

    tables: tuple[tuple[int, ...], ...]
    num_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVStats:
    """Counts of one group's blocks: ``free`` were never used or hold nothing, ``cached`` hold a reusable prefix and may be evicted."""

    total: int
    free: int
    cached: int

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self.total - self.free - self.cached


class CacheWatcher(Protocol):
    """Who is told what becomes of cached prefixes (`KVStore.watch_cache`)."""

    def on_evict(self, node: PrefixNode) -> None:
        """A prefix leaves because its blocks are wanted; they keep their bytes until the next batch runs."""
        ...

    def on_drop(self) -> None:
        """All that nobody holds was forgotten on purpose: nothing of it may be found again."""
        ...


class KVStore(Protocol):
    """Space for the KV of many sequences. Sequences are named by their id; ids are not reused while open.

    Block counts are tuples with one entry per KV group. All methods are deterministic and O(blocks touched).
    """

    block_size: int
    share_quantum_tokens: int
    last_miss_reason: str | None
    """Why the last `open` did not find more cached; None when it could not have."""

    def open(self, seq_id: str, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        """Start a sequence, taking over the longest cached prefix (never all of its tokens). Returns the cached tokens.

        Args:
            max_cached: the most tokens to take over, rounded down to whole blocks; None is no limit.
        """
        ...

    def match(self, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        """How many tokens ``open`` would find cached, without taking anything."""
        ...

    def free_blocks(self) -> tuple[int, ...]:
        """Blocks that can be had now: free ones and evictable cached ones."""
        ...

    def total_blocks(self) -> tuple[int, ...]:
        """The size of each group's pool."""
        ...

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        """Blocks that ``reserve(seq_id, num_tokens)`` would take (copy-on-write included)."""
        ...

    def needed_to_open(
        self, token_ids: Sequence[int], num_tokens: int, *, salt: str = "", max_cached: int | None = None
    ) -> tuple[int, ...]:
        """Blocks that ``open`` followed by ``reserve(num_tokens)`` would remove from ``free_blocks()``: new ones, and cached ones
        that become pinned."""
        ...

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        """The most blocks a lone sequence that grows to ``num_tokens`` ever holds at once (admission: can it ever fit?)."""
        ...

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        """Blocks that ``release(seq_id)`` would give back to ``free_blocks()`` (those that nobody else holds)."""
        ...

    def reserve(self, seq_id: str, num_tokens: int) -> list[CopyOp]:
        """Take space for ``num_tokens`` more tokens after the computed ones.

        Raises:
            OutOfBlocks: not enough; nothing was taken.
        """
        ...

    def commit(self, seq_id: str, token_ids: Sequence[int]) -> None:
        """The next ``len(token_ids)`` reserved tokens have been computed with these ids: full blocks become shareable, blocks that
        left the window are given back."""
        ...

    def truncate(self, seq_id: str, num_tokens: int) -> None:
        """Forget the tokens from ``num_tokens`` on and the space reserved for them.

        Raises:
            WindowPassed: a window group has given back what the remaining tokens need; nothing was changed. Never raised for
                reserved tokens that were not committed.
        """
        ...

    def fork(self, parent_id: str, child_id: str) -> None:
        """A second sequence with the same computed tokens; blocks are shared until one of them writes."""
        ...

    def release(self, seq_id: str) -> None:
        """End a sequence. Its full blocks stay reusable, last ones evicted first, until somebody needs the space."""
        ...

    def forget(self, token_ids: Sequence[int], *, salt: str = "") -> None:
        """Free what is cached of these tokens, last ones first, as far as nobody holds it and nothing longer goes on from it."""
        ...

    def watch_cache(self, watcher: CacheWatcher) -> None:
        """Tell somebody from now on what becomes of cached prefixes."""
        ...

    def view(self, seq_id: str) -> KVView:
        """The sequence's descriptor for executors."""
        ...

    def stats(self) -> tuple[KVStats, ...]:
        """Counts per group."""
        ...

    def audit(self) -> None:
        """Check every invariant (reference counts, free lists, tables); an assertion names the first that fails."""
        ...


class OutOfBlocks(Exception):
    """Internal signal of a KV space: the caller asked for more blocks than ``free_blocks`` said. Never reaches a user."""


class WindowPassed(Exception):
    """Internal signal of a KV space: a sequence cannot go back that far; release it and compute it again. Never reaches a user."""


def spare_blocks(store: KVStore, num_tokens: int) -> int:
    """Blocks of each group that may be set aside so that a lone sequence of so many tokens still fits."""
    return min(total - need for total, need in zip(store.total_blocks(), store.peak_blocks(num_tokens), strict=True))
