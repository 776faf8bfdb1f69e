# SPDX-License-Identifier: Apache-2.0
"""When requests come and how long they are: arrival processes and length distributions, from a seed and nothing else.

Common random numbers: a seed gives gaps of mean one, and a rate only divides them. Two rates, or two planners, see the same
requests in the same order with the same lengths, so that a difference between runs is theirs and not the dice's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from ziggurat.errors import ConfigError
from ziggurat.registry import Registry
from ziggurat.workload.conditional import (
    AZURE_CONVERSATION_OUTPUT,
    AZURE_CONVERSATION_PROMPT,
    GPT4_CONVERSATION_OUTPUT,
    GPT4_CONVERSATION_PROMPT,
    TruncatedZipf,
)
from ziggurat.workload.records import Arrival

_NORMAL_P90 = 1.2815515655446004  # quantile of the standard normal distribution
Draw = Callable[[random.Random], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts and of outputs. Both are drawn for each request, prompt first."""

    prompt: Draw
    output: Draw

    def draw(self, rng: random.Random) -> tuple[float, float]:
        """One request's."""
        return self.prompt(rng), self.output(rng)


GapModel = Callable[[random.Random, float], Iterator[float]]
"""(dice, burstiness) -> endless gaps of mean 1. It may remember earlier gaps; it must take nothing but the dice it is given."""
ARRIVAL_MODELS: Registry[GapModel] = Registry("arrival model")

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


@LENGTHS.register("gpt4-conversation")
def gpt4_conversation(scale: float) -> Lengths:
    """GPT-4 conversations of BurstGPT through the quantiles that Llumnix reports (arXiv 2406.03243): medians 582 and 243 tokens.

    Prompt and answer are independent: how they depend on one another is not published in numbers; a trace tells (`ConditionalLengths`).
    """
    return Lengths(
        prompt=lambda rng: GPT4_CONVERSATION_PROMPT.draw(rng) * scale,
        output=lambda rng: GPT4_CONVERSATION_OUTPUT.draw(rng) * scale,
    )


@LENGTHS.register("azure-conversation")
def azure_conversation(scale: float) -> Lengths:
    """Azure's chat hour of 2023 through its published quantiles: medians 1020 and 129 tokens. Independent, as above."""
    return Lengths(
        prompt=lambda rng: AZURE_CONVERSATION_PROMPT.draw(rng) * scale,
        output=lambda rng: AZURE_CONVERSATION_OUTPUT.draw(rng) * scale,
    )


@LENGTHS.register("zipf")
def zipf(scale: float) -> Lengths:
    """BurstGPT's reference generator: truncated Zipf, exponent 1.1, prompts and outputs up to 1024 tokens (HPMLL/BurstGPT)."""
    lengths = TruncatedZipf(longest=max(1, round(1024 * scale)))
    return Lengths(prompt=lengths.draw, output=lengths.draw)


@ARRIVAL_MODELS.register("gamma")
def gamma_gaps(rng: random.Random, burstiness: float) -> Iterator[float]:
    """Independent gamma gaps of shape ``burstiness``: a coefficient of variation of ``1 / sqrt(burstiness)``. What vLLM and BurstGPT use.

    The wrong choice for a whole day: it knows no night and no noon (`ziggurat.workload.arrival_windows` does).
    """
    while True:
        yield rng.gammavariate(burstiness, 1 / burstiness)


@ARRIVAL_MODELS.register("hyperexponential")
def hyperexponential_gaps(rng: random.Random, burstiness: float) -> Iterator[float]:
    """A mixture of two exponentials with the CV of the gamma gaps and balanced means (Whitt's H2): the same first two moments, but never
    gaps as short as those of a gamma. Shows whether a finding hangs on the law or on the CV. Poisson where burstiness is 1 or more."""
    spread = max(0.0, 1 / burstiness - 1)
    share = (1 + math.sqrt(spread / (spread + 2))) / 2
    while True:
        is_short = rng.random() < share
        yield rng.expovariate(2 * share if is_short else 2 * (1 - share))


def unit_times(count: int, *, seed: int, burstiness: float = 1.0, model: str = "gamma") -> list[float]:
    """Arrival times at a rate of one per second.

    Args:
        burstiness: 1 / CV^2 of the gaps, for gamma gaps their shape: 1 is Poisson, below 1 comes in bursts, above 1 is more even.
        model: a name of `ARRIVAL_MODELS`.

    Raises:
        ConfigError: burstiness is not above 0, or no such model.
    """
    if not 0 < burstiness < math.inf:
        raise ConfigError(f"burstiness must be a number above 0 (1 is Poisson), got {burstiness}")
    gaps = ARRIVAL_MODELS.get(model)(random.Random(f"gaps/{seed}"), burstiness)
    times, now = [], 0.0
    for gap in islice(gaps, count):
        now += gap
        times.append(now)
    return times


def with_mean_rate(times: Sequence[float]) -> list[float]:
    """Times stretched so that their mean gap is exactly one. A short bursty workload is otherwise faster or slower than it says, and a
    comparison of laws would be one of rates."""
    return [time * len(times) / times[-1] for time in times] if times and times[-1] > 0 else list(times)


def draw_lengths(count: int, lengths: Lengths, *, seed: int, max_model_len: int | None = None) -> list[tuple[int, int]]:
    """(prompt, output) tokens per request, at least one each.

    Args:
        max_model_len: a request over it has its prompt cut to what the output leaves.
    """
    rng = random.Random(f"lengths/{seed}")
    pairs = []
    for _ in range(count):
        prompt, output = (max(1, round(length)) for length in lengths.draw(rng))
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
    model: str = "gamma",
    is_rate_exact: bool = False,
) -> list[Arrival]:
    """A workload at a rate of one request per second; `at_rate` gives it another. Prompts are made up from the seed and the number.

    Args:
        model: law of the gaps, a name of `ARRIVAL_MODELS`.
        is_rate_exact: stretch the times to a mean gap of exactly one (`with_mean_rate`).

    Raises:
        ConfigError: no request, a burstiness that is not above 0, or no such model.
    """
    if count < 1:
        raise ConfigError(f"a workload needs at least one request, got {count}")
    times = unit_times(count, seed=seed, burstiness=burstiness, model=model)
    times = with_mean_rate(times) if is_rate_exact else times
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
