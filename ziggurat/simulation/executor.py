# SPDX-License-Identifier: Apache-2.0
"""The executor of simulated time: tokens of another executor (by default the null one), and a clock that moves by the step's cost."""

from __future__ import annotations

from collections.abc import Callable

from ziggurat.clock import VirtualClock
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.protocol import Batch, Executor, StepResult

StepCost = Callable[[int, int], float]
"""Seconds of a step, from (tokens, sequences) of its batch."""


class SimulatedExecutor:
    """Runs a batch by letting virtual time pass.

    Args:
        clock: moved forward by each step; the driver reads the same one.
        step_cost_s: seconds of a step with that many tokens and sequences. It must not be negative.
        tokens: where tokens come from.
    """

    def __init__(self, clock: VirtualClock, step_cost_s: StepCost, *, tokens: Executor | None = None) -> None:
        self._clock = clock
        self._step_cost_s = step_cost_s
        self._tokens = tokens or NullExecutor()

    def run(self, batch: Batch) -> StepResult:
        """Tokens now, and the clock at the end of the step."""
        result = self._tokens.run(batch)
        cost_s = self._step_cost_s(batch.num_tokens, len(batch.items))
        assert cost_s >= 0, f"a step of {batch.num_tokens} tokens cannot take {cost_s} s"
        self._clock.sleep_until(self._clock.now() + cost_s)
        return result


def linear_cost(*, base_s: float, per_token_s: float, per_sequence_s: float = 0.0) -> StepCost:
    """``base_s + per_token_s * tokens + per_sequence_s * sequences``: the simplest honest shape of a step on one device."""

    def cost_s(num_tokens: int, num_seqs: int) -> float:
        return base_s + per_token_s * num_tokens + per_sequence_s * num_seqs

    return cost_s
