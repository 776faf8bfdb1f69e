# SPDX-License-Identifier: Apache-2.0
"""The highest request rate at which a target is met: by bisection, then, if asked, up and down around the limit.

Pure: whoever calls it brings the run.

With common random numbers (`ziggurat.workload.arrivals`) all rates see the same requests, so that "met" falls once from yes to no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ziggurat.errors import ConfigError
from ziggurat.workload.metrics import Attainment

GRANULARITY = 0.025
MAX_RUNS = 40
# How far to go up, by how many times the worst limit lies above what was measured. The first row that applies counts.
_WIDENING: tuple[tuple[float, float], ...] = ((16.0, 4.0), (4.0, 2.0), (1.5, 1.5), (0.0, 1.2))
_NARROWING = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a search found.

    Attributes:
        rate: the highest rate that was run and met, requests per second; after `refine_capacity` the rate that is met half of the time.
        is_bounded: some rate did not meet the target; if not, the workload is too short to tell and ``rate`` is a lower bound.
        runs: every run in the order of the search: rate and attainment.
    """

    rate: float
    is_bounded: bool
    runs: tuple[tuple[float, Attainment], ...]


def widening(headroom: float, table: Sequence[tuple[float, float]] = _WIDENING) -> float:
    """The factor to go up by after a run that met its target with that headroom."""
    return next(factor for least, factor in table if headroom >= least)


def search_capacity(
    run: Callable[[float], Attainment],
    *,
    start_rate: float,
    granularity: float = GRANULARITY,
    min_rate: float | None = None,
    max_rate: float | None = None,
) -> Capacity:
    """Widen from ``start_rate`` until one rate meets the target and one does not, then halve the gap until it is ``granularity`` wide.

    Args:
        run: serves the workload at a rate and says whether the target was met.
        min_rate, max_rate: where to give up: by default a thousandth and a thousand times ``start_rate``.

    Raises:
        ConfigError: the start is not above 0, or no rate down to ``min_rate`` meets the target; says what was measured there.
    """
    if not start_rate > 0:
        raise ConfigError(f"the search needs a start rate above 0, got {start_rate}")
    least = start_rate / 1000 if min_rate is None else min_rate
    most = start_rate * 1000 if max_rate is None else max_rate
    runs: list[tuple[float, Attainment]] = []
    low, high, rate = 0.0, 0.0, start_rate
    while len(runs) < MAX_RUNS:
        attainment = run(rate)
        runs.append((rate, attainment))
        if attainment.is_met:
            low = rate
        else:
            high = rate
            if rate <= least:
                raise ConfigError(f"no rate meets the target: even {rate:.4g} requests/s gives {attainment.explain()}")
        if (high and low and high / low - 1 <= granularity) or (not high and low >= most):
            break
        if not high:
            rate = min(rate * widening(attainment.headroom), most)
        elif not low:
            rate = max(rate * _NARROWING, least)
        else:
            rate = (low * high) ** 0.5
    return Capacity(rate=low, is_bounded=high > 0, runs=tuple(runs))


def refine_capacity(
    run: Callable[[float], Attainment], found: Capacity, *, num_runs: int, granularity: float = GRANULARITY
) -> Capacity:
    """Walk around the limit that a search found, one step up after a run that met the target and one down after a run that did not.

    Bisection asks each rate once, so that one hiccup of the machine near the limit moves its answer for good. Here the geometric mean
    of the rates that were called for, from the first turn on, is the rate met half of the time; the noise falls with their number
    (Dixon and Mood, "A method for obtaining and analyzing sensitivity data", JASA 43, 1948).

    Args:
        num_runs: runs to add, at least 1.
        granularity: the width of a step, as a share of the rate.

    Returns:
        The search with the refined rate and all runs. A search that met no limit has nothing to walk around and comes back as it is.
    """
    assert num_runs >= 1, "a walk needs a run"
    if not found.is_bounded:
        return found
    rate, runs, called_for, verdicts = found.rate, list(found.runs), [], []
    for _ in range(num_runs):
        attainment = run(rate)
        runs.append((rate, attainment))
        verdicts.append(attainment.is_met)
        rate = rate * (1 + granularity) if attainment.is_met else rate / (1 + granularity)
        called_for.append(rate)
    turn = next((index for index, is_met in enumerate(verdicts) if is_met != verdicts[0]), num_runs)
    # The rate before the first turn is the highest or lowest of the walk and belongs to it.
    mean = fmean(math.log(each) for each in called_for[max(turn - 1, 0) :])
    return Capacity(rate=math.exp(mean), is_bounded=True, runs=tuple(runs))
