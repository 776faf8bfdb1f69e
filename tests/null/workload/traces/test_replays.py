# SPDX-License-Identifier: Apache-2.0
"""A trace drives the production core: what its rows share is found cached, and two replays are the same."""

from __future__ import annotations

from pathlib import Path

from tests.cores import make_core
from tests.null.workload.traces import samples
from ziggurat.clock import VirtualClock
from ziggurat.scheduling.client import CoreClient
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost
from ziggurat.workload.records import RequestRecord
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop
from ziggurat.workload.traces.reading import read_trace


def serve(path: Path) -> list[RequestRecord]:
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, linear_cost(base_s=0.001, per_token_s=0.0001))
    core = make_core(num_blocks=4000, executor=executor, tokens=256, max_model_len=2000)
    return replay(OpenLoop(read_trace(path)), CoreClient(core, clock)).records


def test_blocks_that_a_trace_shares_are_found_cached(tmp_path: Path) -> None:
    records = serve(samples.write(tmp_path, samples.MOONCAKE, "a.jsonl"))
    # Rows 1 and 2 have their first 1,000 tokens in common; 1,000 is a whole number of the store's blocks.
    assert [record.num_cached_tokens for record in records] == [0, 1000, 0]
    assert [record.arrival_s for record in records] == [0.0, 1.5, 3.0]
    assert all(record.is_success for record in records)


def test_turns_of_a_session_are_found_cached_and_replays_are_the_same(tmp_path: Path) -> None:
    path = samples.write(tmp_path, samples.BURSTGPT)
    records = serve(path)
    assert records == serve(path)
    # The last question of session 7 repeats the first 100 tokens of its first.
    assert [record.num_cached_tokens for record in records] == [0, 0, 100]
