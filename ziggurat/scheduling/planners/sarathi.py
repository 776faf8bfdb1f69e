# SPDX-License-Identifier: Apache-2.0
"""Sarathi-Serve: chunked prefills ride along with all decodes, so that no prompt stalls a running text (arXiv 2403.02310)."""

from __future__ import annotations

from functools import partial

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlan, EngineState, TokenBudget

WATERMARK_RATIO = 0.01


@PLANNERS.register("sarathi")
class Sarathi:
    """Fill each step up to the token budget: decodes, then prefills that run, then admissions, each in order of arrival.

    1. Every running decode gets its token; for a missing block the last running sequence is preempted.
    2. Running prefills share the tokens that are left. Where blocks are short a chunk shrinks; if nothing at all could run, the
       last running sequence is preempted until the first one fits.
    3. Waiting sequences are admitted while a slot, a token and the blocks of the whole prompt are there, with 1 % of the pool left
       over. The first that does not fit stops it (FCFS). An unfinished prompt takes every token or every block that is left, so
       nobody is admitted behind it and what it was promised stays free. With nothing running the head gets in with as long a
       chunk as fits.

    Cost per call: O(running + admitted) questions to the store. Wrong choice when only throughput of long prompts counts: small
    chunks read the earlier KV of their prompt again.
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        draft.run_decodes()
        draft.run_prefills()
        if not draft.preempts:
            self._admit(draft, state)
        return draft.plan()

    def _admit(self, draft: Draft, state: EngineState) -> None:
        watermark = draft.watermark(WATERMARK_RATIO)
        for seq in state.waiting:
            if seq.num_slots > draft.slots_left or draft.tokens_left == 0:
                return
            uncached = seq.num_tokens - draft.kv.cached_tokens(seq.seq_id)
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
