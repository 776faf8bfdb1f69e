# SPDX-License-Identifier: Apache-2.0
"""Host copies of KV: of preempted sequences, and of cached prefixes that left the pool. Who has which slots, and which blocks have to move.

A sequence that gives up its blocks keeps a copy here and gets it back instead of computing it again (FastSwitch, arXiv 2411.18424). KV of
a position never changes once it is computed, so a copy stays good while its sequence runs: the next time only what has been computed since
is copied out. Prefixes (what an idle conversation leaves) are given up first when slots are short, the one that was not used for longest
before others; then copies of running sequences.

Names slots and blocks only; the bytes are the executor's. Pools with windows are not swapped: what has left a window is not there to copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ziggurat.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOp:
    """Copy one whole block between a KV pool and the swap space. Moves are carried out in the order in which they were decided."""

    group: int
    direction: Literal["out", "in"]
    block: int
    slot: int


@dataclass(slots=True)
class _Copy:
    """What is here of one sequence: a slot per block, good for its first ``num_tokens`` tokens."""

    slots: list[int] = field(default_factory=list)
    num_tokens: int = 0
    is_running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapStats:
    """Slots in total, and those that hold a copy: of waiting sequences, of running ones and of prefixes (which may be given up)."""

    total: int
    waiting: int
    running: int
    prefixes: int


class SwapSpace:
    """Slots for blocks of every KV group at once: slot s holds block copies of all groups.

    Args:
        num_slots: how many blocks of each group fit.
        num_groups: KV groups; all of them keep everything (no windows).
        block_size: tokens per block.
    """

    def __init__(self, num_slots: int, num_groups: int, block_size: int) -> None:
        self.num_slots, self.num_groups, self.block_size = num_slots, num_groups, block_size
        self._free = list(range(num_slots - 1, -1, -1))
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._prefixes: OrderedDict[bytes, int] = OrderedDict()

    def keep(self, digest: bytes) -> int | None:
        """A slot for the block of a prefix that leaves the pool. None if it is here already, or sequences have all slots."""
        if digest in self._prefixes:
            self._prefixes.move_to_end(digest)
            return None
        if not self._free and not self._prefixes:
            return None
        slot = self._free.pop() if self._free else self._prefixes.popitem(last=False)[1]
        self._prefixes[digest] = slot
        return slot

    def pin(self, digests: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Take prefixes' blocks out of what may be given up, with their slots; `unpin` puts them back as the ones used last."""
        return [(digest, self._prefixes.pop(digest)) for digest in digests]

    def unpin(self, pinned: Sequence[tuple[bytes, int]]) -> None:
        """See `pin`. A block that was kept anew meanwhile stays where it was before."""
        for digest, slot in pinned:
            if (newer := self._prefixes.pop(digest, None)) is not None:
                self._free.append(newer)
            self._prefixes[digest] = slot

    def has(self, digest: bytes) -> bool:
        """Whether the block of a prefix is here."""
        return digest in self._prefixes

    @property
    def has_prefixes(self) -> bool:
        """Whether the block of any prefix is here."""
        return bool(self._prefixes)

    def drop_prefixes(self) -> None:
        """Forget them all; copies of sequences stay."""
        for digest in list(self._prefixes):
            self.discard(digest)

    def discard(self, digest: bytes) -> None:
        """Forget a prefix's block."""
        if (slot := self._prefixes.pop(digest, None)) is not None:
            self._free.append(slot)

    def new_blocks(self, seq_id: str, num_tokens: int) -> int:
        """Blocks that `store` would copy out: those that are not here yet, or were not full when they were copied."""
        return ceil_div(num_tokens, self.block_size) - self._num_good(seq_id, num_tokens)

    def can_store(self, seq_id: str, num_tokens: int) -> bool:
        """Whether there is room: free slots, and those of prefixes and of other running sequences' copies."""
        held = len(self._copies[seq_id].slots) if seq_id in self._copies else 0
        others = sum(len(copy.slots) for name, copy in self._copies.items() if copy.is_running and name != seq_id)
        return ceil_div(num_tokens, self.block_size) - held <= len(self._free) + len(self._prefixes) + others

    def store(self, seq_id: str, tables: Sequence[Sequence[int]], num_tokens: int) -> list[MoveOp]:
        """Copy a sequence's first ``num_tokens`` tokens out. `can_store` has said that there is room. O(blocks).

        Args:
            tables: its block table in every group.
        """
        num_blocks, num_good = ceil_div(num_tokens, self.block_size), self._num_good(seq_id, num_tokens)
        copy = self._copies.setdefault(seq_id, _Copy())
        copy.is_running = False
        self._copies.move_to_end(seq_id)
        if num_tokens <= copy.num_tokens:
            return []
        while len(copy.slots) < num_blocks:
            if not self._free:
                self._give_up_one()
            copy.slots.append(self._free.pop())
        moves = [
            MoveOp(group=group, direction="out", block=table[index], slot=copy.slots[index])
            for index in range(num_good, num_blocks)
            for group, table in enumerate(tables)
        ]
        copy.num_tokens = num_tokens
        return moves

    def tokens(self, seq_id: str) -> int:
        """Tokens of a waiting sequence that can be had back; 0 if it has no copy here."""
        copy = self._copies.get(seq_id)
        return 0 if copy is None or copy.is_running else copy.num_tokens

    def fetch(self, seq_id: str, tables: Sequence[Sequence[int]], first_token: int, end_token: int) -> list[MoveOp]:
        """Copy back the tokens ``[first_token, end_token)``; the first is a multiple of the block size. The copy stays until somebody
        needs its slots."""
        copy = self._copies[seq_id]
        assert first_token % self.block_size == 0 and not copy.is_running and end_token <= copy.num_tokens
        copy.is_running = True
        return [
            MoveOp(group=group, direction="in", block=table[index], slot=copy.slots[index])
            for index in range(first_token // self.block_size, ceil_div(end_token, self.block_size))
            for group, table in enumerate(tables)
        ]

    def resume(self, seq_id: str) -> None:
        """A sequence runs again without its copy, for now: it may be given up."""
        if seq_id in self._copies:
            self._copies[seq_id].is_running = True

    def drop(self, seq_id: str) -> None:
        """Forget a sequence's copy."""
        copy = self._copies.pop(seq_id, None)
        if copy is not None:
            self._free += reversed(copy.slots)

    def clear(self) -> None:
        """Forget every copy: what they hold is not known any more."""
        for seq_id in list(self._copies):
            self.drop(seq_id)
        self.drop_prefixes()

    def stats(self) -> SwapStats:
        """Counts."""
        held = {True: 0, False: 0}
        for copy in self._copies.values():
            held[copy.is_running] += len(copy.slots)
        return SwapStats(total=self.num_slots, waiting=held[False], running=held[True], prefixes=len(self._prefixes))

    def audit(self) -> None:
        """Check that every slot is free or held once."""
        slots = [slot for copy in self._copies.values() for slot in copy.slots] + self._free
        slots += self._prefixes.values()
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost or held twice"
        for seq_id, copy in self._copies.items():
            assert len(copy.slots) >= ceil_div(copy.num_tokens, self.block_size), f"{seq_id} has too few slots"

    def _num_good(self, seq_id: str, num_tokens: int) -> int:
        """Blocks from the start whose copy is what the sequence has now: full ones, and all if nothing was computed since."""
        copy = self._copies.get(seq_id)
        if copy is None:
            return 0
        return (
            copy.num_tokens // self.block_size
            if num_tokens > copy.num_tokens
            else ceil_div(num_tokens, self.block_size)
        )

    def _give_up_one(self) -> None:
        """The prefix that was not used for longest, else the oldest copy of a running sequence."""
        if self._prefixes:
            self._free.append(self._prefixes.popitem(last=False)[1])
            return
        victim = next(name for name, copy in self._copies.items() if copy.is_running)
        self.drop(victim)
