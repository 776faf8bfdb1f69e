# SPDX-License-Identifier: Apache-2.0
"""Token budget and sequence cap from measured step times. Pure; `ziggurat.engine.calibrate` does the measuring.

::

    seconds                     /        a step costs about  fixed + slope * tokens
       |                     /
       |  - - - - - - - - /- - target: the budget is the largest step below it, aligned down to the row tile
       |              /
       |_________ /
       |     knee  = fixed / slope: half of the step is work that grows with tokens; beyond it more tokens buy little
       +------------------------- tokens per step

No constant of a GPU is in here: there the knee is at hundreds of tokens, on a CPU at a few tens.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ziggurat.errors import ConfigError

THROUGHPUT_SHARE = 0.9
"""Without a target: the step that reaches this share of the throughput that endless steps would have."""
DECODE_SHARE = 0.5
"""Running sequences may fill at most this share of a step, so that prompts always go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """One measured step size: the median of its repeats."""

    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What follows from the samples.

    Attributes:
        knee_tokens: where fixed and growing cost of a step are equal.
        step_s: expected seconds of a step of ``max_num_batched_tokens``.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    knee_tokens: float
    step_s: float
    samples: tuple[StepSample, ...]


def fit_line(samples: Sequence[StepSample]) -> tuple[float, float]:
    """(fixed seconds, seconds per token): the median slope of all pairs, so that one disturbed sample does no harm; both at least 0."""
    slopes = [
        (b.seconds - a.seconds) / (b.num_tokens - a.num_tokens)
        for a, b in combinations(samples, 2)
        if a.num_tokens != b.num_tokens
    ]
    slope = max(statistics.median(slopes), 0.0) if slopes else 0.0
    fixed = statistics.median(sample.seconds - slope * sample.num_tokens for sample in samples)
    return max(fixed, 0.0), slope


def calibrate(
    samples: Sequence[StepSample],
    *,
    max_num_seqs: int,
    row_tile: int = 1,
    tbt_target_s: float | None = None,
    is_max_num_seqs_fixed: bool = False,
) -> Calibration:
    """The largest budget whose step keeps the target, or, without one, the budget that reaches most of the throughput.

    Args:
        samples: at least two step sizes; the largest bounds the budget.
        max_num_seqs: the most sequences that fit; the cap is this or less, unless it is fixed.
        row_tile: the budget is a multiple of it, because kernels compute that many rows together.
        tbt_target_s: the longest step that is wanted (time between tokens).

    Raises:
        ConfigError: not even the smallest measured step keeps the target, or the budget is below the fixed number of sequences.
    """
    ordered = sorted(samples, key=lambda sample: sample.num_tokens)
    assert len({sample.num_tokens for sample in ordered}) > 1, "a calibration needs two step sizes"
    fixed_s, slope_s = fit_line(ordered)
    largest = ordered[-1].num_tokens
    if tbt_target_s is not None:
        tokens = _largest_below(ordered, tbt_target_s)
    elif slope_s > 0:
        tokens = int(min(largest, THROUGHPUT_SHARE / (1 - THROUGHPUT_SHARE) * fixed_s / slope_s))
    else:
        tokens = largest
    budget = max(tokens // row_tile * row_tile, min(row_tile, largest), 2)
    if is_max_num_seqs_fixed and budget < max_num_seqs + 1:
        raise ConfigError(
            f"a step of {budget} tokens is the longest that keeps the target, but max_num_seqs {max_num_seqs} needs steps of "
            f"{max_num_seqs + 1}: lower --max-num-seqs to {budget - 1} or raise --tbt-target-ms"
        )
    seqs = max_num_seqs if is_max_num_seqs_fixed else max(1, min(max_num_seqs, int(budget * DECODE_SHARE)))
    return Calibration(
        max_num_batched_tokens=budget,
        max_num_seqs=seqs,
        knee_tokens=fixed_s / slope_s if slope_s > 0 else float(largest),
        step_s=fixed_s + slope_s * budget,
        samples=tuple(ordered),
    )


def _largest_below(ordered: Sequence[StepSample], target_s: float) -> int:
    """The most tokens whose step keeps the target, between samples by straight lines. Times are made to grow with tokens first."""
    times_s: list[float] = []
    for sample in ordered:
        times_s.append(max(sample.seconds, times_s[-1]) if times_s else sample.seconds)
    if times_s[0] > target_s:
        raise ConfigError(
            f"no step keeps a time between tokens of {1000 * target_s:.4g} ms: one of {ordered[0].num_tokens} tokens takes "
            f"{1000 * times_s[0]:.4g} ms on this machine; raise --tbt-target-ms"
        )
    for (a, a_s), (b, b_s) in pairwise(zip(ordered, times_s, strict=True)):
        if b_s > target_s:
            return int(a.num_tokens + (b.num_tokens - a.num_tokens) * (target_s - a_s) / (b_s - a_s))
    return ordered[-1].num_tokens
