# SPDX-License-Identifier: Apache-2.0
"""Replays on a virtual clock: open and closed loop, sessions that reuse token ids, drift, refusals, a deadline."""

from __future__ import annotations

import pytest

from tests.cores import make_core
from tests.null.scheduling.test_driver import Ticking, arrival
from ziggurat.clock import VirtualClock
from ziggurat.errors import ConfigError
from ziggurat.scheduling.client import CoreClient
from ziggurat.scheduling.driver import VirtualDriver, request_of
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost
from ziggurat.workload.arrivals import LENGTHS, at_rate, make_arrivals
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import Replayed, replay
from ziggurat.workload.sources import ClosedLoop, Conversation, OpenLoop, as_conversations


def client(clock: VirtualClock | None = None, **options):  # type: ignore[no-untyped-def]
    clock = clock or VirtualClock()
    return CoreClient(
        make_core(executor=Ticking(clock), **options), clock, make_request=lambda a: request_of(a, vocab_size=500)
    )


def chat(name: str, turns: int = 3, think_s: float = 0.0) -> Conversation:
    return Conversation(id=name, turns=((4, 2),) * turns, think_s=think_s)


def test_an_open_loop_gives_the_records_of_the_virtual_driver() -> None:
    arrivals = at_rate(make_arrivals(12, LENGTHS.get("fastgen")(0.01), seed=2, max_model_len=40), 0.2)
    clocks = VirtualClock(), VirtualClock()
    cost = linear_cost(base_s=0.1, per_token_s=0.03)
    cores = [make_core(executor=SimulatedExecutor(clock, cost), num_blocks=30) for clock in clocks]
    expected = VirtualDriver(cores[0], clocks[0]).run(arrivals)
    found = replay(OpenLoop(arrivals), CoreClient(cores[1], clocks[1]))
    assert found.records == expected


def test_drift_is_how_late_the_sender_was_and_counts_as_waiting() -> None:
    """Steps take a second: what is due at 0.25 s is sent at 1 s."""
    found = replay(OpenLoop([arrival("a", 0.0, max_new=1), arrival("b", 0.25, max_new=1)]), client())
    assert found.drift.max_s == 0.75
    assert found.drift.as_dict()["mean_ms"] == 375.0
    assert [record.ttft_s for record in found.records] == [1.0, 1.75]


def test_times_count_from_the_start_of_the_replay() -> None:
    clock = VirtualClock(start_s=1000.0)
    found = replay(OpenLoop([arrival("a", 2.0, max_new=1)]), client(clock))
    (record,) = found.records
    assert (found.start_s, record.arrival_s, record.first_scheduled_s, record.finish_s) == (1000.0, 2.0, 2.0, 3.0)


def test_refused_requests_have_a_record_and_a_closed_loop_goes_on() -> None:
    conversations = [Conversation(id="long", turns=((60, 1), (1, 1))), Conversation(id="short", turns=((5, 1),))]
    found = replay(ClosedLoop(conversations, 1, vocab_size=500), client())
    assert [(r.id, r.reason) for r in found.records] == [
        ("long.0", "error"),
        ("long.1", "error"),
        ("short.0", "length"),
    ]


def overlap(found: Replayed) -> int:
    events = [(r.arrival_s, 1) for r in found.records] + [(r.finish_s or 0.0, -1) for r in found.records]
    peak = count = 0
    for _, change in sorted(events):
        count += change
        peak = max(peak, count)
    return peak


@pytest.mark.parametrize("num_clients", [1, 3])
def test_a_closed_loop_has_one_request_per_client(num_clients: int) -> None:
    arrivals = make_arrivals(9, LENGTHS.get("fastgen")(0.005), max_model_len=20)
    loop = ClosedLoop(as_conversations(arrivals), num_clients, vocab_size=500)
    found = replay(loop, client())
    assert len(found.records) == 9 and all(record.is_success for record in found.records)
    assert overlap(found) == num_clients
    assert [
        (r.num_prompt_tokens, r.num_output_tokens) for r in sorted(found.records, key=lambda r: int(r.id[3:-2]))
    ] == [(a.prompt_len, a.max_new) for a in arrivals]


def test_turns_reuse_the_tokens_before_them_and_hit_the_cache() -> None:
    sent: list[Arrival] = []

    def make_request(a: Arrival):  # type: ignore[no-untyped-def]
        sent.append(a)
        return request_of(a, vocab_size=500)

    clock = VirtualClock()
    core = make_core(executor=Ticking(clock))
    found = replay(
        ClosedLoop([chat("c", think_s=5.0)], 1, vocab_size=500), CoreClient(core, clock, make_request=make_request)
    )
    prompts = [list(a.prompt(500)) for a in sent]
    assert [len(prompt) for prompt in prompts] == [4, 10, 16]
    for before, after, name in zip(prompts, prompts[1:], ("c.0", "c.1"), strict=False):
        assert after[: len(before) + 2] == before + found.answers[name]
    # Blocks of 4: of the turn before, its whole blocks are there; the answer's last token never got KV.
    assert [record.num_cached_tokens for record in found.records] == [0, 4, 8]
    assert found.records[1].arrival_s == (found.records[0].finish_s or 0) + 5.0


def test_a_deadline_ends_the_replay_and_leaves_requests_open() -> None:
    found = replay(OpenLoop([arrival("a", 0.0, max_new=9), arrival("b", 50.0)]), client(), deadline_s=3.0)
    (record,) = found.records
    assert (record.num_output_tokens, record.reason) == (3, None)


def test_bad_sources() -> None:
    with pytest.raises(ConfigError, match="not sorted"):
        OpenLoop([arrival("a", 1.0), arrival("b", 0.0)])
    with pytest.raises(ConfigError, match="at least one client, got 0"):
        ClosedLoop([chat("a")], 0, vocab_size=9)
