# SPDX-License-Identifier: Apache-2.0
"""Gaps between arrivals as gamma distributions: fits by moments and by maximum likelihood, and how good a fit is.

A gamma of shape k and scale th has mean k * th and a coefficient of variation of 1 / sqrt(k): k = 1 is Poisson, below comes in bursts.
Only numpy: the special functions are short, and scipy checks them in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError

Array = NDArray[np.float64]
Method = Literal["likelihood", "moments"]
MAX_SHAPE = 1e6
"""Gaps that hardly differ fit any large shape equally well; from here on they are taken as even."""
_MAX_TERMS = 100_000
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """Gaps with this shape and scale (seconds).

    Raises:
        ConfigError: shape or scale is not above 0.
    """

    shape: float
    scale_s: float

    def __post_init__(self) -> None:
        if not (0 < self.shape < math.inf and 0 < self.scale_s < math.inf):
            raise ConfigError(
                f"a gamma distribution needs shape and scale above 0, got {self.shape} and {self.scale_s}"
            )

    @property
    def mean_s(self) -> float:
        """Mean gap."""
        return self.shape * self.scale_s

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return 1 / math.sqrt(self.shape)

    def cdf(self, gaps_s: Array) -> Array:
        """The share of gaps that are at most as long."""
        return regularized_gamma(self.shape, gaps_s / self.scale_s)


def shape_of_cv(cv: float) -> float:
    """The shape whose gaps have that coefficient of variation.

    Raises:
        ConfigError: the coefficient is not above 0.
    """
    if not 0 < cv < math.inf:
        raise ConfigError(f"a coefficient of variation must be above 0 (1 is Poisson), got {cv}")
    return 1 / (cv * cv)


def fit_moments(gaps_s: Sequence[float] | Array) -> Gamma:
    """Shape and scale with the mean and the variance of the gaps.

    Raises:
        ConfigError: fewer than two gaps, a negative one, or a mean of 0.
    """
    gaps = _checked(gaps_s)
    mean, variance = float(gaps.mean()), float(gaps.var())
    shape = min(mean**2 / variance, MAX_SHAPE) if variance > 0 else MAX_SHAPE
    return Gamma(shape=shape, scale_s=mean / shape)


def fit_likelihood(gaps_s: Sequence[float] | Array) -> Gamma:
    """Shape and scale that make the gaps most likely: the root of ``log k - digamma(k) = log mean - mean log``, by Newton's steps.

    Raises:
        ConfigError: as `fit_moments`, and for a gap of 0, at which the likelihood has no bound: spread the times inside the clock's
            resolution first (`spread_ties`), or use moments.
    """
    gaps = _checked(gaps_s)
    if gaps.min() <= 0:
        raise ConfigError(
            f"{int((gaps <= 0).sum())} of {gaps.size} gaps are 0: no likelihood is greatest; spread equal times inside the resolution of "
            "the clock, or fit by moments"
        )
    mean = float(gaps.mean())
    target = math.log(mean) - float(np.log(gaps).mean())
    if target <= 1 / (2 * MAX_SHAPE):
        return Gamma(shape=MAX_SHAPE, scale_s=mean / MAX_SHAPE)
    # Minka's start is within 1.5 % of the root; Newton's steps on 1 / k stay above 0.
    shape = (3 - target + math.sqrt((target - 3) ** 2 + 24 * target)) / (12 * target)
    for _ in range(50):
        error = math.log(shape) - digamma(shape) - target
        step = error / (shape**2 * (1 / shape - trigamma(shape)))
        shape = 1 / (1 / shape + step)
        if abs(step) * shape < _EPSILON:
            break
    return Gamma(shape=shape, scale_s=mean / shape)


def fit_gamma(gaps_s: Sequence[float] | Array) -> tuple[Gamma, Method]:
    """By maximum likelihood, or by moments where a gap of 0 forbids that.

    Raises:
        ConfigError: see `fit_moments`.
    """
    gaps = _checked(gaps_s)
    if gaps.min() <= 0:
        return fit_moments(gaps), "moments"
    return fit_likelihood(gaps), "likelihood"


def spread_ties(times_s: Sequence[float] | Array, resolution_s: float, rng: np.random.Generator) -> Array:
    """Times at random places inside the tick of the clock that wrote them, in order. Without it, equal times make gaps of 0.

    Args:
        resolution_s: length of a tick; 0 changes nothing.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if resolution_s <= 0:
        return times
    return np.sort(times + rng.uniform(0.0, resolution_s, times.size))


def resolution_of(times_s: Sequence[float] | Array) -> float:
    """The coarsest of 1 s, 0.1 s, .. 1 us whose multiples all times are; 0 if none is, or if no two times are equal."""
    times = np.asarray(times_s, dtype=np.float64)
    if times.size < 2 or np.unique(times).size == times.size:
        return 0.0
    for digits in range(7):
        scaled = times * 10.0**digits
        if np.allclose(scaled, np.rint(scaled), rtol=0, atol=1e-4):
            return 10.0**-digits
    return 0.0


