# SPDX-License-Identifier: Apache-2.0
"""A model of a paged store: sequences as lists of tokens, memory as a dictionary from (group, block, slot) to what was written.

A slot holds the whole prefix that its KV entry depends on (a tuple of salt and tokens), so reading a wrong, stale or overwritten block
shows at once, whatever the way it got there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ziggurat.clock import VirtualClock
from ziggurat.memory.block_cache import Eviction
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.memory.kv import DROPPED, CopyOp
from ziggurat.memory.ledger import Lease, Ledger
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup

Prefix = tuple[object, ...]


def kv_group(index: int, window: int | None) -> KVGroup:
    return KVGroup(index=index, layers=(index,), num_kv_heads=1, head_dim=8, window=window)


def make_store(
    windows: Sequence[int | None],
    num_blocks: Sequence[int],
    block_size: int,
    *,
    enable_prefix_caching: bool = True,
    max_chunk_tokens: int | None = None,
    lease: Lease | None = None,
    policy: str = "lru",
) -> PagedKVStore:
    return PagedKVStore(
        [kv_group(index, window) for index, window in enumerate(windows)],
        num_blocks,
        block_size,
        lease=lease,
        block_bytes=[10 + index for index in range(len(windows))],
        enable_prefix_caching=enable_prefix_caching,
        max_chunk_tokens=max_chunk_tokens,
        eviction=Eviction(new_policy=EVICTION_POLICIES.get(policy), recompute_cost=lambda num_tokens: 1.0 + num_tokens),
    )


def make_ledger(windows: Sequence[int | None], num_blocks: Sequence[int]) -> tuple[Ledger, Lease]:
    """A ledger with a pool lease that holds exactly the blocks of `make_store`."""
    pool_bytes = sum(count * (10 + index) for index, count in enumerate(num_blocks))
    ledger = Ledger({"ram": pool_bytes}, VirtualClock())
    return ledger, ledger.reserve("kv", "pool", "ram", pool_bytes)


@dataclass
class ModelSequence:
    salt: str
    tokens: list[int]  # the computed ones
    reserved: int = 0  # tokens, computed ones included


@dataclass
class Memory:
    """What an executor's arena would hold, and the sequences as they should be."""

    store: PagedKVStore
    slots: dict[tuple[int, int, int], Prefix] = field(default_factory=dict)
    sequences: dict[str, ModelSequence] = field(default_factory=dict)

    def open(self, seq_id: str, tokens: Sequence[int], salt: str, max_cached: int | None = None) -> int:
        expected = self.store.match(tokens, salt=salt)
        if max_cached is not None and max_cached < expected:
            expected = -1
        cached = self.store.open(seq_id, tokens, salt=salt, max_cached=max_cached)
        assert cached == expected or (expected == -1 and cached <= max_cached)
        assert cached % self.store.block_size == 0
        assert cached < max(len(tokens), 1)
        assert (cached == (len(tokens) - 1) // self.store.block_size * self.store.block_size) or (
            self.store.last_miss_reason is not None or max_cached is not None
        )
        self.sequences[seq_id] = ModelSequence(salt, list(tokens[:cached]), cached)
        return cached

    def reserve(self, seq_id: str, num_tokens: int) -> list[CopyOp]:
        copies = self.store.reserve(seq_id, num_tokens)
        for copy in copies:
            assert copy.source != copy.destination
            for slot in range(self.store.block_size):
                key = (copy.group, copy.source, slot)
                self.slots[copy.group, copy.destination, slot] = self.slots.get(key, ("never written",))
        seq = self.sequences[seq_id]
        seq.reserved = max(seq.reserved, len(seq.tokens) + num_tokens)
        return copies

    def commit(self, seq_id: str, tokens: Sequence[int]) -> None:
        """What a step does: write the entries through the view, then commit."""
        seq, view = self.sequences[seq_id], self.store.view(seq_id)
        assert view.num_tokens == seq.reserved
        for token in tokens:
            position = len(seq.tokens)
            seq.tokens.append(token)
            for group, table in enumerate(view.tables):
                slot = (group, table[position // view.block_size], position % view.block_size)
                assert slot[1] != DROPPED
                self.slots[slot] = (seq.salt, *seq.tokens)
        self.store.commit(seq_id, tokens)

    def truncate(self, seq_id: str, num_tokens: int) -> None:
        self.store.truncate(seq_id, num_tokens)
        seq = self.sequences[seq_id]
        del seq.tokens[num_tokens:]
        seq.reserved = min(seq.reserved, max(num_tokens, len(seq.tokens)))

    def fork(self, parent_id: str, child_id: str) -> None:
        self.store.fork(parent_id, child_id)
        parent = self.sequences[parent_id]
        self.sequences[child_id] = ModelSequence(parent.salt, list(parent.tokens), len(parent.tokens))

    def release(self, seq_id: str) -> None:
        self.store.release(seq_id)
        del self.sequences[seq_id]

    def check(self) -> None:
        """Every sequence finds exactly its own prefix at every position that its next token sees."""
        for seq_id, seq in self.sequences.items():
            view = self.store.view(seq_id)
            assert view.num_tokens == seq.reserved
            kept = self.store.sequences[seq_id]
            spelled = [token for node in kept.nodes for token in node.key] + kept.rest
            assert spelled == (seq.tokens if self.store.enable_prefix_caching else []), f"{seq_id} stands elsewhere"
            for group, table in enumerate(view.tables):
                window = self.store.windows[group]
                first = 0 if window is None else max(0, len(seq.tokens) - window + 1)
                for position in range(first, len(seq.tokens)):
                    slot = (group, table[position // view.block_size], position % view.block_size)
                    found = self.slots.get(slot)
                    assert found == (seq.salt, *seq.tokens[: position + 1]), (
                        f"{seq_id} position {position} in {slot}: {found}"
                    )
