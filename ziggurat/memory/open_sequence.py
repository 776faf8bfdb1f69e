# SPDX-License-Identifier: Apache-2.0
"""What the paged store keeps of one open sequence, and the leases that say who holds which bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ziggurat.memory.block_pool import BlockPool
from ziggurat.memory.forest import PrefixNode
from ziggurat.memory.ledger import Lease


@dataclass(slots=True, kw_only=True)
class OpenSequence:
    """A sequence's half of the store.

    Attributes:
        tables: one per group, all of the same length; ``[first[g], len)`` are blocks it holds, those before are DROPPED.
        num_charged: blocks per group whose bytes are in its lease.
        tail: the last of ``nodes`` or the root of its salt; pinned.
        nodes: one per full computed block; empty when prefix caching is off.
        rest: the computed tokens after the last full block; empty when prefix caching is off.
        view_tables: the tables as they went out last, or None when they changed since.
    """

    seq_id: str
    tables: list[list[int]]
    first: list[int]
    num_charged: list[int]
    tail: PrefixNode
    lease: Lease | None
    nodes: list[PrefixNode] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_reserved: int = 0
    view_tables: tuple[tuple[int, ...], ...] | None = None


class KVAccounts:
    """Keeps one child lease per open sequence and one for blocks that no single sequence pays for, inside the pool's lease.

    A block's bytes are in the lease of the sequence that took it until that sequence lets go of it; from then on, while others
    share it or it is cached, in "shared and cached". Without a pool lease nothing is kept.
    """

    def __init__(self, pools: Sequence[BlockPool], block_bytes: Sequence[int], lease: Lease | None) -> None:
        needed_bytes = sum(pool.total * size for pool, size in zip(pools, block_bytes, strict=True))
        assert lease is None or needed_bytes <= lease.free_bytes, f"{needed_bytes} bytes of blocks, but {lease}"
        self._pools = pools
        self._block_bytes = tuple(block_bytes)
        self._pool_lease = lease
        self._shared = self._child(
            "shared and cached", "KV of cached prefixes, and of ended sequences that others share"
        )

    def open(self, seq_id: str) -> Lease | None:
        """An empty lease for a sequence."""
        return self._child(seq_id, "KV of one sequence")

    def settle(self, seq: OpenSequence | None) -> None:
        """Make the leases of a sequence and of the shared blocks as large as what they hold. O(groups)."""
        if self._shared is None:
            return
        changes = [(self._bytes(pool.num_shared for pool in self._pools), self._shared)]
        if seq is not None and seq.lease is not None:
            changes.append((self._bytes(seq.num_charged), seq.lease))
        # What shrinks goes first, so that the parent's bytes are never exceeded in between.
        for num_bytes, lease in sorted(changes, key=lambda change: change[0] - change[1].num_bytes):
            if num_bytes != lease.num_bytes:
                lease.resize(num_bytes)

    def close(self) -> None:
        """Give the shared lease back."""
        if self._shared is not None:
            self._shared.release()

    def audit(self, sequences: Sequence[OpenSequence]) -> None:
        """Check that every lease has the bytes of its blocks."""
        if self._shared is None:
            return
        assert self._shared.num_bytes == self._bytes(pool.num_shared for pool in self._pools), (
            f"{self._shared} is wrong"
        )
        for seq in sequences:
            assert seq.lease is not None and seq.lease.num_bytes == self._bytes(seq.num_charged), (
                f"{seq.lease} is wrong"
            )

    def _bytes(self, num_blocks: Iterable[int]) -> int:
        return sum(count * size for count, size in zip(num_blocks, self._block_bytes, strict=True))

    def _child(self, owner: str, why: str) -> Lease | None:
        return self._pool_lease and self._pool_lease.reserve(self._pool_lease.kind, owner, 0, why=why)
