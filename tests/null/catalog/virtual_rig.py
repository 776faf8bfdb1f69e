# SPDX-License-Identifier: Apache-2.0
"""A rig in virtual time: the production core over simulated steps, so that whole experiments run in a second without a model."""

from __future__ import annotations

from collections.abc import Sequence

from tests.cores import make_core
from ziggurat.catalog.serving import ForwardRecorder, Run
from ziggurat.clock import VirtualClock
from ziggurat.scheduling.calibration import StepSample
from ziggurat.scheduling.client import CoreClient
from ziggurat.scheduling.driver import request_of
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.planners import resolve
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop

BASE_S, PER_TOKEN_S = 0.008, 0.0005


class VirtualRig:
    """A machine with a knee at 16 tokens.

    Args:
        seconds_per_run: what a run adds to the time that the experiment has taken.
        spoils: a planner whose tokens come out wrong.
    """

    max_model_len = 960

    def __init__(self, *, seconds_per_run: float = 0.0, spoils: str = "") -> None:
        self._seconds_per_run = seconds_per_run
        self._spoils = spoils
        self.num_runs = 0
        self.is_closed = False

    def decode_step_s(self, num_seqs: int, context_tokens: int) -> float:
        return BASE_S + num_seqs * PER_TOKEN_S

    def step_samples(self) -> list[StepSample]:
        return [StepSample(num_tokens=n, seconds=BASE_S + n * PER_TOKEN_S) for n in (16, 64, 256)]

    def serve(self, planner: str, budget: TokenBudget, arrivals: Sequence[Arrival]) -> Run:
        self.num_runs += 1
        clock = VirtualClock()
        forwards: list[int] = []
        vocab_size = 500 if planner == self._spoils else 1000
        executor = SimulatedExecutor(
            clock,
            linear_cost(base_s=BASE_S, per_token_s=PER_TOKEN_S),
            tokens=NullExecutor(vocab_size=vocab_size),
        )
        core = make_core(
            num_blocks=20_000,
            executor=executor,
            planner=ForwardRecorder(resolve(planner), forwards.append),
            tokens=budget.max_num_batched_tokens,
            seqs=budget.max_num_seqs,
            max_model_len=self.max_model_len,
            max_queued_requests=10_000,
        )
        found = replay(OpenLoop(arrivals), CoreClient(core, clock, make_request=request_of))
        return Run(records=found.records, answers=found.answers, loaded_forwards=forwards)

    def elapsed_s(self) -> float:
        return self.num_runs * self._seconds_per_run

    def close(self) -> None:
        self.is_closed = True
