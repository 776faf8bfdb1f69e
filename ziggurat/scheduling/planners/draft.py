# SPDX-License-Identifier: Apache-2.0
"""Book-keeping that every planner needs: what is left of tokens, slots and blocks while a plan is being drawn up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ziggurat.scheduling.protocol import BatchPlan, Chunk, EngineState, SequenceView, TokenBudget
from ziggurat.units import ceil_div

Blocks = Sequence[int]


class Draft:
    """A plan in the making. Prices are those of the store before the step, so sums over sequences that share blocks are upper
    bounds, and a plan that fits here fits the store."""

    def __init__(self, state: EngineState, budget: TokenBudget) -> None:
        self.kv = state.kv
        self.tokens_left = budget.max_num_batched_tokens
        self.slots_left = budget.max_num_seqs - sum(seq.num_slots for seq in state.running)
        self.blocks_left = list(state.kv.free_blocks())
        self.running = list(state.running)
        self.preempts: list[str] = []
        self.admits: list[str] = []
        self.chunks: list[Chunk] = []

    def fits(self, blocks: Blocks, *, keep: Blocks | None = None) -> bool:
        """Whether that many blocks are left, with ``keep`` still free afterwards."""
        reserve = keep or [0] * len(blocks)
        return all(b + k <= left for b, k, left in zip(blocks, reserve, self.blocks_left, strict=True))

    def longest(self, price: Callable[[int], Blocks], limit: int) -> int:
        """The most tokens, up to ``limit``, whose price is left; 0 if there is none. Prices grow with tokens."""
        if limit > 0 and self.fits(price(limit)):
            return limit
        low, high = 0, max(limit, 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(price(middle)) else (low, middle)
        return low

    def run(self, seq: SequenceView, num_tokens: int) -> None:
        """Give a running sequence a chunk."""
        self._take(seq, num_tokens, self.kv.needed_blocks(seq.seq_id, num_tokens))

    def admit(self, seq: SequenceView, num_tokens: int) -> None:
        """Let a waiting sequence run, with its first chunk."""
        self._take(seq, num_tokens, self.kv.needed_to_admit(seq.seq_id, num_tokens))
        self.admits.append(seq.seq_id)
        self.slots_left -= seq.num_slots

    def _take(self, seq: SequenceView, num_tokens: int, price: Blocks) -> None:
        self.blocks_left = [left - blocks for left, blocks in zip(self.blocks_left, price, strict=True)]
        self.tokens_left -= num_tokens
        self.chunks.append(Chunk(seq_id=seq.seq_id, num_tokens=num_tokens))

    def preempt_last(self) -> SequenceView:
        """Preempt the sequence that was admitted last; it must not have a chunk yet."""
        victim = self.running.pop()
        assert all(chunk.seq_id != victim.seq_id for chunk in self.chunks), "a victim with a chunk"
        held = self.kv.held_blocks(victim.seq_id)
        self.blocks_left = [left + blocks for left, blocks in zip(self.blocks_left, held, strict=True)]
        self.slots_left += victim.num_slots
        self.preempts.append(victim.seq_id)
        return victim

    def run_decodes(self) -> None:
        """One token for every running sequence that needs just one, in order of admission; where a block is missing, the last
        running sequence is preempted, in the end the one that asks. The first one always runs: alone it fits."""
        index = 0
        while index < len(self.running):
            seq = self.running[index]
            index += 1
            if seq.num_uncomputed != 1:
                continue
            price = self.kv.needed_blocks(seq.seq_id, 1)
            while not self.fits(price) and self.running[-1] is not seq:
                self.preempt_last()
            if self.fits(price):
                self._take(seq, 1, price)
            elif len(self.running) > 1:
                self.preempt_last()

    def run_prefills(self) -> None:
        """Running prompts that are not finished share the tokens that are left, in order. Where blocks are short a chunk shrinks; if
        nothing at all could run, the last running sequence is preempted until the first one fits."""
        for seq in [seq for seq in self.running if seq.num_uncomputed > 1]:
            price = partial(self.kv.needed_blocks, seq.seq_id)
            limit = min(seq.num_uncomputed, self.tokens_left)
            length = self.longest(price, limit)
            while length == 0 and not self.chunks and self.running[-1] is not seq:
                self.preempt_last()
                length = self.longest(price, limit)
            if length > 0:
                self.run(seq, length)
            if seq is self.running[-1]:
                break  # those behind it have been preempted

    def go_on(self) -> None:
        """The first running prompt that is not finished gets as long a chunk as fits."""
        for seq in self.running:
            if seq.num_uncomputed > 1:
                price = partial(self.kv.needed_blocks, seq.seq_id)
                length = self.longest(price, min(seq.num_uncomputed, self.tokens_left))
                if length > 0:
                    self.run(seq, length)
                    return

    def make_room(self) -> None:
        """Only unfinished prompts are running and none fits: preempt from the end until the first one does."""
        while len(self.running) > 1 and not self.chunks:
            self.preempt_last()
            self.go_on()

    def admit_whole(self, waiting: Sequence[SequenceView], *, may_admit: Callable[[SequenceView], bool]) -> None:
        """Admit whole prompts from the head of the queue while tokens and slots last and ``may_admit`` says that there is space.

        With nothing running the head gets in with as long a chunk as fits: alone it can always go on. A prompt longer than the step
        is cut, which only happens when it is the first of the step. The first that is not admitted stops it.
        """
        num_before = len(self.admits)
        for seq in waiting:
            uncached = seq.num_tokens - self.kv.cached_tokens(seq.seq_id)
            is_second = len(self.admits) > num_before
            if seq.num_slots > self.slots_left or self.tokens_left < (uncached if is_second else 1):
                return
            is_alone = not self.running and not self.admits
            if not may_admit(seq) and not is_alone:
                return
            price = partial(self.kv.needed_to_admit, seq.seq_id)
            length = self.longest(price, min(uncached, self.tokens_left))
            if length == 0:
                return
            self.admit(seq, length)
            if length < uncached:
                return

    def whole(self, seq: SequenceView, uncomputed: int, price: Callable[[int], Blocks]) -> Blocks:
        """Blocks that finishing all of ``uncomputed`` tokens takes, chunk by chunk: windows never hold more than their peak.
        A prompt whose forks are still to come gets one block more for each, their first copy on write."""
        peak = self.kv.peak_blocks(seq.num_tokens)
        return [min(p, most) + seq.num_slots - 1 for p, most in zip(price(uncomputed), peak, strict=True)]

    def watermark(self, ratio: float) -> Blocks:
        """That share of each pool, rounded up."""
        scale = 10_000
        return [ceil_div(total * round(ratio * scale), scale) for total in self.kv.total_blocks()]

    def plan(self) -> BatchPlan:
        """The decision."""
        return BatchPlan(preempts=tuple(self.preempts), admits=tuple(self.admits), chunks=tuple(self.chunks))
