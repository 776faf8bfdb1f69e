# SPDX-License-Identifier: Apache-2.0
"""BurstGPT (arXiv 2401.17644): requests come in bursts, and a serving system that was tuned on Poisson arrivals feels it.

Fits and generators are judged without an engine (`burstgpt_statistics`). The consequence is measured: GPT-4 conversations at an eighth of
their length on the embedded model, at 70 % of the throughput of all requests at once, with CV 1, 3 and 5 at exactly the same mean rate.
Then every planner serves both laws, and the orders are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.experiments.burstgpt_statistics import STATISTICS, statistics_findings
from ziggurat.catalog.serving import (
    Bench,
    Judged,
    Limit,
    OutOfTime,
    Rig,
    Run,
    pending,
    ratio,
    tuned_budget,
    whole_prompt_budget,
)
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.workload.arrivals import LENGTHS, make_arrivals
from ziggurat.workload.failures import failure_report
from ziggurat.workload.gamma import shape_of_cv
from ziggurat.workload.records import Arrival

LENGTH_SCALE = 0.125
LOAD = 0.7
CVS = (1.0, 3.0, 5.0)
POISSON, BURSTY = 1.0, 3.0
PLANNER = "sarathi"
CHUNKED = ("sarathi", "splitfuse")
DECODE_BATCH, DECODE_CONTEXT = 32, 128
METRICS = ("p99_ttft_ms", "p99_itl_ms", "mean_e2el_ms")

# What the publication says in words (bursts hurt tail latency) has no number for an engine like this one.
TTFT = Judged(name="p99-ttft-cv3-vs-cv1", paper=None, unit="x Poisson at the same mean rate", limit=Limit(low=2.0))
REPORTED = "reported"
TTFT_CV5 = Claim(
    name="p99-ttft-cv5-vs-cv1", paper=None, unit="x Poisson at the same mean rate", kind="measured", target=REPORTED
)
RANKINGS = Claim(
    name="planner-rankings-that-flip",
    paper=None,
    unit="pairs of planners and figures",
    kind="measured",
    target=REPORTED,
)
PLACEMENT = Claim(
    name="placement-rankings-that-flip", paper=None, unit="pairs of policies", kind="simulated", target=REPORTED
)
CLUSTER = "waits for the cluster work (placement policies: static split against colocated, dispatch)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs. ``limit_s``: no run starts after it."""

    num_requests: int
    num_rounds: int
    num_ranked: int
    num_ranked_rounds: int
    limit_s: float


SIZES: dict[Scale, Size] = {
    "quick": Size(num_requests=120, num_rounds=3, num_ranked=30, num_ranked_rounds=2, limit_s=120),
    "full": Size(num_requests=400, num_rounds=7, num_ranked=200, num_ranked_rounds=5, limit_s=math.inf),
}


@dataclass(slots=True)
class _Found:
    """What has been measured so far; a quick run may end before the rest.

    Attributes:
        by_cv: one run per round.
        by_planner: (planner, CV) -> one run per round.
    """

    rate: float = 0.0
    budget: TokenBudget | None = None
    by_cv: dict[float, list[Run]] = field(default_factory=lambda: defaultdict(list))
    by_planner: dict[tuple[str, float], list[Run]] = field(default_factory=lambda: defaultdict(list))
    note: str = ""


class BurstGPT:
    """The experiment.

    Args:
        make_rig: where to serve; by default the embedded model.
    """

    claims = (*(judged.claim for judged in STATISTICS), TTFT.claim, TTFT_CV5, RANKINGS, PLACEMENT)

    def __init__(self, make_rig: Callable[[], Rig]) -> None:
        self._make_rig = make_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        served, rig = _Found(), self._make_rig()
        try:
            # After the rig, whose clock the limit counts by.
            found = [judged.judge(value, note, scale) for judged, (value, note) in statistics_findings().items()]
            self._measure(Bench(rig, SIZES[scale].limit_s), SIZES[scale], served)
        except OutOfTime as error:
            served.note = str(error)
        finally:
            rig.close()
        return [*found, *_judge(served, scale), pending(PLACEMENT.name, CLUSTER)]

    def _measure(self, bench: Bench, size: Size, found: _Found) -> None:
        rig = bench.rig
        decode_s = rig.decode_step_s(DECODE_BATCH, DECODE_CONTEXT)
        found.budget = _budget(rig, decode_s)
        everything = _workload(size.num_requests, POISSON, 0, rig.max_model_len)
        # All at once is the most that the engine can do: what comes faster for long cannot be served. One run alone would make the load
        # of all others hang on a moment of this machine.
        bursts = [bench.serve(PLANNER, found.budget, everything, math.inf).summary() for _ in range(size.num_rounds)]
        found.rate = LOAD * median(summary["request_throughput"] or 0.0 for summary in bursts)
        for number in range(size.num_rounds):
            for cv in CVS:
                arrivals = _workload(size.num_requests, cv, number, rig.max_model_len)
                found.by_cv[cv].append(bench.serve(PLANNER, found.budget, arrivals, found.rate))
        for number in range(size.num_ranked_rounds):
            for planner in PLANNERS.names():
                for cv in (POISSON, BURSTY):
                    arrivals = _workload(size.num_ranked, cv, number, rig.max_model_len)
                    whole = whole_prompt_budget(arrivals, found.budget.max_num_seqs)
                    budget = found.budget if planner in CHUNKED else whole
                    found.by_planner[planner, cv].append(bench.serve(planner, budget, arrivals, found.rate))


