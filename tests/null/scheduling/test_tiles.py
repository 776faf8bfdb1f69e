# SPDX-License-Identifier: Apache-2.0
"""Tiles dealt and stolen: every step of every tile runs once, nobody does two things at a time, and stealing never loses."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ziggurat.errors import ConfigError
from ziggurat.scheduling.tiles import TILE_POLICIES, Piece, TilePolicy, partition, simulate

costs = st.lists(st.sampled_from([1, 2]), max_size=60)
workers = st.integers(1, 12)


@settings(max_examples=120, deadline=None)
@given(costs, workers, st.sampled_from(TILE_POLICIES), st.integers(1, 32))
def test_every_step_runs_once_and_workers_do_one_thing_at_a_time(
    costs: list[int], workers: int, policy: TilePolicy, steps: int
) -> None:
    timeline = simulate(costs, workers, policy, steps=steps)
    for tile, cost in enumerate(costs):
        pieces = sorted((p for p in timeline.pieces if p.tile == tile), key=lambda p: p.first)
        assert [p.first for p in pieces] == [0, *(p.last for p in pieces[:-1])] and pieces[-1].last == steps
        assert all(p.end_s - p.start_s == pytest.approx((p.last - p.first) * cost / steps) for p in pieces)
    for worker in range(workers):
        own = sorted((p for p in timeline.pieces if p.worker == worker), key=lambda p: p.start_s)
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(own))
    assert timeline.makespan_s >= sum(costs) / workers - 1e-9 and 0 < timeline.utilisation <= 1 + 1e-9


@settings(max_examples=80, deadline=None)
@given(costs, workers)
def test_later_stages_are_never_slower_where_that_can_be_promised(costs: list[int], workers: int) -> None:
    naive, no_barrier, remap, steal = (simulate(costs, workers, policy).makespan_s for policy in TILE_POLICIES)
    assert no_barrier <= naive + 1e-9 and steal <= remap + 1e-9
    if len(costs) >= workers:  # within two steps of the dearest tile
        assert steal <= sum(costs) / workers + 2 * 2 / 32 + 1e-9


def test_one_long_tile_is_shared() -> None:
    timeline = simulate([2], 2, "steal", steps=4)
    assert timeline.pieces == (Piece(0, 0, 0, 2, 0.0, 1.0), Piece(0, 1, 2, 4, 0.0, 1.0)) and timeline.utilisation == 1
    assert simulate([2], 2, "remap", steps=4).makespan_s == 2


def test_remap_mixes_and_bad_input_is_refused() -> None:
    assert partition([2, 1, 2, 1], 2, "remap") == [[0, 1], [2, 3]]
    assert partition([2, 1, 2, 1], 2, "naive") == [[0, 2], [1, 3]]
    with pytest.raises(ConfigError, match="unknown tile policy"):
        partition([1], 1, "fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 workers"):
        partition([1], 0, "naive")
    assert simulate([], 3, "steal").utilisation == 1.0
