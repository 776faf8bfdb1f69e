# SPDX-License-Identifier: Apache-2.0
"""The highest request rate at which a target is met, by bisection. Pure: whoever calls it brings the run.

With common random numbers (`ziggurat.workload.arrivals`) all rates see the same requests, so that "met" falls once from yes to no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        rate: the highest rate that was run and met, requests per second.
        is_bounded: some rate did not meet the target; if not, the workload is too short to tell and ``rate`` is a lower bound.
        runs: every run in the order of the search: rate and attainment.
    """

    rate: float
    is_bounded: bool
    runs: tuple[tuple[float, Attainment], ...]


def widening(headroom: float, table: Sequence[tuple[float, float]] = _WIDENING) -> float:
    """The factor to go up by after a run that met its target with that headroom."""
    return next(factor for least, factor in table if headroom >= least)


def by_majority(run: Callable[[float], Attainment], trials: int) -> Callable[[float], Attainment]:
    """A run that is repeated until most of ``trials`` runs agree; the last of those that agree is the answer.

    One run near the limit hangs on a moment of the machine: a hiccup fails a rate that holds, and the search never comes back to it.
    """
    assert trials >= 1 and trials % 2 == 1, "a majority needs an odd number"

    def run_at(rate: float) -> Attainment:
        votes: dict[bool, list[Attainment]] = {True: [], False: []}
        while max(map(len, votes.values())) <= trials // 2:
            found = run(rate)
            votes[found.is_met].append(found)
        return votes[len(votes[True]) > trials // 2][-1]

    return run_at


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
