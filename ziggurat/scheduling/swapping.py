# SPDX-License-Identifier: Apache-2.0
"""Preempted sequences on their way to the swap space and back: decides what moves, and keeps the moves until a batch carries them out."""

from __future__ import annotations

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
        """An admitted sequence gets back what the prefix cache did not have. Falls back to computing where blocks are short."""
        num_tokens = self.space.tokens(seq.seq_id)
        if num_tokens <= seq.num_computed:
            self.space.resume(seq.seq_id)
            return
        first = seq.num_computed
        try:
            while seq.num_computed < num_tokens:
                count = min(self._max_chunk_tokens, num_tokens - seq.num_computed)
                copies = self._store.reserve(seq.seq_id, count)
                assert not copies, "behind whole cached blocks nothing is shared"
                self._store.commit(seq.seq_id, seq.slice_ids(seq.num_computed, count))
                seq.num_computed += count
        except OutOfBlocks:
            # What was committed so far is copied back; the rest is computed.
            num_tokens = seq.num_computed
        moves = self.space.fetch(seq.seq_id, self._store.view(seq.seq_id).tables, first, num_tokens)
        self.moves += moves
        self._counters.swapped_in_tokens += num_tokens - first
        self._loaded.append(seq)

    def forget(self, seq_id: str) -> None:
        """A sequence has ended."""
        self.space.drop(seq_id)

    def take_moves(self) -> tuple[MoveOp, ...]:
        """For the next batch."""
        moves, self.moves = tuple(self.moves), []
        self._loaded.clear()
        return moves

    def on_failure(self) -> None:
        """A batch failed and nobody knows which of its moves were made: no copy is trusted any more."""
        self.space.clear()
        self.moves.clear()
