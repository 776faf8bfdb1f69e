# SPDX-License-Identifier: Apache-2.0
"""Every registered law of arrivals, and the series of windows: mean rate, burstiness, days that come back, windows without a law."""

from __future__ import annotations

import random
import re
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.workload.arrival_windows import ArrivalSeries, WindowFit, fit_series, split_windows
from ziggurat.workload.arrivals import ARRIVAL_MODELS, LENGTHS, make_arrivals, unit_times, with_mean_rate
from ziggurat.workload.gamma import Gamma

PAGE = Path(__file__).parents[3] / "docs" / "arrival-models.md"
times = st.lists(st.floats(0, 1000), min_size=1, max_size=80).map(sorted)


@pytest.mark.parametrize("name", ARRIVAL_MODELS.names())
@pytest.mark.parametrize("burstiness", [1.0, 0.25, 1 / 9])
def test_every_law_has_mean_one_and_the_cv_it_is_asked_for(name: str, burstiness: float) -> None:
    gaps = np.array(list(islice(ARRIVAL_MODELS.get(name)(random.Random(1), burstiness), 60_000)))
    sigma = (1 / burstiness / gaps.size) ** 0.5
    assert abs(gaps.mean() - 1) < 4 * sigma and gaps.min() >= 0
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.06)


@pytest.mark.parametrize("name", ARRIVAL_MODELS.names())
@given(seed=st.integers(0, 99), count=st.integers(0, 30), burstiness=st.floats(0.05, 8))
def test_a_law_takes_nothing_but_its_dice(name: str, seed: int, count: int, burstiness: float) -> None:
    found = unit_times(count, seed=seed, burstiness=burstiness, model=name)
    assert found == unit_times(count + 5, seed=seed, burstiness=burstiness, model=name)[:count] == sorted(found)


def test_the_page_lists_every_law() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == ARRIVAL_MODELS.names()
    with pytest.raises(ConfigError, match="unknown arrival model 'gama', did you mean 'gamma'"):
        unit_times(1, seed=0, model="gama")


def test_an_exact_rate_changes_nothing_but_the_rate() -> None:
    found = unit_times(50, seed=3, burstiness=0.1)
    exact = with_mean_rate(found)
    assert exact[-1] == pytest.approx(50) and with_mean_rate([]) == [] and with_mean_rate([0.0]) == [0.0]
    assert [a / b for a, b in zip(exact, found, strict=True)] == pytest.approx([50 / found[-1]] * 50)
    arrivals = make_arrivals(50, LENGTHS.get("zipf")(0.1), seed=3, burstiness=0.1, is_rate_exact=True)
    assert [arrival.t_s for arrival in arrivals] == exact


@given(times, st.floats(0.5, 2000))
def test_windows_hold_every_arrival_once(raw: list[float], window_s: float) -> None:
    windows = split_windows(raw, window_s)
    assert np.concatenate([window.times_s for window in windows]).tolist() == raw
    for before, after in pairwise(windows):
        assert after.start_s == pytest.approx(before.start_s + window_s)
    for window in windows:
        inside = (window.times_s >= window.start_s - 1e-6) & (window.times_s <= window.start_s + window_s + 1e-6)
        assert inside.all()


def window(start_s: float, width_s: float, rate: float, gaps: Gamma) -> WindowFit:
    return WindowFit(start_s=start_s, width_s=width_s, num_arrivals=1, rate=rate, gaps=gaps, method="likelihood")


def day(*, hours: int = 8) -> ArrivalSeries:
    """Hours of 20 and 200 arrivals a minute by turns, shapes 0.25 and 1."""
    fits = []
    for hour in range(hours):
        rate, shape = (200 / 60, 1.0) if hour % 2 else (20 / 60, 0.25)
        gaps = Gamma(shape=shape, scale_s=1 / rate / shape)
        fits.append(window(3600.0 * hour, 3600.0, rate, gaps))
    return ArrivalSeries(window_s=3600.0, fits=tuple(fits))


