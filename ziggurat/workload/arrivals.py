# SPDX-License-Identifier: Apache-2.0
"""When requests come and how long they are: arrival processes and length distributions, from a seed and nothing else.

Common random numbers: a seed gives gaps of mean one, and a rate only divides them. Two rates, or two planners, see the same
requests in the same order with the same lengths, so that a difference between runs is theirs and not the dice's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ziggurat.errors import ConfigError
from ziggurat.registry import Registry
from ziggurat.workload.records import Arrival

_NORMAL_P90 = 1.2815515655446004  # quantile of the standard normal distribution
Draw = Callable[[random.Random], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts and of outputs. Both are drawn for each request, prompt first."""

    prompt: Draw
    output: Draw


LENGTHS: Registry[Callable[[float], Lengths]] = Registry("length distribution")
"""Name -> lengths at a scale (1 is the source's own)."""


def normal(mean: float, *, spread: float = 0.3) -> Draw:
    """Normal with a standard deviation of ``spread`` times the mean."""
    return lambda rng: rng.gauss(mean, spread * mean)


def lognormal(median: float, p90: float) -> Draw:
    """Lognormal through a median and a 90th percentile."""
    sigma = math.log(p90 / median) / _NORMAL_P90
    return lambda rng: rng.lognormvariate(math.log(median), sigma)


def uniform(mean: float, *, spread: float = 0.0) -> Draw:
    """Uniform over ``mean`` less and more ``spread`` of it, as vLLM's ``random`` data set draws; 0 is a fixed length."""
    return lambda rng: rng.uniform(mean * (1 - spread), mean * (1 + spread))


@LENGTHS.register("arxiv")
def arxiv(scale: float) -> Lengths:
    """arXiv summarisation as Sarathi-Serve used it: medians 2730 and 167 tokens, 90th percentiles 3702 and 372 (arXiv 2403.02310)."""
    return Lengths(prompt=lognormal(2730 * scale, 3702 * scale), output=lognormal(167 * scale, 372 * scale))


@LENGTHS.register("fastgen")
def fastgen(scale: float) -> Lengths:
    """DeepSpeed-FastGen's benchmark: prompts N(1200, 30 %), outputs N(60, 30 %) at any scale (arXiv 2401.08671)."""
    return Lengths(prompt=normal(1200 * scale), output=normal(60))


def unit_times(count: int, *, seed: int, burstiness: float = 1.0) -> list[float]:
    """Arrival times at a rate of one per second.

    Args:
        burstiness: shape of the gamma distribution of the gaps: 1 is Poisson, below 1 comes in bursts, above 1 is more even.

    Raises:
        ConfigError: burstiness is not above 0.
    """
    if not 0 < burstiness < math.inf:
        raise ConfigError(f"burstiness must be a number above 0 (1 is Poisson), got {burstiness}")
    rng = random.Random(f"gaps/{seed}")
    times, now = [], 0.0
    for _ in range(count):
        now += rng.gammavariate(burstiness, 1 / burstiness)
        times.append(now)
    return times


def draw_lengths(count: int, lengths: Lengths, *, seed: int, max_model_len: int | None = None) -> list[tuple[int, int]]:
    """(prompt, output) tokens per request, at least one each.

    Args:
        max_model_len: a request over it has its prompt cut to what the output leaves.
    """
    rng = random.Random(f"lengths/{seed}")
    pairs = []
    for _ in range(count):
        prompt, output = (max(1, round(draw(rng))) for draw in (lengths.prompt, lengths.output))
        if max_model_len is not None:
            output = min(output, max_model_len - 1)
            prompt = min(prompt, max_model_len - output)
        pairs.append((prompt, output))
    return pairs


def make_arrivals(
    count: int,
    lengths: Lengths,
    *,
    seed: int = 0,
    burstiness: float = 1.0,
    max_model_len: int | None = None,
) -> list[Arrival]:
    """A workload at a rate of one request per second; `at_rate` gives it another. Prompts are made up from the seed and the number.

    Raises:
        ConfigError: no request, or a burstiness that is not above 0.
    """
    if count < 1:
        raise ConfigError(f"a workload needs at least one request, got {count}")
    times = unit_times(count, seed=seed, burstiness=burstiness)
    sizes = draw_lengths(count, lengths, seed=seed, max_model_len=max_model_len)
    return [
        Arrival(t_s=t_s, id=f"s{seed}-{index}", prompt_len=prompt, max_new=output)
        for index, (t_s, (prompt, output)) in enumerate(zip(times, sizes, strict=True))
    ]


def at_rate(arrivals: Sequence[Arrival], rate: float) -> list[Arrival]:
    """The same requests, ``rate`` times as fast; infinity sends them all at once.

    Raises:
        ConfigError: the rate is not above 0.
    """
    if not rate > 0:
        raise ConfigError(f"the request rate must be above 0 (inf sends all at once), got {rate}")
    return [replace(arrival, t_s=arrival.t_s / rate) for arrival in arrivals]


def check_trace(arrivals: Sequence[Arrival]) -> None:
    """A trace is in order of time. (`Arrival` itself refuses negative times.)

    Raises:
        ConfigError: names the first row that is earlier than the one before.
    """
    for row, (before, after) in enumerate(pairwise(arrivals), start=2):
        if after.t_s < before.t_s:
            raise ConfigError(
                f"the trace is not sorted: row {row} ({after.id!r}) comes at {after.t_s} s, the row before it at {before.t_s} s; "
                "sort it by time first"
            )
