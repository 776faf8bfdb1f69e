# SPDX-License-Identifier: Apache-2.0
"""A small, slow, honest KVStore of one group: reference counts in a dict, prefixes by their tokens. What tests of the scheduler
stand on when they do not want the real store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ziggurat.memory.kv import CopyOp, KVStats, KVView, OutOfBlocks
from ziggurat.units import ceil_div

Key = tuple[str, tuple[int, ...]]


@dataclass
class _Open:
    table: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # computed ones
    salt: str = ""


class BlockStore:
    """Blocks of ``block_size`` tokens; a full block can be found by everything that stands before its end."""

    def __init__(self, num_blocks: int, block_size: int = 4) -> None:
        self.block_size = self.share_quantum_tokens = block_size
        self.last_miss_reason: str | None = None
        self._total = num_blocks
        self._references: Counter[int] = Counter()
        self._free = list(range(num_blocks))
        self._cached: dict[int, None] = {}  # nobody holds them; oldest first
        self._by_key: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._open: dict[str, _Open] = {}

    def _prefix(self, token_ids: Sequence[int], salt: str, limit: int | None = None) -> list[int]:
        found = []
        most = min(len(token_ids) - 1, len(token_ids) if limit is None else limit)
        for end in range(self.block_size, most + 1, self.block_size):
            block = self._by_key.get((salt, tuple(token_ids[:end])))
            if block is None:
                break
            found.append(block)
        return found

    def open(self, seq_id: str, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        assert seq_id not in self._open
        blocks = self._prefix(token_ids, salt, max_cached)
        self.last_miss_reason = None if blocks else "no common beginning"
        for block in blocks:
            self._references[block] += 1
            self._cached.pop(block, None)
        num_cached = len(blocks) * self.block_size
        self._open[seq_id] = _Open(blocks, list(token_ids[:num_cached]), salt)
        return num_cached

    def match(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        return len(self._prefix(token_ids, salt)) * self.block_size

    def free_blocks(self) -> tuple[int, ...]:
        return (len(self._free) + len(self._cached),)

    def total_blocks(self) -> tuple[int, ...]:
        return (self._total,)

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        entry = self._open[seq_id]
        done = len(entry.tokens)
        new = ceil_div(done + num_tokens, self.block_size) - len(entry.table)
        is_shared = done % self.block_size > 0 and self._references[entry.table[done // self.block_size]] > 1
        return (new + is_shared,)

    def needed_to_open(self, token_ids: Sequence[int], num_tokens: int, *, salt: str = "") -> tuple[int, ...]:
        blocks = self._prefix(token_ids, salt)
        done = len(blocks) * self.block_size
        pinned = sum(block in self._cached for block in blocks)
        return (ceil_div(done + num_tokens, self.block_size) - len(blocks) + pinned,)

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        return (ceil_div(num_tokens, self.block_size),)

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        return (sum(self._references[block] == 1 for block in self._open[seq_id].table),)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop(0)
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            del self._by_key[self._key_of.pop(block)]
        self._references[block] = 1
        return block

    def reserve(self, seq_id: str, num_tokens: int) -> list[CopyOp]:
        if self.needed_blocks(seq_id, num_tokens)[0] > self.free_blocks()[0]:
            raise OutOfBlocks
        entry = self._open[seq_id]
        done, copies = len(entry.tokens), []
        if done % self.block_size and self._references[shared := entry.table[done // self.block_size]] > 1:
            self._references[shared] -= 1
            entry.table[done // self.block_size] = self._take()
            copies.append(CopyOp(group=0, source=shared, destination=entry.table[done // self.block_size]))
        while len(entry.table) * self.block_size < done + num_tokens:
            entry.table.append(self._take())
        return copies

    def commit(self, seq_id: str, token_ids: Sequence[int]) -> None:
        entry = self._open[seq_id]
        first = len(entry.tokens) // self.block_size
        entry.tokens += token_ids
        assert len(entry.tokens) <= len(entry.table) * self.block_size
        for index in range(first, len(entry.tokens) // self.block_size):
            key = (entry.salt, tuple(entry.tokens[: (index + 1) * self.block_size]))
            if key not in self._by_key and entry.table[index] not in self._key_of:
                self._by_key[key] = entry.table[index]
                self._key_of[entry.table[index]] = key

    def truncate(self, seq_id: str, num_tokens: int) -> None:
        raise NotImplementedError("the scheduler does not truncate yet")

    def fork(self, parent_id: str, child_id: str) -> None:
        parent = self._open[parent_id]
        table = parent.table[: ceil_div(len(parent.tokens), self.block_size)]
        self._references.update(table)
        self._open[child_id] = _Open(table, list(parent.tokens), parent.salt)

    def release(self, seq_id: str) -> None:
        for block in reversed(self._open.pop(seq_id).table):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def view(self, seq_id: str) -> KVView:
        entry = self._open[seq_id]
        return KVView(
            tables=(tuple(entry.table),), num_tokens=len(entry.table) * self.block_size, block_size=self.block_size
        )

    def stats(self) -> tuple[KVStats, ...]:
        return (KVStats(total=self._total, free=len(self._free), cached=len(self._cached)),)

    def audit(self) -> None:
        held = Counter(block for entry in self._open.values() for block in entry.table)
        assert held == +self._references
        places = [*self._free, *self._cached, *held]
        assert sorted(places) == list(range(self._total))
        assert all(self._by_key[key] == block for block, key in self._key_of.items())
