# SPDX-License-Identifier: Apache-2.0
"""The order of the queue: first come first served, or by priority; who is admitted first and who gives way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cores import drain, make_core, request
from ziggurat.errors import ConfigError
from ziggurat.scheduling.order import ORDERS, fcfs, priority
from ziggurat.scheduling.planners import PLANNERS, resolve


def test_the_names_are_vllms_and_misspelt_ones_are_helped() -> None:
    assert ORDERS.names() == ["deadline", "fcfs", "priority", "vtc"]
    with pytest.raises(ConfigError, match="unknown scheduling policy 'priorty', did you mean 'priority'"):
        ORDERS.get("priorty")


@pytest.mark.parametrize(("order", "expected"), [(fcfs, "abcd"), (priority, "bdac")])
def test_lower_goes_first_and_equals_in_order_of_arrival(order, expected: str) -> None:  # type: ignore[no-untyped-def]
    core = make_core(order=order, seqs=1, tokens=8)
    for name, rank in zip("abcd", (5, 0, 5, 0), strict=True):
        core.add(replace(request(name, max_tokens=1), priority=rank), 0.0)
    ended = [entry.request_id for output in drain(core) for entry in output.finished]
    assert "".join(ended) == expected


def test_the_least_important_gives_way() -> None:
    """low came first and has the larger part of the pool; when high grows, low is preempted and waits at its place."""
    core = make_core(order=priority, num_blocks=8, tokens=16)
    core.add(replace(request("low", num_prompt=10, max_tokens=20), priority=9), 0.0)
    core.step(0.0)
    core.add(replace(request("high", num_prompt=10, max_tokens=20), priority=1), 0.0)
    preempted = [seq_id for output in drain(core) for seq_id in output.preempted]
    assert preempted and set(preempted) == {"low/0"}


@pytest.mark.parametrize("name", PLANNERS.names())
@settings(max_examples=10)
@given(ranks=st.lists(st.integers(0, 3), min_size=6, max_size=6), num_blocks=st.integers(12, 30))
def test_everybody_is_served_under_every_planner(name: str, ranks: list[int], num_blocks: int) -> None:
    core = make_core(order=priority, planner=resolve(name), num_blocks=num_blocks, tokens=8)
    for index, rank in enumerate(ranks):
        core.add(replace(request(f"r{index}", num_prompt=3 + 4 * index, max_tokens=15), priority=rank), 0.0)
        core.step(0.0)
        waiting = list(core._roster.waiting.values())
        assert waiting == sorted(waiting, key=priority)
    drain(core)
    assert core.counters.finished["length"] == 6
