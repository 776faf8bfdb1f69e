# SPDX-License-Identifier: Apache-2.0
"""Request-level batching, as FasterTransformer serves: a batch is formed, runs to its end, and only then comes the next."""

from __future__ import annotations

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.planners.reserve import Reservation
from ziggurat.scheduling.protocol import BatchPlan, EngineState, TokenBudget


@PLANNERS.register("request-level")
class RequestLevel:
    """One batch at a time; short texts wait for the longest one of their batch.

    1. With nothing running, whole prompts are admitted, first come first served, while tokens and slots last and the longest text of
       each fits the pool beside the others'. A prompt longer than the token budget is a batch of its own, cut into chunks.
    2. Otherwise unfinished prompts go on, then all running sequences decode until the last of them has ended.

    Cost per call: O(running + admitted) questions to the store. A baseline: the wrong choice whenever lengths differ or requests
    come one by one.
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        if not draft.running:
            draft.admit_whole(state.waiting, may_admit=Reservation(draft).take)
            return draft.plan()
        draft.go_on()
        if not draft.chunks:
            draft.run_decodes()
        if not draft.chunks:
            draft.make_room()
        return draft.plan()
