# SPDX-License-Identifier: Apache-2.0
"""Dynamic SplitFuse of DeepSpeed-FastGen: every forward has the same number of tokens (arXiv 2401.08671)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ziggurat.scheduling.planners.draft import Blocks, Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlan, EngineState, SequenceView, TokenBudget


@PLANNERS.register("splitfuse")
class SplitFuse:
    """Long prompts are split over steps, short ones fused, so that a step is exactly the token budget while prompts are there.

    1. Generation first: a running decode gets its token if its last block has room or a free block is there, else it skips this
       step; nobody is preempted for it.
    2. The unfinished prompt stands at the front, then the queue in order. A prompt starts or goes on only if the pool holds all
       that is left of it; it takes as many tokens as the step still has. The first that cannot stops it.
    3. If nothing could be scheduled, the last running sequence gives up its space (recompute), until something can.

    It is Sarathi with another fill rule: no watermark, no preemption for a missing block while anything else can run.
    Cost per call: O(running + admitted) questions to the store. Wrong choice when the pool is nearly full: decodes skip steps.
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        self._generate(draft)
        if self._go_on(draft):
            self._start(draft, state)
        while not draft.chunks and draft.running:
            # Alone, a sequence goes on with whatever fits: admission saw to it that something does.
            if len(draft.running) > 1:
                draft.preempt_last()
            self._generate(draft)
            if not draft.chunks:
                draft.go_on()
            if len(draft.running) == 1:
                break
        return draft.plan()

    def _generate(self, draft: Draft) -> None:
        for seq in draft.running:
            if seq.num_uncomputed == 1 and draft.fits(draft.kv.needed_blocks(seq.seq_id, 1)):
                draft.run(seq, 1)

    def _go_on(self, draft: Draft) -> bool:
        """Running prompts; says whether tokens and space may go to new ones."""
        for seq in draft.running:
            if seq.num_uncomputed > 1:
                price = partial(draft.kv.needed_blocks, seq.seq_id)
                if not self._take(draft, seq, seq.num_uncomputed, price, draft.run):
                    return False
        return True

    def _start(self, draft: Draft, state: EngineState) -> None:
        for seq in state.waiting:
            if seq.num_slots > draft.slots_left:
                return
            uncached = seq.num_tokens - draft.kv.cached_tokens(seq.seq_id)
            price = partial(draft.kv.needed_to_admit, seq.seq_id)
            if not self._take(draft, seq, uncached, price, draft.admit):
                return

    def _take(
        self,
        draft: Draft,
        seq: SequenceView,
        uncomputed: int,
        price: Callable[[int], Blocks],
        run: Callable[[SequenceView, int], None],
    ) -> bool:
        """Give a prompt what the step still has, if the pool holds all that is left of it. False if it is not finished by that."""
        is_alone = not draft.running and not draft.admits
        if draft.tokens_left == 0 or not (is_alone or draft.fits(draft.whole(seq, uncomputed, price))):
            return False
        length = draft.longest(price, min(uncomputed, draft.tokens_left))
        if length > 0:
            run(seq, length)
        return length == uncomputed
