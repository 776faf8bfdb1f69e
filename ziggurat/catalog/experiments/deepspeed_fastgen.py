# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed-FastGen (arXiv 2401.08671): forwards of constant size by splitting long prompts and fusing short ones.

Prompts N(1200, 30 %) at an eighth, outputs N(60, 30 %), the embedded model. The service level is the publication's relative to its
machine: there 512 prompt tokens take 94 ms and must be answered within 1 s, a decode step takes about 50 ms and 4 tokens/s are
wanted; so here a prompt may take ten times its own forward and a token five times a decode step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.serving import (
    REPLICAS,
    SIMULATOR,
    Bench,
    Judged,
    Limit,
    OutOfTime,
    Rig,
    Run,
    pending,
    ratio,
    variation,
    whole_prompt_budget,
)
from ziggurat.scheduling.calibration import StepSample, calibrate, fit_line
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.workload.arrivals import LENGTHS, make_arrivals
from ziggurat.workload.metrics import effective_throughput

SCALE = 0.125
DECODE_BATCH = 16
DECODE_CONTEXT = 128
PROMPT_SLACK = 10.0
TOKEN_SLACK = 5.0
NEAR_SATURATION = 0.9
ROW_TILE = 16

CV = Judged(name="forward-size-cv", paper=None, unit="standard deviation / mean", limit=Limit(high=0.1))
CV_BASELINE = Judged(
    name="forward-size-cv-prefill-priority", paper=None, unit="standard deviation / mean", limit=Limit(low=0.8)
)
# The publication: up to 3.7x lower token-level tail latency, 2x lower mean latency, 2.3x effective throughput.
TAIL = Judged(name="p95-token-latency", paper=round(1 / 3.7, 2), unit="x prefill-priority", limit=Limit(high=0.45))
EFFECTIVE = Judged(name="effective-throughput", paper=2.3, unit="x prefill-priority", limit=Limit(low=1.6))
LATENCY = Judged(name="mean-latency", paper=2.0, unit="x better than prefill-priority", limit=Limit(low=1.3))
SARATHI = Judged(name="throughput-vs-sarathi", paper=None, unit="x sarathi", limit=Limit(low=0.95, high=1.05))
MEASURED = (CV, CV_BASELINE, TAIL, EFFECTIVE, LATENCY, SARATHI)
TWO_REPLICAS = Claim(name="two-replicas-throughput", paper=None, unit="x one", kind="measured", target=">= 1.8")
SIMULATED = Claim(name="simulated-70b-effective-throughput", paper=2.3, unit="x", kind="simulated", target="2.0 to 2.6")

NUM_REQUESTS: dict[Scale, int] = {"quick": 32, "full": 256}
LIMIT_S: dict[Scale, float] = {"quick": 120.0, "full": math.inf}


@dataclass(slots=True)
class _Found:
    """What has been measured so far: all requests at once, and near saturation."""

    bursts: dict[str, Run] = field(default_factory=dict)
    loaded: dict[str, Run] = field(default_factory=dict)
    prompt_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0
    budget: TokenBudget | None = None
    note: str = ""