def test_a_series_comes_back_from_its_own_arrivals() -> None:
    series = day()
    # Windows begin with the first arrival, so one at 0 keeps them where they were.
    found = fit_series([0.0, *series.draw(seed=5)], 3600.0, num_resamples=19)
    for ours, theirs in zip(found.fits, series.fits, strict=True):
        assert ours.gaps is not None and theirs.gaps is not None
        # 1,200 gaps of CV 2: the rate's standard deviation is 2 / sqrt(1200) = 6 %.
        assert ours.rate == pytest.approx(theirs.rate, rel=0.2)
        assert ours.gaps.shape == pytest.approx(theirs.gaps.shape, rel=0.15)
        assert ours.p_value is not None and ours.ks_distance is not None
    assert found.as_dict()["num_by_method"] == {"likelihood": 8} and found.as_dict()["num_rejected"] <= 3


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_mean_rate_is_within_three_sigma(seed: int, scale: float) -> None:
    series = day(hours=2)
    count = len(series.draw(seed=seed, rate_scale=scale))
    expected = 3600 * (20 + 200) / 60 * scale
    # Var of a renewal count is mean * CV^2; CV^2 is 4 in the first hour and 1 in the second. Three sigma are left once in 370 draws.
    sigma = (3600 / 60 * scale * (20 * 4 + 200)) ** 0.5
    assert abs(count - expected) < 3.6 * sigma


def test_a_day_fitted_as_a_whole_looks_bursty_although_no_hour_is() -> None:
    rates = (0.05, 5.0)
    fits = [window(7200.0 * place, 7200.0, rate, Gamma(shape=1, scale_s=1 / rate)) for place, rate in enumerate(rates)]
    drawn = ArrivalSeries(window_s=7200.0, fits=tuple(fits)).draw(seed=1)
    whole = fit_series(drawn, 14400.0).fits[0]
    hours = fit_series([0.0, *drawn], 1800.0).fits
    assert whole.gaps is not None and whole.gaps.cv > 1.3
    assert all(fit.gaps is None or fit.gaps.cv < 1.2 for fit in hours)


def test_windows_without_a_law_are_named() -> None:
    busy = np.arange(100.0) * 0.5 + np.random.default_rng(0).random(100) * 0.1
    found = fit_series([*busy, 130.0, 310.0], 60.0, failed_s=[200.0, 190.0, 10.0])
    assert [fit.method for fit in found.fits] == [
        "likelihood",
        "empty",
        "rate only",
        "all failed",
        "empty",
        "rate only",
    ]
    assert [fit.gaps is None for fit in found.fits] == [False, True, False, True, True, False]
    assert all(np.isfinite(fit.rate) for fit in found.fits)
    drawn = found.draw(seed=1)
    assert not [t for t in drawn if 60 <= t < 120 or 180 <= t < 300], "nobody comes while the rate is 0"
    same = fit_series([5.0] * 20, 60.0).fits[0]
    assert (same.method, same.num_arrivals, same.width_s < 1.0) == ("likelihood", 20, True), "spread inside one tick"


def test_a_trace_shorter_than_a_window_keeps_its_rate() -> None:
    found = fit_series(np.arange(101.0), 300.0)
    assert (found.fits[0].width_s, found.mean_rate) == (100.0, 1.01)
    assert len(found.draw(seed=1)) == pytest.approx(101, abs=3)
    assert fit_series([7.0], 300.0).fits[0].rate == 1 / 300


def test_what_has_no_series() -> None:
    with pytest.raises(ConfigError, match="without requests"):
        fit_series([], 60)
    with pytest.raises(ConfigError, match="longer than 0 s, got -1"):
        fit_series([1.0], -1)
    with pytest.raises(ConfigError, match="windows of 1e-06 s would be"):
        fit_series([1.0, 1e6], 1e-6)
    for bad in (0, -1, float("inf")):
        with pytest.raises(ConfigError, match="rate scale must be above 0"):
            day().draw(seed=0, rate_scale=bad)
    assert len(day().draw(seed=0, max_arrivals=7)) == 7 and day().draw(seed=0) == day().draw(seed=0) != day().draw(
        seed=1
    )
    assert day().mean_rate == pytest.approx(110 / 60)
