# SPDX-License-Identifier: Apache-2.0
"""Prefill first: vLLM's default before chunked prefill. The baseline that stall-free planners are measured against."""

from __future__ import annotations

from functools import partial

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlan, EngineState, TokenBudget

WATERMARK_RATIO = 0.01


@PLANNERS.register("prefill-priority")
class PrefillPriority:
    """A step is either prompts or decodes, never both; prompts win.

    1. A running prompt that is not finished goes on, alone. Only a prompt longer than the token budget is ever unfinished: it is
       cut into chunks of the budget, each in a step of its own, because nothing else could run it.
    2. Otherwise waiting prompts are admitted whole, first come first served, while tokens, slots and blocks last (1 % of the pool
       stays free). With nothing running the head gets in with as long a chunk as fits.
    3. Otherwise every running sequence decodes; for a missing block the last running sequence is preempted.

    Cost per call: O(running + admitted) questions to the store. Wrong choice when the gaps between tokens matter: each admission
    stalls all running texts for a whole prompt.
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        self._go_on(draft)
        if not draft.chunks:
            self._admit(draft, state)
        if not draft.chunks:
            draft.run_decodes()
        if not draft.chunks:
            self._make_room(draft)
        return draft.plan()

    def _go_on(self, draft: Draft) -> None:
        for seq in draft.running:
            if seq.num_uncomputed > 1:
                price = partial(draft.kv.needed_blocks, seq.seq_id)
                length = draft.longest(price, min(seq.num_uncomputed, draft.tokens_left))
                if length > 0:
                    draft.run(seq, length)
                    return

    def _admit(self, draft: Draft, state: EngineState) -> None:
        watermark = draft.watermark(WATERMARK_RATIO)
        for seq in state.waiting:
            if seq.num_slots > draft.slots_left or draft.tokens_left == 0:
                return
            uncached = seq.num_tokens - draft.kv.cached_tokens(seq.seq_id)
            if draft.chunks and uncached > draft.tokens_left:
                return
            price = partial(draft.kv.needed_to_admit, seq.seq_id)
            is_alone = not draft.running and not draft.admits
            if not is_alone and not draft.fits(draft.whole(seq, uncached, price), keep=watermark):
                return
            length = draft.longest(price, min(uncached, draft.tokens_left))
            if length == 0:
                return
            draft.admit(seq, length)
            if length < uncached:
                return

    def _make_room(self, draft: Draft) -> None:
        """Only unfinished prompts are running and none fits: preempt from the end until the first one does."""
        while len(draft.running) > 1 and not draft.chunks:
            draft.preempt_last()
            self._go_on(draft)
