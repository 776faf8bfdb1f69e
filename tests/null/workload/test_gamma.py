# SPDX-License-Identifier: Apache-2.0
"""Special functions, fits and tests of fits against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from ziggurat.errors import ConfigError
from ziggurat.workload import gamma
from ziggurat.workload.gamma import Gamma, fit_gamma, fit_likelihood, fit_moments

shapes = st.floats(0.02, 2000)


@given(shapes, st.lists(st.floats(0, 20), min_size=1, max_size=20))
def test_the_distribution_is_scipys(shape: float, ratios: list[float]) -> None:
    x = np.array(ratios) * shape
    assert gamma.regularized_gamma(shape, x) == pytest.approx(special.gammainc(shape, x), abs=1e-9)


@given(st.floats(1e-3, 1e6))
def test_the_derivatives_are_scipys(x: float) -> None:
    assert gamma.digamma(x) == pytest.approx(float(special.digamma(x)), rel=1e-11, abs=1e-11)
    assert gamma.trigamma(x) == pytest.approx(float(special.polygamma(1, x)), rel=1e-11)


@pytest.mark.parametrize("shape", [0.04, 0.1, 0.5, 1.0, 2.0, 30.0])
def test_the_likeliest_fit_is_scipys(shape: float) -> None:
    gaps = np.maximum(np.random.default_rng(4).gamma(shape, 3.0, 3000), 1e-200)
    theirs, _, scale = stats.gamma.fit(gaps, floc=0)
    ours = fit_likelihood(gaps)
    assert (ours.shape, ours.scale_s) == pytest.approx((theirs, scale), rel=1e-6)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40))
def test_no_neighbour_of_the_fit_is_likelier(raw: list[float]) -> None:
    gaps = np.array(raw)
    ours = fit_likelihood(gaps)
    assert ours.mean_s == pytest.approx(gaps.mean())
    if ours.shape < gamma.MAX_SHAPE:
        best = stats.gamma.logpdf(gaps, ours.shape, scale=ours.scale_s).sum()
        for factor in (0.98, 1.02):
            other = ours.shape * factor
            assert stats.gamma.logpdf(gaps, other, scale=gaps.mean() / other).sum() <= best + 1e-6 * abs(best)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=40).filter(lambda gaps: max(gaps) > 1e-3))
def test_moments_are_the_samples(raw: list[float]) -> None:
    law = fit_moments(raw)
    assert law.mean_s == pytest.approx(np.mean(raw))
    if law.shape < gamma.MAX_SHAPE:
        assert law.cv * law.mean_s == pytest.approx(np.std(raw))


def test_known_shapes_come_back() -> None:
    """The acceptance line: within 5 % at 20,000 gaps, by both methods where the moments are steady."""
    for seed, (shape, scale_s) in enumerate([(0.1, 5.0), (0.5, 2.0), (1.0, 1.0), (4.0, 0.1)]):
        gaps = np.random.default_rng(seed).gamma(shape, scale_s, 20_000)
        assert fit_likelihood(gaps).shape == pytest.approx(shape, rel=0.05)
        assert fit_likelihood(gaps).scale_s == pytest.approx(scale_s, rel=0.06)
        assert fit_moments(gaps).shape == pytest.approx(shape, rel=0.08)


@given(st.integers(0, 10**6), st.integers(5, 400), st.floats(0.1, 5))
def test_the_distance_is_scipys(seed: int, count: int, shape: float) -> None:
    gaps = np.random.default_rng(seed).gamma(shape, 2.0, count)
    theirs = stats.kstest(gaps, "gamma", args=(shape, 0, 2.0))
    distance = gamma.ks_distance(gaps, Gamma(shape=shape, scale_s=2.0))
    assert distance == pytest.approx(theirs.statistic, abs=1e-9)
    assert gamma.ks_p_value(distance, count) == pytest.approx(theirs.pvalue, abs=0.02)


def test_the_bootstrap_refuses_what_is_no_gamma_and_is_fair_otherwise() -> None:
    rng = np.random.default_rng(1)
    values = [gamma.bootstrap_p_value(rng.gamma(0.5, 2.0, 150), rng, num_resamples=39)[1] for _ in range(40)]
    # Binomial(40, 0.1): more than 10 comes once in 700 times.
    assert sum(value <= 0.1 for value in values) <= 10 and min(values) >= 1 / 40
    two_peaks = np.concatenate([rng.normal(1, 0.01, 200), rng.normal(9, 0.01, 200)])
    assert gamma.bootstrap_p_value(two_peaks, rng, num_resamples=39)[1] == 1 / 40
    # Against a table for fixed laws the same fits would look too good: the reason for the bootstrap.
    naive = [gamma.ks_p_value(gamma.ks_distance(x, fit_likelihood(x)), 150) for x in rng.gamma(0.5, 2.0, (40, 150))]
    assert np.mean(naive) > 0.65


def test_gaps_of_nothing_are_fitted_by_moments_or_spread() -> None:
    gaps = [0.0, 0.0, 1.0, 3.0]
    with pytest.raises(ConfigError, match="2 of 4 gaps are 0"):
        fit_likelihood(gaps)
    assert fit_gamma(gaps) == (fit_moments(gaps), "moments")
    rng = np.random.default_rng(0)
    times = np.array([0.0, 0.0, 0.0, 1.0, 4.0])
    assert gamma.resolution_of(times) == 1.0
    spread = gamma.spread_ties(times, 1.0, rng)
    assert (np.floor(spread) == times).all() and (np.diff(spread) > 0).all()
    assert gamma.resolution_of([0.0, 0.1, 0.1]) == 0.1 and gamma.resolution_of([0.0, 1.0]) == 0.0
    assert gamma.resolution_of([0.0, 0.12345678, 0.12345678]) == 0.0
    assert (gamma.spread_ties(times, 0.0, rng) == times).all()


def test_coarse_clocks_do_not_hide_the_shape() -> None:
    """Times cut to whole seconds, a tenth of a second apart on average: the fit of the spread times is nearly Poisson, as it should be."""
    times = np.floor(np.cumsum(np.random.default_rng(2).exponential(0.1, 20_000)))
    resolution_s = gamma.resolution_of(times)
    spread = gamma.spread_ties(times, resolution_s, np.random.default_rng(3))
    law, method = fit_gamma(np.diff(spread))
    assert (resolution_s, method) == (1.0, "likelihood") and law.shape == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("gaps", "says"),
    [
        ([1.0], "at least two gaps, got 1"),
        ([1.0, -1.0], "at least 0; are the times in order"),
        ([1.0, math.inf], "at least 0"),
        ([0.0, 0.0], "all 2 gaps are 0"),
    ],
)
def test_what_cannot_be_fitted(gaps: list[float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit_moments(gaps)


def test_even_gaps_have_the_largest_shape() -> None:
    assert fit_moments([2.0] * 5).shape == fit_likelihood([2.0] * 5).shape == gamma.MAX_SHAPE
    assert fit_likelihood([2.0] * 5).mean_s == pytest.approx(2)


def test_shapes_and_cvs() -> None:
    assert gamma.shape_of_cv(3) == pytest.approx(1 / 9) and Gamma(shape=1 / 9, scale_s=1).cv == pytest.approx(3)
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="must be above 0"):
            gamma.shape_of_cv(bad)
    with pytest.raises(ConfigError, match="shape and scale above 0"):
        Gamma(shape=0, scale_s=1)