class DeepSpeedFastGen:
    """The experiment.

    Args:
        make_rig: where to serve; by default the embedded model.
    """

    claims = (*(judged.claim for judged in MEASURED), TWO_REPLICAS, SIMULATED)

    def __init__(self, make_rig: Callable[[], Rig]) -> None:
        self._make_rig = make_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        found, rig = _Found(), self._make_rig()
        try:
            self._measure(Bench(rig, LIMIT_S[scale]), NUM_REQUESTS[scale], found)
        except OutOfTime as error:
            found.note = str(error)
        finally:
            rig.close()
        return [*_judge(found, scale), pending(TWO_REPLICAS.name, REPLICAS), pending(SIMULATED.name, SIMULATOR)]

    def _measure(self, bench: Bench, num_requests: int, found: _Found) -> None:
        rig = bench.rig
        arrivals = make_arrivals(num_requests, LENGTHS.get("fastgen")(SCALE), seed=1, max_model_len=rig.max_model_len)
        decode_s = rig.decode_step_s(DECODE_BATCH, DECODE_CONTEXT)
        samples = rig.step_samples()
        tuned = calibrate(samples, max_num_seqs=2 * DECODE_BATCH, row_tile=ROW_TILE, tbt_target_s=2 * decode_s)
        found.budget = TokenBudget(max_num_batched_tokens=tuned.max_num_batched_tokens, max_num_seqs=tuned.max_num_seqs)
        found.prompt_tokens_per_s, found.generation_tokens_per_s = service_level(samples, decode_s)
        whole = whole_prompt_budget(arrivals, tuned.max_num_seqs)
        budgets = {"splitfuse": found.budget, "sarathi": found.budget, "prefill-priority": whole}
        for planner, budget in budgets.items():
            found.bursts[planner] = bench.serve(planner, budget, arrivals, math.inf)
        rate = NEAR_SATURATION * (found.bursts["splitfuse"].summary()["request_throughput"] or 1.0)
        for planner in ("splitfuse", "prefill-priority"):
            found.loaded[planner] = bench.serve(planner, budgets[planner], arrivals, rate)


def service_level(samples: Sequence[StepSample], decode_s: float) -> tuple[float, float]:
    """(prompt tokens per second, tokens per second) that a good request must get on this machine."""
    _, per_token_s = fit_line(samples)
    return 1 / (PROMPT_SLACK * per_token_s) if per_token_s > 0 else math.inf, 1 / (TOKEN_SLACK * decode_s)


def _effective(found: _Found, planner: str) -> float | None:
    if planner not in found.loaded:
        return None
    return effective_throughput(
        found.loaded[planner].records,
        prompt_tokens_per_s=found.prompt_tokens_per_s,
        generation_tokens_per_s=found.generation_tokens_per_s,
    )


def _judge(found: _Found, scale: Scale) -> list[ClaimResult]:
    bursts, loaded = found.bursts, found.loaded
    ours, theirs = (loaded[name].summary() if name in loaded else {} for name in ("splitfuse", "prefill-priority"))
    throughput = {name: run.summary()["request_throughput"] for name, run in bursts.items()}
    forwards = {name: run.loaded_forwards for name, run in bursts.items()}
    tokens = None if found.budget is None else found.budget.max_num_batched_tokens
    level = (
        f"a good request: prompt at {found.prompt_tokens_per_s:.0f} tokens/s, moving average of generation at "
        f"{found.generation_tokens_per_s:.1f} tokens/s; "
        if found.loaded
        else ""
    ) + "ratio of requests/s near saturation"
    values = {
        CV: (variation(forwards["splitfuse"]) if "splitfuse" in forwards else None, f"budget of {tokens} tokens"),
        CV_BASELINE: (variation(forwards["prefill-priority"]) if "prefill-priority" in forwards else None, ""),
        TAIL: (ratio(ours.get("p95_itl_ms"), theirs.get("p95_itl_ms")), ""),
        EFFECTIVE: (ratio(_effective(found, "splitfuse"), _effective(found, "prefill-priority")), level),
        LATENCY: (ratio(theirs.get("mean_e2el_ms"), ours.get("mean_e2el_ms")), ""),
        SARATHI: (
            ratio(throughput.get("splitfuse"), throughput.get("sarathi")),
            "the two are near equivalent: one fills a step behind a watermark, the other without",
        ),
    }
    return [
        judged.judge(value, "; ".join(filter(None, (note, found.note))) if value is None else note, scale)
        for judged, (value, note) in values.items()
    ]


@EXPERIMENTS.register("deepspeed-fastgen")
def build() -> DeepSpeedFastGen:
    """With the embedded model."""
    from ziggurat.catalog.engine_rig import EngineRig

    return DeepSpeedFastGen(EngineRig)
