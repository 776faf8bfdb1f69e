# SPDX-License-Identifier: Apache-2.0
"""Fairness between clients: the accounts, the bound of the virtual token counter, one greedy client, weights, deadlines."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cores import drain, make_core, request
from ziggurat.errors import ConfigError
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.fairness import MAX_IDLE_CLIENTS, OUTPUT_SERVICE, Clients, jain_index, named_weights
from ziggurat.scheduling.order import deadline, fcfs, vtc

TOKENS, MAX_PROMPT = 16, 12


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_jains_index_lies_between_one_share_and_all_equal(shares: list[float]) -> None:
    index = jain_index(shares)
    assert (1 / max(len(shares), 1)) * (1 - 1e-9) <= index <= 1 + 1e-9
    assert jain_index([3.0] * 7) == pytest.approx(1) and jain_index([5.0, 0, 0, 0]) == pytest.approx(1 / 4)


@given(seed=st.integers(0, 2**32 - 1), weights=st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0])))
def test_backlogged_clients_are_served_alike_within_the_bound(seed: int, weights: tuple[float, float]) -> None:
    """Theorem 4.4 of the paper: counters of clients that always wait differ by at most max(prompt, what a batch generates at once).

    A batch here may hold all slots of one client, each of which goes on for its whole output, so that is what one decision commits to.
    """
    noise = random.Random(seed)
    core = make_core(
        order=vtc, seqs=4, tokens=TOKENS, num_blocks=64, clients=Clients(dict(zip("ab", weights, strict=True)))
    )
    for index in range(60):
        for client in "ab":
            prompt, output = noise.randint(1, MAX_PROMPT), noise.randint(1, 10)
            asked = request(f"{client}{index}", num_prompt=prompt, max_tokens=output)
            core.add(replace(asked, client=client), 0.0)
    at_once = 4 * (MAX_PROMPT + OUTPUT_SERVICE * 10)
    shares = {share.client.name: share.client for share in core._roster.waiting.values()}
    while all(share.num_waiting for share in shares.values()):
        core.step(0.0)
        assert abs(shares["a"].virtual - shares["b"].virtual) <= 2 * at_once / min(weights)
    drain(core)


def first_tokens(order: Any, *, greedy: float, small: float, seqs: int = 32, num_steps: int = 400) -> list[float]:
    """Steps to the first token of each request of one client, ``small`` requests a step, beside one that sends ``greedy`` a step.

    32 slots and 8 steps a request on average: 4 requests a step are all that can be served.
    """
    core: EngineCore = make_core(
        order=order, seqs=seqs, tokens=8 * seqs, num_blocks=8 * seqs, max_queued_requests=100_000
    )
    arrived: dict[str, float] = {}
    waits: list[float] = []
    sent: dict[str, int] = defaultdict(int)
    # A stream of random numbers each: what one sends does not change with the other.
    clients = (("small", small, random.Random(7)), ("greedy", greedy, random.Random(8)))
    for now in range(num_steps):
        for client, rate, noise in clients:
            for _ in range(sum(noise.random() < rate / 32 for _ in range(32))):
                name = f"{client}-{sent[client]}"
                sent[client] += 1
                arrived[name] = now
                core.add(
                    replace(request(name, num_prompt=4, max_tokens=noise.randint(1, 15)), client=client), float(now)
                )
        output = core.step(float(now))
        for new in output.tokens:
            name = new.seq_id.partition("/")[0]
            if new.is_first and name.startswith("small"):
                waits.append(now + 1 - arrived[name])
    return sorted(waits)


def test_a_client_with_ten_times_the_load_does_not_delay_another_one() -> None:
    """Acceptance 8 of C1, in steps, where both together nearly fill the engine; first come, first served breaks it."""

    def p99(waits: list[float]) -> float:
        return waits[int(0.99 * (len(waits) - 1))]

    equal = p99(first_tokens(vtc, small=1.9, greedy=1.9))
    assert p99(first_tokens(vtc, small=1.9, greedy=19.0)) <= 1.5 * equal
    assert p99(first_tokens(fcfs, small=1.9, greedy=19.0)) > 20 * equal


def test_a_pause_banks_no_service() -> None:
    clients = Clients()
    busy = clients.enter("busy")
    clients.wait(busy)
    busy.serve(100, 200)
    late = clients.enter("late")
    clients.wait(late)
    assert late.virtual == busy.virtual == 500
    clients.go(late), clients.go(busy)
    last = clients.enter("last")
    clients.wait(last)
    assert last.virtual == 500, "nobody waits: the counter of who left last"
    assert last.service == 0


def test_idle_clients_are_forgotten_and_busy_ones_are_not() -> None:
    clients = Clients()
    busy = clients.enter("busy")
    for index in range(3 * MAX_IDLE_CLIENTS):
        clients.leave(clients.enter(f"c{index}"))
    assert len(clients) <= MAX_IDLE_CLIENTS + 1
    assert clients.enter("busy") is busy and busy.num_requests == 2


def test_all_accounts_are_closed_whatever_happens_to_requests() -> None:
    core = make_core(order=vtc, seqs=2, tokens=8, num_blocks=10)
    for index in range(8):
        asked = request(f"r{index}", num_prompt=5, max_tokens=20, n=1 + index % 2)
        core.add(replace(asked, client=f"c{index % 3}"), 0.0)
        core.step(0.0)
    core.abort("r7"), core.abort("r2")
    drain(core)
    assert core.counters.preemptions > 0
    assert {(row["num_requests"], row["num_waiting"]) for row in core.clients.rows()} == {(0, 0)}
    assert sum(row["service"] for row in core.clients.rows()) >= OUTPUT_SERVICE * core.counters.generated_tokens


def test_the_earliest_deadline_goes_first_and_none_last() -> None:
    core = make_core(order=deadline, seqs=1, tokens=8)
    for name, limit_s in zip("abcd", (None, 9.0, 2.0, 9.0), strict=True):
        core.add(replace(request(name, max_tokens=1), deadline_s=limit_s), 0.0)
    ended = [entry.request_id for output in drain(core) for entry in output.finished]
    assert "".join(ended) == "cbda"


def test_weights_are_read_or_refused_by_name() -> None:
    assert named_weights(["alice=2", "team=a=0.5"]) == {"alice": 2.0, "team=a": 0.5}
    for wrong in ("alice", "alice=", "alice=0", "alice=-1", "alice=nan", "alice=inf"):
        with pytest.raises(ConfigError, match="must look like alice=2"):
            named_weights([wrong])
