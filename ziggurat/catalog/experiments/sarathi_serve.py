# SPDX-License-Identifier: Apache-2.0
"""Sarathi-Serve (arXiv 2403.02310): chunked prefills beside all decodes keep the time between tokens and raise the capacity.

arXiv-like lengths at an eighth, Poisson arrivals, a model of 26M parameters. The strict target is the publication's: the 99th percentile of
the time between tokens within 5 times the step of a decode batch of 32 with 4k prompts (an eighth here), and a median delay within 2 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.serving import (
    SIMULATOR,
    Bench,
    Judged,
    Limit,
    OutOfTime,
    Rig,
    Run,
    pending,
    ratio,
    share_identical,
    tuned_budget,
    whole_prompt_budget,
)
from ziggurat.errors import ConfigError
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.workload.arrivals import LENGTHS, make_arrivals
from ziggurat.workload.capacity import GRANULARITY
from ziggurat.workload.records import Arrival

SCALE = 0.125
DECODE_BATCH = 32
DECODE_CONTEXT = 4096 // 8
STRICT = 5.0
MAX_DELAY_S = 2.0
LOAD = 0.8
# The step that is planned for leaves a fifth of the target to what a step's size does not explain.
PLANNED_SHARE = 0.8

CAPACITY_PREFILL = Judged(name="capacity-vs-prefill-priority", paper=2.6, unit="x", limit=Limit(low=1.8))
CAPACITY_ORCA = Judged(name="capacity-vs-orca", paper=2.6, unit="x", limit=Limit(low=1.5))
TBT = Judged(name="p99-tbt-at-0.8-capacity", paper=None, unit="x prefill-priority", limit=Limit(high=0.4))
TTFT = Judged(name="median-ttft-at-0.8-capacity", paper=None, unit="x prefill-priority", limit=Limit(high=1.5))
IDENTICAL = Judged(name="token-identical", paper=None, unit="share of requests", limit=Limit(low=1.0, high=1.0))
BUDGET = Judged(name="calibrated-token-budget", paper=None, unit="tokens", limit=Limit(low=32, high=128))
MEASURED = (CAPACITY_PREFILL, CAPACITY_ORCA, TBT, TTFT, IDENTICAL, BUDGET)
SIMULATED = Claim(name="simulated-a100-capacity-vs-vllm", paper=2.6, unit="x", kind="simulated", target="1.8 to 2.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs. ``limit_s``: no run starts after it."""

    num_requests: int
    granularity: float
    limit_s: float


SIZES: dict[Scale, Size] = {
    "quick": Size(num_requests=16, granularity=0.1, limit_s=120),
    "full": Size(num_requests=200, granularity=GRANULARITY, limit_s=math.inf),
}


@dataclass(slots=True)
class _Found:
    """What has been measured so far; a quick run may end before the rest."""

    target_s: float = 0.0
    budget: TokenBudget | None = None
    capacity: dict[str, float] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    note: str = ""


class SarathiServe:
    """The experiment.

    Args:
        make_rig: where to serve.
    """

    claims = (*(judged.claim for judged in MEASURED), SIMULATED)

    def __init__(self, make_rig: Callable[[], Rig]) -> None:
        self._make_rig = make_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        size, found, rig = SIZES[scale], _Found(), self._make_rig()
        try:
            self._measure(Bench(rig, size.limit_s), size, found)
        except OutOfTime as error:
            found.note = str(error)
        finally:
            rig.close()
        return [*_judge(found, scale), pending(SIMULATED.name, SIMULATOR)]

    def _measure(self, bench: Bench, size: Size, found: _Found) -> None:
        rig = bench.rig
        arrivals = make_arrivals(
            size.num_requests, LENGTHS.get("arxiv")(SCALE), seed=1, max_model_len=rig.max_model_len
        )
        found.target_s = STRICT * rig.decode_step_s(DECODE_BATCH, DECODE_CONTEXT)
        found.budget = tuned_budget(rig.step_samples(), PLANNED_SHARE * found.target_s, max_num_seqs=DECODE_BATCH)
        budgets = {
            "sarathi": found.budget,
            "prefill-priority": whole_prompt_budget(arrivals, DECODE_BATCH),
            "orca": whole_prompt_budget(arrivals, DECODE_BATCH),
        }
        for planner, budget in budgets.items():
            found.capacity[planner] = _capacity(bench, planner, budget, arrivals, found.target_s, size)
        rate = LOAD * found.capacity["sarathi"]
        if not rate:
            found.note = "no rate of sarathi meets the target"
            return
        for planner, budget in budgets.items():
            found.runs[planner] = bench.serve(planner, budget, arrivals, rate)


def _capacity(
    bench: Bench,
    planner: str,
    budget: TokenBudget,
    arrivals: Sequence[Arrival],
    target_s: float,
    size: Size,
) -> float:
    """Requests per second; 0 if no rate meets the target."""
    limits = {"p99_itl_ms": 1000 * target_s, "median_queue_ms": 1000 * MAX_DELAY_S}
    try:
        return bench.capacity(planner, budget, arrivals, limits, granularity=size.granularity).rate
    except ConfigError:
        return 0.0


def _judge(found: _Found, scale: Scale) -> list[ClaimResult]:
    capacity, runs = found.capacity, found.runs
    shown = ", ".join(f"{name} {rate:.3g}" for name, rate in capacity.items())
    searched = f"requests/s at P99 TBT <= {1000 * found.target_s:.0f} ms: {shown}" if capacity else ""
    sarathi, prefill = (runs[name].summary() if name in runs else {} for name in ("sarathi", "prefill-priority"))
    identical = share_identical(list(runs.values())) if len(runs) > 1 else None
    values = {
        CAPACITY_PREFILL: (ratio(capacity.get("sarathi"), capacity.get("prefill-priority")), searched),
        CAPACITY_ORCA: (ratio(capacity.get("sarathi"), capacity.get("orca")), searched),
        TBT: (ratio(sarathi.get("p99_itl_ms"), prefill.get("p99_itl_ms")), ""),
        TTFT: (ratio(sarathi.get("median_ttft_ms"), prefill.get("median_ttft_ms")), ""),
        IDENTICAL: (identical, ""),
        BUDGET: (None if found.budget is None else float(found.budget.max_num_batched_tokens), ""),
    }
    return [
        judged.judge(value, "; ".join(filter(None, (note, found.note))) if value is None else note, scale)
        for judged, (value, note) in values.items()
    ]


@EXPERIMENTS.register("sarathi-serve")
def build() -> SarathiServe:
    """With 26M random parameters: the publication is about the time of steps."""
    from ziggurat.catalog.engine_rig import LLAMA_26M, EngineRig

    return SarathiServe(lambda: EngineRig(LLAMA_26M))
