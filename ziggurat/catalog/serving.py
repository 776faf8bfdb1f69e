# SPDX-License-Identifier: Apache-2.0
"""What experiments about batch planners share: a place to serve (`Rig`), and one run of a planner with its figures.

`ziggurat.catalog.engine_rig` serves real tokens; tests bring a rig in virtual time, so that experiments are tested without a model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ziggurat.catalog.claims import Claim, ClaimResult, Kind, Scale, Value, Verdict
from ziggurat.scheduling.calibration import StepSample, calibrate
from ziggurat.scheduling.protocol import BatchPlan, BatchPlanner, EngineState, TokenBudget
from ziggurat.workload.arrivals import at_rate
from ziggurat.workload.capacity import Capacity, search_capacity
from ziggurat.workload.metrics import Attainment, Summary, attainment, summarize
from ziggurat.workload.records import Arrival, RequestRecord

SIMULATOR = "waits for D (the simulator)"
REPLICAS = "waits for the cluster work (two replicas behind a balancer)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workload served.

    Attributes:
        answers: token ids per request id.
        loaded_forwards: tokens of every step that was planned while prompt tokens were waiting.
    """

    records: Sequence[RequestRecord]
    answers: Mapping[str, Sequence[int]]
    loaded_forwards: Sequence[int]

    def summary(self) -> Summary:
        """Figures with the percentiles that the claims use."""
        return summarize(self.records, percentiles=(95, 99))


class Rig(Protocol):
    """Serves workloads under any planner, one after another."""

    @property
    def max_model_len(self) -> int:
        """Tokens per sequence."""
        ...

    def decode_step_s(self, num_seqs: int, context_tokens: int) -> float:
        """Seconds of a step of that many decodes behind that much context."""
        ...

    def step_samples(self) -> list[StepSample]:
        """Seconds of steps of several sizes."""
        ...

    def serve(self, planner: str, budget: TokenBudget, arrivals: Sequence[Arrival]) -> Run:
        """Serve open-loop arrivals to the end. No run finds a prefix that another one left in the cache."""
        ...

    def elapsed_s(self) -> float:
        """Seconds that the experiment has taken."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class OutOfTime(Exception):
    """A quick run must end within three minutes; what is left is inconclusive."""


@dataclass(slots=True)
class Bench:
    """A rig with a limit on its time.

    Args:
        limit_s: no run is started after it.
    """

    rig: Rig
    limit_s: float
    num_runs: int = field(default=0, init=False)

    def serve(self, planner: str, budget: TokenBudget, arrivals: Sequence[Arrival], rate: float) -> Run:
        """One run at a rate.

        Raises:
            OutOfTime: the limit is over.
        """
        if self.rig.elapsed_s() > self.limit_s:
            raise OutOfTime(f"{self.limit_s:g} s were over after {self.num_runs} runs on this machine")
        self.num_runs += 1
        return self.rig.serve(planner, budget, at_rate(arrivals, rate))

    def capacity(
        self,
        planner: str,
        budget: TokenBudget,
        arrivals: Sequence[Arrival],
        limits: Mapping[str, float],
        *,
        granularity: float,
    ) -> Capacity:
        """The highest rate that keeps the limits, up to the throughput of all requests at once: more than that cannot last.

        Raises:
            ConfigError: no rate does.
            OutOfTime: the limit is over.
        """

        def run_at(rate: float) -> Attainment:
            return attainment(self.serve(planner, budget, arrivals, rate).records, limits)

        throughput = self.serve(planner, budget, arrivals, math.inf).summary()["request_throughput"]
        assert throughput is not None, "nobody was served"
        return search_capacity(run_at, start_rate=throughput, max_rate=throughput, granularity=granularity)


ROW_TILE = 16


def tuned_budget(samples: Sequence[StepSample], target_s: float, *, max_num_seqs: int) -> TokenBudget:
    """The budget whose step keeps the target on this machine; the smallest measured one if none does, which the claims then show."""
    found = calibrate(
        samples,
        max_num_seqs=max_num_seqs,
        row_tile=ROW_TILE,
        tbt_target_s=max(target_s, min(samples, key=lambda sample: sample.num_tokens).seconds),
    )
    return TokenBudget(max_num_batched_tokens=found.max_num_batched_tokens, max_num_seqs=found.max_num_seqs)


def whole_prompt_budget(arrivals: Sequence[Arrival], max_num_seqs: int) -> TokenBudget:
    """For planners without chunks: the longest prompt of the workload beside all decodes, and no more, which is kind to them."""
    longest = max(arrival.prompt_len for arrival in arrivals)
    return TokenBudget(max_num_batched_tokens=longest + max_num_seqs, max_num_seqs=max_num_seqs)


def share_identical(runs: Sequence[Run]) -> float:
    """The share of the first run's requests whose tokens are the same in all runs that have them."""
    first, others = runs[0].answers, [run.answers for run in runs[1:]]
    same = sum(all(list(tokens) == list(other.get(name, ())) for other in others) for name, tokens in first.items())
    return same / len(first)


