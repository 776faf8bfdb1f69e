# SPDX-License-Identifier: Apache-2.0
"""Orca: iteration-level scheduling, so that a text that ends makes room at once; whole prompts beside decodes (OSDI 2022)."""

from __future__ import annotations

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.planners.reserve import Reservation
from ziggurat.scheduling.protocol import BatchPlan, EngineState, TokenBudget


@PLANNERS.register("orca")
class Orca:
    """Every step runs all decodes and the whole prompts of those admitted in it.

    1. Every running decode gets its token.
    2. A running prompt that is not finished goes on; only one longer than the token budget ever is.
    3. Otherwise waiting prompts are admitted whole, first come first served, while tokens and slots last and the longest text of
       each fits the pool beside those of all that run: Orca sets the maximum length aside, so nothing is ever preempted.

    Cost per call: O(running + admitted) questions to the store. Wrong choice when the gaps between tokens matter (a whole prompt
    stretches everybody's step) or when ``max_tokens`` is much longer than the texts (space stands empty).
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        draft.run_decodes()
        is_unfinished = any(seq.num_uncomputed > 1 for seq in draft.running)
        draft.go_on()
        if not draft.chunks:
            draft.make_room()
        if not draft.preempts and not is_unfinished:
            draft.admit_whole(state.waiting, may_admit=Reservation(draft).take)
        return draft.plan()