def ks_distance(gaps_s: Array, law: Gamma) -> float:
    """The largest difference between the shares of the sample and those of the law (Kolmogorov and Smirnov)."""
    ordered = np.sort(gaps_s)
    below = law.cdf(ordered)
    steps = np.arange(ordered.size + 1) / ordered.size
    return float(max((steps[1:] - below).max(), (below - steps[:-1]).max()))


def ks_p_value(distance: float, num_samples: int) -> float:
    """How likely a distance like that or more is when the law was fixed beforehand (Kolmogorov's limit, Stephens' correction)."""
    root = math.sqrt(num_samples)
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:  # the series converges slowly there, and the value is 1 to twelve digits
        return 1.0
    total = sum((1 if term % 2 else -1) * math.exp(-2 * (term * x) ** 2) for term in range(1, 101))
    return min(1.0, max(0.0, 2 * total))


def bootstrap_p_value(gaps_s: Array, rng: np.random.Generator, *, num_resamples: int = 99) -> tuple[float, float]:
    """(distance, p) of a sample against the gamma that was fitted to it. A fitted law lies closer than the true one, so the distance is
    compared with those of samples drawn from the fit and fitted anew (parametric bootstrap)."""
    law, method = fit_gamma(gaps_s)
    distance = ks_distance(gaps_s, law)
    fit = fit_moments if method == "moments" else fit_likelihood
    num_worse = 0
    for _ in range(num_resamples):
        # Shapes and distances do not depend on the scale. Tiny shapes underflow to 0, which no likelihood can take.
        sample = np.maximum(rng.gamma(law.shape, 1.0, gaps_s.size), 1e-300)
        num_worse += ks_distance(sample, fit(sample)) >= distance
    return distance, (num_worse + 1) / (num_resamples + 1)


def digamma(x: float) -> float:
    """Derivative of log gamma, for x > 0: recurrence up to 10, then the asymptotic series (DLMF 5.11.2)."""
    result = 0.0
    while x < 10:
        result -= 1 / x
        x += 1
    y = 1 / (x * x)
    return result + math.log(x) - 1 / (2 * x) - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))


def trigamma(x: float) -> float:
    """Derivative of digamma, for x > 0 (DLMF 5.15.8)."""
    result = 0.0
    while x < 10:
        result += 1 / (x * x)
        x += 1
    y = 1 / (x * x)
    return result + 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * 5 / 66))))


def regularized_gamma(shape: float, x: Array) -> Array:
    """P(shape, x), the cumulative distribution of a gamma of scale 1: a series below ``shape + 1``, a continued fraction above (DLMF
    8.7.1, 8.9.2)."""
    x = np.asarray(x, dtype=np.float64)
    result = np.zeros_like(x)
    is_low = (x > 0) & (x < shape + 1)
    is_high = x >= shape + 1
    # exp(-x) x^shape / gamma(shape)
    with np.errstate(divide="ignore"):
        factor = np.exp(shape * np.log(np.maximum(x, 0.0)) - x - math.lgamma(shape))
    result[is_low] = factor[is_low] * _series(shape, x[is_low])
    result[is_high] = 1 - factor[is_high] * _fraction(shape, x[is_high])
    return np.clip(result, 0.0, 1.0)


def _series(shape: float, x: Array) -> Array:
    term = np.full_like(x, 1 / shape)
    total = term.copy()
    for place in range(1, _MAX_TERMS):
        term *= x / (shape + place)
        total += term
        if not (term > total * _EPSILON).any():
            break
    return total


def _fraction(shape: float, x: Array) -> Array:
    """Lentz's method. Places that have converged are left alone, so that late ones cost little."""
    tiny = 1e-300
    b = x + 1 - shape
    c, d = np.full_like(x, 1 / tiny), 1 / np.where(b == 0, tiny, b)
    result = d.copy()
    for place in range(1, _MAX_TERMS):
        a = place * (shape - place)
        b = b + 2
        d = a * d + b
        d = 1 / np.where(np.abs(d) < tiny, tiny, d)
        c = b + a / c
        c = np.where(np.abs(c) < tiny, tiny, c)
        factor = c * d
        result *= factor
        if not (np.abs(factor - 1) > _EPSILON).any():
            break
    return result


def _checked(gaps_s: Sequence[float] | Array) -> Array:
    gaps = np.asarray(gaps_s, dtype=np.float64)
    if gaps.size < 2:
        raise ConfigError(f"a fit needs at least two gaps, got {gaps.size}")
    if gaps.min() < 0 or not np.isfinite(gaps).all():
        raise ConfigError("gaps must be numbers of at least 0; are the times in order?")
    if gaps.max() <= 0:
        raise ConfigError(f"all {gaps.size} gaps are 0: the times say nothing about the rate")
    return gaps
