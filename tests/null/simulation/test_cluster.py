# SPDX-License-Identifier: Apache-2.0
"""Clusters in virtual time: one instance does what the virtual driver does, nothing is lost, equal scenarios give equal bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import small_store
from ziggurat.clock import VirtualClock
from ziggurat.errors import DoesNotFit
from ziggurat.hardware.compiled import Layout, compile_cost, work_of
from ziggurat.hardware.models import find_model
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.driver import VirtualDriver, request_of
from ziggurat.scheduling.planners import PLANNERS, resolve
from ziggurat.scheduling.protocol import Batch, TokenBudget
from ziggurat.simulation.cluster import Cluster, StepSpan
from ziggurat.simulation.executor import SimulatedExecutor
from ziggurat.simulation.report import records_digest, simulation_result
from ziggurat.simulation.scenario import Arrivals, Scenario, Slo
from ziggurat.workload.records import Arrival

BASE = Scenario(
    model="llama2-7b",
    device="a100",
    max_num_batched_tokens=64,
    max_num_seqs=16,
    max_model_len=2048,
    arrivals=Arrivals(rate=20.0, num_requests=40, input_tokens=100, output_tokens=20, spread=0.5),
    slo=Slo(ttft_ms=500, tpot_ms=50),
)


def cost_ns(batch: Batch) -> int:
    return 1_000_000 + 10_000 * batch.num_tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(PLANNERS.names()))
def test_one_instance_does_what_the_virtual_driver_does(seed: int, planner: str) -> None:
    budget = TokenBudget(max_num_batched_tokens=512, max_num_seqs=16)
    scenario = replace(BASE, seed=seed, planner=planner, max_num_batched_tokens=512)
    cluster = Cluster(scenario, cost_ns=cost_ns, logs_decisions=True)
    records = cluster.run(scenario.requests())
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, lambda tokens, seqs: (1_000_000 + 10_000 * tokens) / 1e9)
    store = small_store(cluster.num_blocks * 4, max_chunk_tokens=512)  # blocks of 4 tokens here
    core = EngineCore(store, resolve(planner), executor, budget, max_model_len=2048, block_bytes=[1000])
    expected = VirtualDriver(core, clock, make_request=request_of).run(scenario.requests())
    assert [record.id for record in records] == [record.id for record in expected]
    for ours, theirs in zip(records, expected, strict=True):
        assert ours.reason == theirs.reason and ours.num_output_tokens == theirs.num_output_tokens
        assert ours.ttft_s == pytest.approx(theirs.ttft_s, abs=1e-6)
        assert ours.e2el_s == pytest.approx(theirs.e2el_s, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 100),
    st.sampled_from(["round_robin", "least_load", "prefix_aware"]),
    st.integers(1, 5),
    st.sampled_from(PLANNERS.names()),
)
def test_nothing_is_lost_and_equal_scenarios_give_equal_bytes(
    seed: int, dispatcher: str, instances: int, planner: str
) -> None:
    scenario = replace(
        BASE, seed=seed, dispatcher=dispatcher, instances=instances, planner=planner, max_num_batched_tokens=256
    )
    digests = set()
    for _ in range(2):
        cluster = Cluster(scenario, cost_ns=cost_ns)
        records = cluster.run(scenario.requests())
        assert len(records) == 40 and all(record.reason == "length" for record in records)
        for instance in cluster.instances:
            instance.store.audit()
            assert instance.store.stats()[0].used == 0 and instance.waiting_tokens == 0
        result = simulation_result(scenario, cluster, records)
        assert sum(each["num_requests"] for each in result["instances"]) == result["completed"] == 40
        digests.add(records_digest(records))
    assert len(digests) == 1


def test_steps_of_an_instance_never_overlap_and_arrivals_wait_for_the_next() -> None:
    spans: list[StepSpan] = []
    scenario = replace(BASE, instances=3)
    Cluster(scenario, cost_ns=cost_ns, on_step=spans.append).run(scenario.requests())
    for number in range(3):
        own = [span for span in spans if span.instance == number]
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(own))
    assert all(span.end_ns > span.start_ns for span in spans)


def test_records_can_be_handed_on_one_by_one() -> None:
    scenario, kept = BASE, []
    assert Cluster(scenario, cost_ns=cost_ns, on_record=kept.append).run(scenario.requests()) == []
    assert len(kept) == 40


def test_turns_of_a_session_go_where_their_beginning_is_cached() -> None:
    arrivals = [
        Arrival(
            t_s=float(turn * 10 + session),
            id=f"{session}-{turn}",
            prompt_len=100 * (turn + 1),
            max_new=5,
            session=str(session),
        )
        for turn in range(4)
        for session in range(8)
    ]
    hits = {}
    for dispatcher in ("round_robin", "prefix_aware"):
        scenario = replace(BASE, instances=3, dispatcher=dispatcher)
        cluster = Cluster(scenario, cost_ns=cost_ns)
        cluster.run(arrivals)
        hits[dispatcher] = sum(each.core.counters.prefix_hit_tokens for each in cluster.instances)
    assert hits["prefix_aware"] == 8 * (96 + 192 + 288) > 2 * hits["round_robin"]


def test_more_ranks_and_less_work_are_faster() -> None:
    shape = find_model("llama2-70b")
    one, two = (compile_cost(shape, "a100", Layout(tensor_parallel=ranks)) for ranks in (2, 4))
    prefill = work_of([(0, 512)])
    decode = work_of([(1000, 1)] * 32)
    assert one(prefill) > two(prefill) and one(decode) > two(decode)
    assert one(work_of([(0, 1024)])) > one(prefill) and one(work_of([(4000, 1)] * 32)) > one(decode)
    assert one(prefill) == one(prefill) and one(work_of([(0, 1)])) > 0
    assert (decode.decode_kv_tokens, decode.chunks, prefill.chunks) == (32 * 1001, (), ((512, 512),))


def test_a_prefill_costs_what_the_composed_iteration_says() -> None:
    from ziggurat.hardware.iteration import prefill_s
    from ziggurat.hardware.samples import Sample

    shape = find_model("llama2-70b")
    cost = compile_cost(shape, "a100", Layout(tensor_parallel=4))
    sample = Sample(
        file="",
        device="a100-80g-sxm",
        model="llama2-70b",
        op="prompt",
        op_class="prefill",
        shape={"ranks": 4.0, "batch": 1.0, "prompt": 2048.0},
        flops=0.0,
        num_bytes=0.0,
        time_s=1.0,
    )
    expected = prefill_s(sample)
    assert expected is not None
    # The head is read once more here: below a hundredth of a prefill.
    assert cost(work_of([(0, 2048)])) / 1e9 == pytest.approx(expected, rel=0.01)


def test_weights_that_leave_no_room() -> None:
    with pytest.raises(DoesNotFit, match="llama2-70b has 128 GiB of weights"):
        Cluster(replace(BASE, model="llama2-70b"))
