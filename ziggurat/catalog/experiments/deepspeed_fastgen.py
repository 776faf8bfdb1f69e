# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed-FastGen (arXiv 2401.08671): forwards of constant size by splitting long prompts and fusing short ones.

Prompts N(1200, 30 %) at an eighth, outputs N(60, 30 %), a model of 26M parameters. The service level is the publication's relative to its
machine: there 512 prompt tokens take 94 ms and must be answered within 1 s, a decode step takes about 50 ms and 4 tokens/s are
wanted; so here a prompt may take ten times its own forward and a token five times a decode step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

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
    tuned_budget,
    variation,
    whole_prompt_budget,
)
from ziggurat.scheduling.calibration import StepSample
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.workload.arrivals import LENGTHS, make_arrivals
from ziggurat.workload.metrics import effective_throughput

SCALE = 0.125
DECODE_BATCH = 16
DECODE_CONTEXT = 128
PROMPT_SLACK = 10.0
TOKEN_SLACK = 5.0
NEAR_SATURATION = 0.9

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

# Far more requests than places, so that prompts always wait; several rounds, planners taking turns, of which the median counts.
REQUESTS_PER_PLACE: dict[Scale, int] = {"quick": 3, "full": 10}
NUM_ROUNDS: dict[Scale, int] = {"quick": 1, "full": 5}
LIMIT_S: dict[Scale, float] = {"quick": 120.0, "full": math.inf}


@dataclass(slots=True)
class _Found:
    """What has been measured so far, one run per round: all requests at once, and near saturation."""

    bursts: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    loaded: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    prompt_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0
    budget: TokenBudget | None = None
    note: str = ""


class DeepSpeedFastGen:
    """The experiment.

    Args:
        make_rig: where to serve.
    """

    claims = (*(judged.claim for judged in MEASURED), TWO_REPLICAS, SIMULATED)

    def __init__(self, make_rig: Callable[[], Rig]) -> None:
        self._make_rig = make_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        found, rig = _Found(), self._make_rig()
        try:
            self._measure(Bench(rig, LIMIT_S[scale]), scale, found)
        except OutOfTime as error:
            found.note = str(error)
        finally:
            rig.close()
        return [*_judge(found, scale), pending(TWO_REPLICAS.name, REPLICAS), pending(SIMULATED.name, SIMULATOR)]

    def _measure(self, bench: Bench, scale: Scale, found: _Found) -> None:
        rig = bench.rig
        decode_s = rig.decode_step_s(DECODE_BATCH, DECODE_CONTEXT)
        samples = rig.step_samples()
        # The publication's forward is at the knee; here one that costs two decode steps of a full batch.
        found.budget = tuned_budget(samples, 2 * decode_s, max_num_seqs=2 * DECODE_BATCH)
        num_places = found.budget.max_num_seqs
        found.prompt_tokens_per_s, found.generation_tokens_per_s = service_level(samples, decode_s)
        count = REQUESTS_PER_PLACE[scale] * num_places
        arrivals = make_arrivals(count, LENGTHS.get("fastgen")(SCALE), seed=1, max_model_len=rig.max_model_len)
        whole = whole_prompt_budget(arrivals, num_places)
        budgets = {"splitfuse": found.budget, "sarathi": found.budget, "prefill-priority": whole}
        for _ in range(NUM_ROUNDS[scale]):
            for planner, budget in budgets.items():
                found.bursts[planner].append(bench.serve(planner, budget, arrivals, math.inf))
        throughput = median(run.summary()["request_throughput"] or 0.0 for run in found.bursts["splitfuse"])
        for _ in range(NUM_ROUNDS[scale]):
            for planner in ("splitfuse", "prefill-priority"):
                run = bench.serve(planner, budgets[planner], arrivals, NEAR_SATURATION * throughput)
                found.loaded[planner].append(run)


def service_level(samples: Sequence[StepSample], decode_s: float) -> tuple[float, float]:
    """(prompt tokens per second, tokens per second) that a good request must get on this machine."""
    forward = max(samples, key=lambda sample: sample.num_tokens)
    return forward.num_tokens / (PROMPT_SLACK * forward.seconds), 1 / (TOKEN_SLACK * decode_s)


def _compare(
    runs: Mapping[str, Sequence[Run]], ours: str, theirs: str, figure: Callable[[Run], float | int | None]
) -> float | None:
    """The median over rounds of the ratio of two planners' figures; None if there is none."""
    pairs = zip(runs.get(ours, ()), runs.get(theirs, ()), strict=False)
    ratios = [ratio(figure(one), figure(other)) for one, other in pairs]
    known = [each for each in ratios if each is not None]
    return median(known) if known else None


def _judge(found: _Found, scale: Scale) -> list[ClaimResult]:
    bursts, loaded = found.bursts, found.loaded

    def good(run: Run) -> float | None:
        return effective_throughput(
            run.records,
            prompt_tokens_per_s=found.prompt_tokens_per_s,
            generation_tokens_per_s=found.generation_tokens_per_s,
        )

    def spread(planner: str) -> float | None:
        found_here = [variation(run.loaded_forwards) for run in bursts.get(planner, ())]
        return median(found_here) if found_here else None

    tokens = None if found.budget is None else found.budget.max_num_batched_tokens
    level = (
        f"requests/s near saturation with the prompt at {found.prompt_tokens_per_s:.0f} tokens/s and the moving average of "
        f"generation at {found.generation_tokens_per_s:.1f} tokens/s"
    )
    pair = ("splitfuse", "prefill-priority")
    values = {
        CV: (spread("splitfuse"), f"budget of {tokens} tokens; steps planned while prompts wait"),
        CV_BASELINE: (spread("prefill-priority"), "the same steps"),
        TAIL: (_compare(loaded, *pair, lambda run: run.summary()["p95_itl_ms"]), ""),
        EFFECTIVE: (_compare(loaded, *pair, good), level),
        LATENCY: (_compare(loaded, pair[1], pair[0], lambda run: run.summary()["mean_e2el_ms"]), ""),
        SARATHI: (
            _compare(bursts, "splitfuse", "sarathi", lambda run: run.summary()["request_throughput"]),
            "the two are near equivalent: one fills a step behind a watermark, the other without",
        ),
    }
    return [
        judged.judge(value, "; ".join(filter(None, (note, found.note))) if value is None else note, scale)
        for judged, (value, note) in values.items()
    ]


@EXPERIMENTS.register("deepspeed-fastgen")
def build() -> DeepSpeedFastGen:
    """With 26M random parameters: the publication is about the time of steps."""
    from ziggurat.catalog.engine_rig import LLAMA_26M, EngineRig

    return DeepSpeedFastGen(lambda: EngineRig(LLAMA_26M))