def variation(sizes: Sequence[int]) -> float:
    """Coefficient of variation: standard deviation over mean; 0 with fewer than two values."""
    return statistics.pstdev(sizes) / statistics.fmean(sizes) if len(sizes) > 1 else 0.0


class ForwardRecorder:
    """Passes plans through and keeps the size of each step that was planned while prompt tokens were waiting.

    Args:
        keep: called with the tokens of such a step.
    """

    def __init__(self, planner: BatchPlanner, keep: Callable[[int], None]) -> None:
        self._planner = planner
        self._keep = keep

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """See `BatchPlanner.plan`."""
        plan = self._planner.plan(state, budget)
        chunks = {chunk.seq_id: chunk.num_tokens for chunk in plan.chunks}
        is_left = any(seq.num_uncomputed > max(1, chunks.get(seq.seq_id, 0)) for seq in state.running)
        is_left = is_left or len(plan.admits) < len(state.waiting)
        for seq in state.waiting[: len(plan.admits)]:
            is_left = is_left or chunks[seq.seq_id] < seq.num_tokens - state.kv.cached_tokens(seq.seq_id)
        # The step that takes the last prompt token is only partly filled under every planner, so it says nothing.
        if is_left:
            self._keep(sum(chunks.values()))
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A claim's target as numbers: ``low <= value <= high``."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def text(self) -> str:
        """As people read it."""
        if self.low > -math.inf and self.high < math.inf:
            return f"{self.low:g} to {self.high:g}"
        return f">= {self.low:g}" if self.low > -math.inf else f"<= {self.high:g}"

    def holds(self, value: float) -> bool:
        """Whether the value is within."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim together with its limit, so that text and verdict cannot differ."""

    name: str
    paper: Value
    unit: str
    limit: Limit
    kind: Kind = "measured"

    @property
    def claim(self) -> Claim:
        """For the catalog."""
        return Claim(name=self.name, paper=self.paper, unit=self.unit, kind=self.kind, target=self.limit.text)

    def judge(self, value: float | None, note: str, scale: Scale) -> ClaimResult:
        """The verdict; without a value the run has not told, which only a quick one may say."""
        if value is None or math.isnan(value):
            verdict: Verdict = "inconclusive" if scale == "quick" else "not_run"
            return ClaimResult(name=self.name, ours=None, verdict=verdict, note=note or "no sample")
        if math.isinf(value):  # JSON has no infinity
            return ClaimResult(name=self.name, ours="the baseline has none", verdict="holds", note=note)
        return ClaimResult(
            name=self.name, ours=value, verdict="holds" if self.limit.holds(value) else "misses", note=note
        )


def ratio(ours: float | int | None, theirs: float | int | None) -> float | None:
    """None where either is missing or both are 0; infinite where only the other is 0."""
    if ours is None or theirs is None or (not ours and not theirs):
        return None
    return ours / theirs if theirs else math.inf


def pending(name: str, why: str) -> ClaimResult:
    """A clause whose machinery is not built yet."""
    return ClaimResult(name=name, ours=None, verdict="pending", note=why)
