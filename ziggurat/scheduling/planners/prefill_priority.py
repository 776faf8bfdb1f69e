# SPDX-License-Identifier: Apache-2.0
"""Prefill first: vLLM's default before chunked prefill. The baseline that stall-free planners are measured against."""

from __future__ import annotations

from functools import partial

from ziggurat.scheduling.planners.draft import Blocks, Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlan, EngineState, SequenceView, TokenBudget

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
        draft.go_on()
        if not draft.chunks:
            watermark = draft.watermark(WATERMARK_RATIO)
            draft.admit_whole(state.waiting, may_admit=lambda seq: self._has_space(draft, seq, watermark))
        if not draft.chunks:
            draft.run_decodes()
        if not draft.chunks:
            draft.make_room()
        return draft.plan()

    def _has_space(self, draft: Draft, seq: SequenceView, watermark: Blocks) -> bool:
        uncached = seq.num_tokens - draft.kv.cached_tokens(seq.seq_id)
        price = partial(draft.kv.needed_to_admit, seq.seq_id)
        return draft.fits(draft.whole(seq, uncached, price), keep=watermark)
