# SPDX-License-Identifier: Apache-2.0
"""Preempted sequences and idle prefixes on their way to the swap space and back: decides what moves, and keeps the moves until a batch
carries them out.

A cached prefix that has to leave the pool while a step is planned is copied out, and comes back when a sequence begins with it: what an
idle conversation has computed goes down a tier and not away. Blocks that others take between steps (adapters, a smaller budget) are not
kept: their bytes are gone before a batch could copy them.
"""

from __future__ import annotations

from ziggurat.memory.forest import PrefixNode, next_digest, root_digest
from ziggurat.memory.kv import KVStore, OutOfBlocks
from ziggurat.memory.swap import MoveOp, SwapSpace
from ziggurat.scheduling.outputs import Counters
from ziggurat.scheduling.preemption import PreemptionCosts, PreemptionMode
from ziggurat.scheduling.sequence import SequenceState


class Swapper:
    """Between a store and a swap space.

    Args:
        max_chunk_tokens: what the store reserves at once at most.

    Attributes:
        costs: measured by whoever runs the engine.
        moves: decided and not yet handed to an executor, in order.
    """

    def __init__(
        self, store: KVStore, space: SwapSpace, mode: PreemptionMode, counters: Counters, max_chunk_tokens: int
    ) -> None:
        self._store, self.space, self._mode, self._counters = store, space, mode, counters
        self._max_chunk_tokens = max_chunk_tokens
        self.costs = PreemptionCosts()
        self.moves: list[MoveOp] = []
        self._loaded: list[SequenceState] = []
        self._kept: list[tuple[bytes, list[MoveOp]]] = []
        self._is_planning = False
        self._digests: dict[str, list[bytes]] = {}
        store.watch_cache(self)

    def begin(self) -> None:
        """A step is being planned: what leaves the pool from now until `take_moves` can still be copied."""
        self._is_planning = True

    def on_drop(self) -> None:
        """The cache was dropped on purpose: what left it earlier goes with it."""
        self.space.drop_prefixes()

    def on_evict(self, node: PrefixNode) -> None:
        """A cached prefix leaves the pool."""
        size = self.space.block_size
        if not self._is_planning or not self._mode(size, size, self.costs):
            return
        digest = node.digest
        slot = self.space.keep(digest)
        if slot is None:
            return
        moves = [
            MoveOp(group=group, direction="out", block=block, slot=slot) for group, block in enumerate(node.blocks)
        ]
        self.moves += moves
        self._kept.append((digest, moves))
        self._counters.swapped_out_tokens += size

    def kept_tokens(self, seq: SequenceState, first_token: int) -> int:
        """Tokens from ``first_token`` on, a multiple of the block size, that prefixes in the swap space have of a sequence; never its
        last one. 0 where computing them is cheaper."""
        space, size = self.space, self.space.block_size
        if seq.max_cached is not None or not space.has_prefixes:
            return 0
        digests, first = self._digests_of(seq), first_token // size
        last = first
        while last < len(digests) and space.has(digests[last]):
            last += 1
        num_tokens = (last - first) * size
        return num_tokens if self._mode(0, num_tokens, self.costs) else 0

    def _digests_of(self, seq: SequenceState) -> list[bytes]:
        """Of a sequence's whole blocks but the one with its last token."""
        size, num_blocks = self.space.block_size, (seq.num_tokens - 1) // self.space.block_size
        digests = self._digests.setdefault(seq.seq_id, [])
        digest = digests[-1] if digests else root_digest(seq.cache_salt)
        for index in range(len(digests), num_blocks):
            digest = next_digest(digest, seq.slice_ids(index * size, size))
            digests.append(digest)
        return digests[:num_blocks]

    def save(self, seq: SequenceState) -> None:
        """A running sequence is about to lose its blocks: keep a copy if that is cheaper than computing them again, and if there is room.

        Prompts that are read (scored, embedded as a mean) need their rows, which no copy has.
        """
        num_tokens, space = seq.num_computed, self.space
        num_out = space.new_blocks(seq.seq_id, num_tokens) * space.block_size
        if (
            not num_tokens
            or seq.max_cached is not None
            or not space.can_store(seq.seq_id, num_tokens)
            or not self._mode(num_out, num_tokens, self.costs)
        ):
            space.drop(seq.seq_id)
            return
        self.moves += space.store(seq.seq_id, self._store.view(seq.seq_id).tables, num_tokens)
        self._counters.swapped_out_tokens += num_out

    def load(self, seq: SequenceState) -> None:
        """An admitted sequence gets back what the prefix cache did not have: from its own copy, else from prefixes. Falls back to computing
        where blocks are short."""
        num_tokens = self.space.tokens(seq.seq_id)
        if num_tokens <= seq.num_computed:
            self.space.resume(seq.seq_id)
            self._load_prefix(seq)
            return
        first = seq.num_computed
        self._take_back(seq, num_tokens)
        self.moves += self.space.fetch(seq.seq_id, self._store.view(seq.seq_id).tables, first, seq.num_computed)
        self._counters.swapped_in_tokens += seq.num_computed - first
        self._loaded.append(seq)

    def _load_prefix(self, seq: SequenceState) -> None:
        num_kept = self.kept_tokens(seq, seq.num_computed) if seq.num_computed % self.space.block_size == 0 else 0
        if not num_kept:
            return
        size, first = self.space.block_size, seq.num_computed
        # Taking blocks pushes other prefixes out, and these must not give way to them.
        pinned = self.space.pin(self._digests_of(seq)[first // size : (first + num_kept) // size])
        self._take_back(seq, first + num_kept)
        tables, num_blocks = self._store.view(seq.seq_id).tables, (seq.num_computed - first) // size
        self.moves += [
            MoveOp(group=group, direction="in", block=table[first // size + index], slot=slot)
            for index, (_, slot) in enumerate(pinned[:num_blocks])
            for group, table in enumerate(tables)
        ]
        self.space.unpin(pinned)
        self._counters.swapped_in_tokens += seq.num_computed - first

    def _take_back(self, seq: SequenceState, num_tokens: int) -> None:
        """Space for tokens that are copied and not computed, as far as there is any; they count as computed."""
        try:
            while seq.num_computed < num_tokens:
                count = min(self._max_chunk_tokens, num_tokens - seq.num_computed)
                copies = self._store.reserve(seq.seq_id, count)
                assert not copies, "behind whole cached blocks nothing is shared"
                self._store.commit(seq.seq_id, seq.slice_ids(seq.num_computed, count))
                seq.num_computed += count
        except OutOfBlocks:
            return  # the rest is computed

    def forget(self, seq_id: str) -> None:
        """A sequence has ended."""
        self.space.drop(seq_id)
        self._digests.pop(seq_id, None)

    def take_moves(self, is_run: bool) -> tuple[MoveOp, ...]:
        """For the next batch. Without one the moves wait, but for prefixes that left the pool: until a batch runs, others may write
        there."""
        self._is_planning = False
        if not is_run:
            for digest, copies in self._kept:
                self.space.discard(digest)
                self.moves = [move for move in self.moves if move not in copies]
        self._kept.clear()
        if not is_run:
            return ()
        moves, self.moves = tuple(self.moves), []
        self._loaded.clear()
        return moves

    def on_failure(self) -> None:
        """A batch failed and nobody knows which of its moves were made: no copy is trusted any more."""
        self.space.clear()
        self.moves.clear()
