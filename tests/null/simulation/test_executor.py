# SPDX-License-Identifier: Apache-2.0
"""Simulated time: steps cost what the function says, the driver's records show it."""

from __future__ import annotations

import pytest

from tests.stores import small_store
from ziggurat.clock import VirtualClock
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.driver import VirtualDriver
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.simulation.executor import SimulatedExecutor, StepCost, linear_cost
from ziggurat.workload.metrics import summarize
from ziggurat.workload.records import Arrival, RequestRecord


def serve(
    arrivals: list[Arrival], cost: StepCost, *, planner: str = "sarathi", tokens: int = 16
) -> list[RequestRecord]:
    clock = VirtualClock()
    core = EngineCore(
        small_store(64),
        planners.resolve(planner),
        SimulatedExecutor(clock, cost),
        TokenBudget(max_num_batched_tokens=tokens, max_num_seqs=4),
        max_model_len=128,
        block_bytes=(1,),
    )
    return VirtualDriver(core, clock).run(arrivals)


def test_a_lone_request_costs_its_steps() -> None:
    """Prompt of 20 in chunks of 16 and 4, then two decodes: 0.1 s per step and 0.01 s per token."""
    (record,) = serve([Arrival(t_s=5.0, id="a", prompt_len=20, max_new=3)], linear_cost(base_s=0.1, per_token_s=0.01))
    assert record.queue_s == 0.0
    assert record.ttft_s == pytest.approx(2 * 0.1 + 20 * 0.01)
    assert record.tpot_s == pytest.approx(0.11)
    assert record.e2el_s == pytest.approx(2 * 0.1 + 20 * 0.01 + 2 * 0.11)


def test_sequences_cost_too() -> None:
    cost = linear_cost(base_s=1.0, per_token_s=0.25, per_sequence_s=0.5)
    assert cost(8, 2) == 1.0 + 2.0 + 1.0


def test_stall_free_batching_bounds_the_gaps_that_prefill_priority_makes() -> None:
    """The effect that Sarathi-Serve is about, on the same trace and the same costs."""
    arrivals = [Arrival(t_s=0.0, id="text", prompt_len=4, max_new=40)]
    arrivals += [Arrival(t_s=1.0 + i / 10, id=f"p{i}", prompt_len=60, max_new=2) for i in range(6)]
    cost = linear_cost(base_s=0.02, per_token_s=0.01)
    worst = {}
    for planner in ("sarathi", "prefill-priority"):
        records = serve(arrivals, cost, planner=planner)
        worst[planner] = max(records[0].itl_s)
        assert summarize(records)["completed"] == 7
    assert worst["sarathi"] == pytest.approx(0.02 + 16 * 0.01)
    assert worst["prefill-priority"] > 4 * worst["sarathi"]


def test_the_same_trace_gives_the_same_records() -> None:
    arrivals = [Arrival(t_s=i / 7, id=f"a{i}", prompt_len=1 + 5 * i, max_new=4, n=1 + i % 3) for i in range(8)]
    cost = linear_cost(base_s=0.05, per_token_s=0.002)
    assert serve(arrivals, cost) == serve(arrivals, cost)
