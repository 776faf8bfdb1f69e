# SPDX-License-Identifier: Apache-2.0
"""A trace's arrivals as a series of windows, each with its own gamma distribution of gaps, and new arrivals drawn from the series.

One gamma over a whole day would take the change of the rate from night to noon for burstiness, so gaps are always compared inside a
window. The series keeps the day: a replay of it has the same nights and noons (BurstGPT, arXiv 2401.17644).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ziggurat.errors import ConfigError
from ziggurat.workload.gamma import (
    Array,
    Gamma,
    bootstrap_p_value,
    fit_gamma,
    resolution_of,
    spread_ties,
)

MIN_GAPS = 8
"""Fewer gaps say nothing about a shape: such a window has its rate and the shape of Poisson."""
MAX_ROUNDED_SHARE = 0.02
MAX_WINDOWS = 1_000_000
WindowMethod = Literal["likelihood", "moments", "rate only", "empty", "all failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Arrivals in ``[start_s, start_s + width_s)``. ``gaps_s`` are those between two arrivals of the window."""

    start_s: float
    width_s: float
    times_s: Array

    @property
    def gaps_s(self) -> Array:
        """Times between neighbours; one less than arrivals."""
        return np.diff(self.times_s)


def split_windows(times_s: Sequence[float] | Array, window_s: float) -> list[Window]:
    """Windows side by side from the first arrival on. The last one ends with the last arrival, or its rate would be too low. Times are in
    order.

    Raises:
        ConfigError: the window is not above 0, or so short that there would be more than a million.
    """
    if not 0 < window_s < math.inf:
        raise ConfigError(f"a window must be longer than 0 s, got {window_s}")
    times = np.asarray(times_s, dtype=np.float64)
    if not times.size:
        return []
    start_s = float(times[0])
    num_windows = int((float(times[-1]) - start_s) // window_s) + 1
    if num_windows > MAX_WINDOWS:
        raise ConfigError(
            f"windows of {window_s:g} s would be {num_windows:,}, at most {MAX_WINDOWS:,} are made; take longer ones"
        )
    edges = np.searchsorted(times, start_s + window_s * np.arange(num_windows + 1), side="left")
    edges[-1] = times.size
    starts = [start_s + window_s * place for place in range(num_windows)]
    widths = [window_s] * (num_windows - 1) + [min(window_s, float(times[-1]) - starts[-1]) or window_s]
    return [
        Window(start_s=start, width_s=width, times_s=times[edges[place] : edges[place + 1]])
        for place, (start, width) in enumerate(zip(starts, widths, strict=True))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFit:
    """One window's law.

    Attributes:
        rate: arrivals per second, counted.
        gaps: None for a window without arrivals.
        method: how it was fitted; ``moments`` where gaps of 0 forbid a likelihood.
        ks_distance, p_value: of the fit against its own window, by parametric bootstrap; None where that was not asked for.
    """

    start_s: float
    width_s: float
    num_arrivals: int
    rate: float
    gaps: Gamma | None
    method: WindowMethod
    ks_distance: float | None = None
    p_value: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "start_s": self.start_s,
            "width_s": self.width_s,
            "num_requests": self.num_arrivals,
            "rate_per_s": self.rate,
            "shape": None if self.gaps is None else self.gaps.shape,
            "scale_s": None if self.gaps is None else self.gaps.scale_s,
            "cv": None if self.gaps is None else self.gaps.cv,
            "method": self.method,
            "ks_distance": self.ks_distance,
            "p_value": self.p_value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalSeries:
    """Windows in order of time and side by side: an arrival model of a whole trace.

    Attributes:
        resolution_s: tick of the trace's clock inside which equal times were spread before fitting; 0 if there was no need.
    """

    window_s: float
    fits: tuple[WindowFit, ...]
    resolution_s: float = 0.0

    @property
    def mean_rate(self) -> float:
        """Arrivals per second over all windows."""
        return sum(fit.rate * fit.width_s for fit in self.fits) / sum(fit.width_s for fit in self.fits)

    def as_dict(self, *, level: float = 0.05) -> dict[str, Any]:
        """The report: how many windows were fitted how, how many fits are refused at the level, and the series."""
        methods = [fit.method for fit in self.fits]
        tested = [fit.p_value for fit in self.fits if fit.p_value is not None]
        return {
            "window_s": self.window_s,
            "resolution_s": self.resolution_s,
            "num_windows": len(self.fits),
            "num_by_method": {method: methods.count(method) for method in sorted(set(methods))},
            "num_tested": len(tested),
            "num_rejected": sum(p_value < level for p_value in tested),
            "level": level,
            "series": [fit.as_dict() for fit in self.fits],
        }

    def draw(self, *, seed: int, rate_scale: float = 1.0, max_arrivals: int | None = None) -> list[float]:
        """New arrival times of one pass through the series, seconds from its start.

        Gaps are drawn with mean 1 in the shape of the window in which they begin, and time runs through them as fast as the rate of the
        window it is in. So the mean number of arrivals of every window is right, and a gap may cross windows, empty ones included.

        Args:
            rate_scale: so many times the rate, in the shape that was fitted (the modelled scaling of BurstGPT).

        Raises:
            ConfigError: the scale is not above 0.
        """
        if not 0 < rate_scale < math.inf:
            raise ConfigError(f"the rate scale must be above 0, got {rate_scale}")
        rng = random.Random(f"series/{seed}")
        times: list[float] = []
        place, now_s, gap = 0, 0.0, self._first_gap(rng)
        while place < len(self.fits) and (max_arrivals is None or len(times) < max_arrivals):
            end_s = self.fits[place].start_s + self.fits[place].width_s - self.fits[0].start_s
            rate = self.fits[place].rate * rate_scale
            if rate <= 0 or now_s + gap / rate >= end_s:
                gap -= max(0.0, end_s - now_s) * max(0.0, rate)
                place, now_s = place + 1, end_s
                continue
            now_s += gap / rate
            times.append(now_s)
            gap = _unit_gap(rng, self.fits[place])
        return times

    def _first_gap(self, rng: random.Random) -> float:
        """From a moment at which no arrival was: a share of a gap that is drawn in proportion to its length, or the first windows of
        bursty series would be too full."""
        first = next((fit for fit in self.fits if fit.gaps is not None), None)
        if first is None or first.gaps is None:
            return 1.0
        shape = first.gaps.shape
        return rng.random() * rng.gammavariate(shape + 1, 1 / shape)


def _unit_gap(rng: random.Random, fit: WindowFit) -> float:
    shape = 1.0 if fit.gaps is None else fit.gaps.shape
    return rng.gammavariate(shape, 1 / shape)


def fit_series(
    times_s: Sequence[float] | Array,
    window_s: float,
    *,
    failed_s: Sequence[float] = (),
    seed: int = 0,
    num_resamples: int = 0,
) -> ArrivalSeries:
    """The law of every window of a trace.

    Args:
        failed_s: times of failed requests, in any order: a window that has nothing else is reported as such and gets no parameters.
        seed: of the jitter inside the clock's resolution and of the bootstrap.
        num_resamples: for the goodness of fit of each window, at least 19 for a level of 5 %; 0 leaves it out.

    Raises:
        ConfigError: no arrivals, or a window that is not above 0.
    """
    if not len(times_s):
        raise ConfigError("a trace without requests has no law of arrivals")
    rng = np.random.default_rng(seed)
    resolution_s = resolution_of(times_s)
    failed = np.sort(np.asarray(failed_s, dtype=np.float64))
    fits = []
    for window in split_windows(spread_ties(times_s, resolution_s, rng), window_s):
        first, last = np.searchsorted(failed, (window.start_s, window.start_s + window_s))
        fits.append(_fit_window(window, has_failed=bool(last > first), rng=rng, num_resamples=num_resamples))
    return ArrivalSeries(window_s=window_s, fits=tuple(fits), resolution_s=resolution_s)


def _without_rounded(window: Window) -> Array:
    """The gaps, where a few of 0 are no batches but gaps shorter than a double can tell at that time: bursty laws have such."""
    gaps = window.gaps_s
    num_zero = int((gaps <= 0).sum())
    if not 0 < num_zero <= MAX_ROUNDED_SHARE * gaps.size:
        return gaps
    shortest_s = float(np.spacing(window.times_s[-1]))
    return np.asarray(np.maximum(gaps, shortest_s))


def _fit_window(window: Window, *, has_failed: bool, rng: np.random.Generator, num_resamples: int) -> WindowFit:
    count = int(window.times_s.size)
    gaps: Gamma | None = None
    method: WindowMethod = "empty"
    distance: float | None = None
    p_value: float | None = None
    if count and (window.gaps_s.size < MIN_GAPS or window.gaps_s.max() <= 0):
        gaps, method = Gamma(shape=1.0, scale_s=window.width_s / count), "rate only"
    elif count:
        sample = _without_rounded(window)
        gaps, method = fit_gamma(sample)
        if num_resamples:
            distance, p_value = bootstrap_p_value(sample, rng, num_resamples=num_resamples)
    elif has_failed:
        method = "all failed"
    return WindowFit(
        start_s=window.start_s,
        width_s=window.width_s,
        num_arrivals=count,
        rate=count / window.width_s,
        gaps=gaps,
        method=method,
        ks_distance=distance,
        p_value=p_value,
    )
