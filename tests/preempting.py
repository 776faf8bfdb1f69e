# SPDX-License-Identifier: Apache-2.0
"""A planner that preempts where no real one would: to see that nothing depends on it."""

from __future__ import annotations

from ziggurat.scheduling.protocol import BatchPlan, BatchPlanner, EngineState, TokenBudget


class Preempting:
    """Plans as ``planner`` does, but in every ``period``-th step takes the space of the sequence that runs last, ``times`` times.

    Attributes:
        at: (sequence, computed tokens) of each preemption.
    """

    def __init__(self, planner: BatchPlanner, *, period: int = 3, times: int = 8) -> None:
        self._planner, self._period, self._times = planner, period, times
        self._step = 0
        self.at: list[tuple[str, int]] = []

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        self._step += 1
        if state.running and self._step % self._period == 0 and len(self.at) < self._times:
            victim = state.running[-1]
            self.at.append((victim.seq_id, victim.num_computed))
            return BatchPlan(preempts=(victim.seq_id,))
        return self._planner.plan(state, budget)
