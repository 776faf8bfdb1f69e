# SPDX-License-Identifier: Apache-2.0
"""Targets and the search for capacity, on functions with a known answer."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.workload.capacity import GRANULARITY, MAX_RUNS, refine_capacity, search_capacity, widening
from ziggurat.workload.metrics import Attainment, attainment, effective_throughput, slowest_rate
from ziggurat.workload.records import RequestRecord


def met_up_to(limit: float):  # type: ignore[no-untyped-def]
    """A server whose gap grows with the rate and reaches 100 ms at ``limit``."""

    def run(rate: float) -> Attainment:
        return Attainment(measured={"p99_itl_ms": 100 * rate / limit}, limits={"p99_itl_ms": 100})

    return run


def record(times_s: tuple[float, ...], *, prompt: int = 100, reason: str = "length") -> RequestRecord:
    return RequestRecord(
        id="a",
        arrival_s=0.0,
        num_prompt_tokens=prompt,
        first_scheduled_s=0.5,
        token_times_s=(times_s,),
        finish_s=times_s[-1],
        reason=reason,  # type: ignore[arg-type]
    )


@given(limit=st.floats(1e-2, 1e4), start=st.floats(1e-1, 1e3))
def test_the_known_capacity_is_found_to_the_granularity(limit: float, start: float) -> None:
    found = search_capacity(met_up_to(limit), start_rate=start, min_rate=1e-3, max_rate=1e6)
    assert limit / (1 + GRANULARITY) <= found.rate <= limit
    assert len(found.runs) <= MAX_RUNS
    assert len({rate for rate, _ in found.runs}) == len(found.runs), "no rate is run twice"


def test_more_headroom_takes_larger_steps() -> None:
    assert [widening(headroom) for headroom in (100, 16, 5, 2, 1.1)] == [4, 4, 2, 1.5, 1.2]


def test_a_target_that_every_rate_meets_is_said_to_be_unbounded() -> None:
    found = search_capacity(met_up_to(1e9), start_rate=1)
    assert (found.rate, found.is_bounded) == (1000, False)


def test_a_target_nobody_meets_is_one_clear_error() -> None:
    with pytest.raises(
        ConfigError, match=r"no rate meets the target: even 0.001 requests/s gives p99_itl_ms 500 \(limit 100\)"
    ):
        search_capacity(lambda rate: met_up_to(1)(5), start_rate=1)
    with pytest.raises(ConfigError, match="start rate above 0, got 0"):
        search_capacity(met_up_to(1), start_rate=0)


def test_a_run_meets_its_target_if_every_limit_is_kept_and_nobody_failed() -> None:
    good = record((1.0, 1.1, 1.2))
    limits = {"p99_itl_ms": 200.0, "median_queue_ms": 2000.0}
    met = attainment([good], limits)
    assert met.is_met and met.headroom == pytest.approx(2)
    assert not attainment([good], {"p99_itl_ms": 50.0}).is_met
    failed = attainment([good, record((1.0,), reason="abort")], limits)
    assert (failed.is_met, failed.num_failed) == (False, 1)
    assert "1 failed" in failed.explain()
    assert attainment([record((1.0,))], {"p99_itl_ms": 1.0}).is_met, "a single token has no gap"


def test_a_wrong_target_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="unknown target 'p99_itll_ms', did you mean 'p99_itl_ms'"):
        attainment([], {"p99_itll_ms": 1.0})
    with pytest.raises(ConfigError, match="must be above 0 ms, got 0: nobody could meet it"):
        attainment([], {"p99_itl_ms": 0})


def test_effective_throughput_counts_prompts_in_time_and_steady_generation() -> None:
    """100 prompt tokens at 512 a second must be there after 0.195 s; the rate is a moving average of the gaps."""
    good, late, slow = record((0.19, 0.3, 0.4)), record((0.2, 0.3, 0.4)), record((0.1, 0.5, 0.6))
    assert effective_throughput([good, late, slow], duration_s=2) == 0.5
    assert effective_throughput([good, slow], duration_s=2, generation_tokens_per_s=2) == 1.0
    # One long gap moves the average by a tenth: 0.1, 0.1 + 0.1 * 0.9 = 0.19.
    assert slowest_rate(record((0.0, 0.1, 1.1))) == pytest.approx(1 / 0.19)
    assert slowest_rate(record((1.0,))) == float("inf")
    assert effective_throughput([record((0.1,), reason="error")], duration_s=1) == 0


@given(limit=st.floats(1.0, 100.0), seed=st.integers(0, 2**32 - 1))
def test_a_walk_around_the_limit_averages_noise_that_moves_bisection(limit: float, seed: int) -> None:
    noise = random.Random(seed)

    def run(rate: float) -> Attainment:
        return met_up_to(limit)(rate * math.exp(noise.gauss(0, 0.03)))

    first = search_capacity(run, start_rate=5.0)
    found = refine_capacity(run, first, num_runs=64)
    assert limit / 1.05 <= found.rate <= limit * 1.05
    assert found.runs[: len(first.runs)] == first.runs and len(found.runs) == len(first.runs) + 64


@given(limit=st.floats(1.0, 100.0), num_runs=st.integers(4, 20))
def test_without_noise_a_walk_stays_within_a_step_of_the_limit(limit: float, num_runs: int) -> None:
    run = met_up_to(limit)
    found = refine_capacity(run, search_capacity(run, start_rate=5.0), num_runs=num_runs)
    assert limit / (1 + GRANULARITY) ** 1.5 <= found.rate <= limit * (1 + GRANULARITY) ** 1.5


def test_a_search_without_a_limit_is_not_walked_around() -> None:
    run = met_up_to(1e9)
    unbounded = search_capacity(run, start_rate=1)
    assert refine_capacity(run, unbounded, num_runs=8) is unbounded