def _budget(rig: Rig, decode_s: float) -> TokenBudget:
    """A step of two decode steps' time, and never less than all decodes and as many prompt tokens: a machine that is busy while it is
    measured would else be given steps in which prompts starve."""
    tuned = tuned_budget(rig.step_samples(), 2 * decode_s, max_num_seqs=DECODE_BATCH)
    tokens = max(tuned.max_num_batched_tokens, 2 * DECODE_BATCH)
    return TokenBudget(max_num_batched_tokens=tokens, max_num_seqs=DECODE_BATCH)


def _workload(count: int, cv: float, seed: int, max_model_len: int) -> list[Arrival]:
    """The same lengths for every CV, and the same mean gap to the last digit."""
    return make_arrivals(
        count,
        LENGTHS.get("gpt4-conversation")(LENGTH_SCALE),
        seed=seed,
        burstiness=shape_of_cv(cv),
        max_model_len=max_model_len,
        is_rate_exact=True,
    )


def _judge(found: _Found, scale: Scale) -> list[ClaimResult]:
    # Rounds that every law has: a round that was cut short compares nothing.
    num_rounds = min(len(found.by_cv.get(cv, ())) for cv in CVS)
    rounds = {cv: found.by_cv[cv][:num_rounds] for cv in CVS} if num_rounds else {}
    medians = {cv: median(run.summary()["p99_ttft_ms"] or 0.0 for run in runs) for cv, runs in rounds.items()}
    tokens = None if found.budget is None else found.budget.max_num_batched_tokens
    shown = ", ".join(f"{value:.0f} ms at CV {cv:g}" for cv, value in medians.items())
    records = [record for runs in rounds.values() for run in runs for record in run.records]
    failures = failure_report(records)
    note = (
        f"median of {num_rounds} rounds: {shown}; {PLANNER}, {tokens} tokens per step, {found.rate:.3g} requests/s "
        f"= {LOAD:.0%} of the throughput; {failures.num_dropped} of {len(records)} requests failed"
    )
    ttft, ttft_cv5 = (ratio(medians.get(cv), medians.get(POISSON)) for cv in (BURSTY, CVS[-1]))
    return [
        TTFT.judge(ttft, found.note if ttft is None else note, scale),
        _report(TTFT_CV5, ttft_cv5, found.note if ttft_cv5 is None else note, scale),
        _rankings(found, scale),
    ]


def _report(claim: Claim, value: float | None, note: str, scale: Scale) -> ClaimResult:
    """A finding, whatever it is: only its absence misses."""
    return Judged(name=claim.name, paper=None, unit=claim.unit, limit=Limit()).judge(value, note, scale)


def _rankings(found: _Found, scale: Scale) -> ClaimResult:
    planners = PLANNERS.names()
    wanted = [(planner, cv) for planner in planners for cv in (POISSON, BURSTY)]
    if any(not found.by_planner.get(key) for key in wanted):
        return _report(RANKINGS, None, found.note, scale)
    num_rounds = min(len(found.by_planner[key]) for key in wanted)
    flips, orders = [], []
    for metric in METRICS:
        figures = {key: [run.summary()[metric] or 0.0 for run in found.by_planner[key][:num_rounds]] for key in wanted}
        flips += [f"{pair} by {metric}" for pair in flipped_pairs(planners, figures)]
        for cv in (POISSON, BURSTY):
            ordered = sorted(planners, key=lambda planner: median(figures[planner, cv]))
            best_first = " < ".join(f"{planner} {median(figures[planner, cv]):.0f}" for planner in ordered)
            orders.append(f"{metric} at CV {cv:g}: {best_first}")
    if num_rounds < 2:
        note = "; ".join([*orders, "one round does not tell a flip from noise", found.note])
        return _report(RANKINGS, None, note, scale)
    rule = f"a flip counts when all of {num_rounds} rounds agree under either law"
    note = "; ".join([*orders, f"flips: {', '.join(flips) or 'none'}", rule])
    return _report(RANKINGS, float(len(flips)), note, scale)


def flipped_pairs(planners: Sequence[str], figures: Mapping[tuple[str, float], Sequence[float]]) -> list[str]:
    """Pairs whose order under Poisson is the opposite of that under bursts, the same in every round of either law.

    Args:
        figures: (planner, CV) -> a figure per round; smaller is better.
    """
    flips = []
    for one, other in combinations(planners, 2):
        signs = []
        for cv in (POISSON, BURSTY):
            rounds = {math.copysign(1, a - b) for a, b in zip(figures[one, cv], figures[other, cv], strict=True)}
            signs.append(rounds.pop() if len(rounds) == 1 else 0.0)
        if signs[0] * signs[1] < 0:
            flips.append(f"{one}/{other}")
    return flips


@EXPERIMENTS.register("burstgpt")
def build() -> BurstGPT:
    """With the embedded model."""
    from ziggurat.catalog.engine_rig import EngineRig

    return BurstGPT(EngineRig)
