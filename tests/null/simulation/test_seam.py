# SPDX-License-Identifier: Apache-2.0
"""The seam: the null, the hashing and the simulated executor get the same decisions out of the same script."""

from __future__ import annotations

import pytest

from tests.kv_check import HashingExecutor
from tests.seam import Replay, make_script, replay
from ziggurat.clock import VirtualClock
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.protocol import Executor
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost

SEEDS = (4, 10, 34)


def simulated() -> Executor:
    return SimulatedExecutor(VirtualClock(), linear_cost(base_s=0.02, per_token_s=0.001, per_sequence_s=0.005))


@pytest.mark.parametrize("planner", PLANNERS.names())
@pytest.mark.parametrize("seed", SEEDS)
def test_same_script_same_decisions(planner: str, seed: int) -> None:
    script = make_script(seed)
    null, hashing, virtual = (
        replay(script, make_executor, planner=planner) for make_executor in (NullExecutor, HashingExecutor, simulated)
    )
    assert null.log.first_difference(virtual.log) is None
    assert null.log.first_difference(hashing.log) is None
    assert null.log.digest() == virtual.log.digest() == hashing.log.digest()
    assert null.tokens == virtual.tokens
    assert null.reasons == virtual.reasons == hashing.reasons


def test_the_scripts_cover_what_they_claim() -> None:
    results: list[Replay] = [replay(make_script(seed), NullExecutor) for seed in SEEDS]
    assert all(result.core.counters.preemptions > 0 for result in results)
    assert all(result.core.counters.prefix_hit_tokens > 0 for result in results)
    for result in results:
        assert {"abort", "stop", "length"} <= set(result.reasons.values())
        assert any(seq_id.endswith("/3") for seq_id in result.reasons)
    assert len({result.log.digest() for result in results}) == len(SEEDS)


def test_planners_differ_where_they_should() -> None:
    script = make_script(3)
    sarathi, prefill = (replay(script, NullExecutor, planner=name) for name in ("sarathi", "prefill-priority"))
    assert sarathi.log.first_difference(prefill.log) is not None
    common = {seq for seq, reason in sarathi.reasons.items() if reason == prefill.reasons[seq] == "length"}
    assert common
    assert all(sarathi.tokens[seq] == prefill.tokens[seq] for seq in common)
