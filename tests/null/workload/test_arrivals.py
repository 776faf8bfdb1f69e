# SPDX-License-Identifier: Apache-2.0
"""Arrival processes and lengths: moments, common random numbers, and traces that are not in order."""

from __future__ import annotations

import math
import statistics

import pytest

from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import LENGTHS, at_rate, check_trace, draw_lengths, make_arrivals, unit_times
from ziggurat.workload.metrics import percentile
from ziggurat.workload.records import Arrival


@pytest.mark.parametrize(("burstiness", "deviation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gaps_have_mean_one_and_the_spread_of_their_burstiness(burstiness: float, deviation: float) -> None:
    """A gamma with shape b and mean 1 has a standard deviation of 1 / sqrt(b)."""
    times = unit_times(8000, seed=3, burstiness=burstiness)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1, rel=0.08)
    assert statistics.pstdev(gaps) == pytest.approx(deviation, rel=0.08)


def test_the_sources_quantiles_come_out() -> None:
    pairs = draw_lengths(6000, LENGTHS.get("arxiv")(0.125), seed=1)
    prompts, outputs = zip(*pairs, strict=True)
    assert statistics.median(prompts) == pytest.approx(2730 / 8, rel=0.03)
    assert percentile(prompts, 90) == pytest.approx(3702 / 8, rel=0.03)
    assert statistics.median(outputs) == pytest.approx(167 / 8, rel=0.05)
    assert percentile(outputs, 90) == pytest.approx(372 / 8, rel=0.05)
    prompts, outputs = zip(*draw_lengths(6000, LENGTHS.get("fastgen")(0.125), seed=1), strict=True)
    assert (statistics.fmean(prompts), statistics.pstdev(prompts)) == pytest.approx((150, 45), rel=0.03)
    assert (statistics.fmean(outputs), statistics.pstdev(outputs)) == pytest.approx((60, 18), rel=0.03)


def test_no_request_is_longer_than_the_model() -> None:
    pairs = draw_lengths(500, LENGTHS.get("arxiv")(1.0), seed=1, max_model_len=1024)
    assert all(prompt >= 1 and output >= 1 and prompt + output <= 1024 for prompt, output in pairs)


def test_a_rate_divides_the_times_and_changes_nothing_else() -> None:
    unit = make_arrivals(20, LENGTHS.get("fastgen")(0.1), seed=5)
    fast = at_rate(unit, 4.0)
    assert [a.t_s for a in fast] == pytest.approx([a.t_s / 4 for a in unit])
    assert [(a.id, a.prompt_len, a.max_new, a.prompt(99)) for a in fast] == [
        (a.id, a.prompt_len, a.max_new, a.prompt(99)) for a in unit
    ]
    assert {a.t_s for a in at_rate(unit, math.inf)} == {0.0}
    assert make_arrivals(20, LENGTHS.get("fastgen")(0.1), seed=5) == unit
    assert make_arrivals(20, LENGTHS.get("fastgen")(0.1), seed=6) != unit


def test_bad_input_says_what_is_wrong() -> None:
    lengths = LENGTHS.get("fastgen")(0.1)
    with pytest.raises(ConfigError, match="at least one request, got 0"):
        make_arrivals(0, lengths)
    with pytest.raises(ConfigError, match="burstiness must be a number above 0 .* got -1"):
        make_arrivals(3, lengths, burstiness=-1)
    with pytest.raises(ConfigError, match="rate must be above 0 .* got 0"):
        at_rate(make_arrivals(3, lengths), 0)
    with pytest.raises(ConfigError, match="unknown length distribution 'arxivv', did you mean 'arxiv'"):
        LENGTHS.get("arxivv")
    with pytest.raises(ConfigError, match="t_s at least 0, got 1, 1, 1, -0.5"):
        Arrival(t_s=-0.5, id="a", prompt_len=1, max_new=1)
    rows = [Arrival(t_s=t_s, id=f"r{t_s}", prompt_len=1, max_new=1) for t_s in (0, 2, 1)]
    with pytest.raises(ConfigError, match=r"not sorted: row 3 \('r1'\) comes at 1 s, the row before it at 2 s"):
        check_trace(rows)
