# SPDX-License-Identifier: Apache-2.0
"""BatchLLM (arXiv 2412.03594): a job whose requests are all known is planned as a whole.

Groups of 2 and 16 requests share 200 to 2,000 tokens, 16 to 64 of their own follow, texts have 8 to 64 tokens; all are shuffled. Planned
and streamed runs share an engine of 26M random parameters and a pool of a quarter of the job's KV, and take turns. The stream is what an
engine does that does not know the job: first come first served, an LRU prefix cache, at most 64 requests at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from ziggurat.catalog.batch_rig import JobOutcome, JobPrompt, JobShape, make_job, working_set_tokens
from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.serving import SIMULATOR, Judged, Limit, pending
from ziggurat.memory.prefix_plan import plan_prefixes

REQUEST_CAP = 64
POOL_SHARE = 4
DEGREES = (2, 16)
BLOCK_SIZE = 16

OPTIMUM = Judged(
    name="token-saving-vs-single-level-optimum", paper=None, unit="x optimum", limit=Limit(low=0.97), kind="measured"
)
LRU = Judged(name="token-saving-vs-lru", paper=round(58.1 / 35.8, 2), unit="x LRU", limit=Limit(low=1.3))
PEAK = Judged(name="peak-kv", paper=None, unit="x LRU at the same 64 requests", limit=Limit(high=0.7))
FAST_16 = Judged(name="throughput-degree-16", paper=2.0, unit="x LRU + FCFS + request cap", limit=Limit(low=1.5))
FAST_2 = Judged(name="throughput-degree-2", paper=1.1, unit="x LRU + FCFS + request cap", limit=Limit(low=1.15))
PLANNING = Judged(name="planning-share", paper=0.0001, unit="of the run", limit=Limit(high=0.01))
SAME = Judged(name="texts-identical", paper=None, unit="of requests", limit=Limit(low=1.0))
MEASURED = (OPTIMUM, LRU, PEAK, FAST_16, FAST_2, PLANNING, SAME)
KERNEL = Claim(
    name="prefix-shared-attention-degree-16",
    paper=None,
    unit="x per-request paged attention",
    kind="measured",
    target=">= 1.5",
)
SIMULATED = Claim(name="simulated-a100-7b", paper=2.0, unit="x", kind="simulated", target="1.1 to 2 at degrees 2 to 16")
KERNEL_WAITS = "waits for C2's native kernel that reads a shared beginning once for all of its group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs."""

    num_requests: int
    num_rounds: int


SIZES: dict[Scale, Size] = {"quick": Size(num_requests=64, num_rounds=1), "full": Size(num_requests=256, num_rounds=5)}


class Rig(Protocol):
    """Where jobs run; `ziggurat.catalog.batch_rig.BatchRig` is the real one."""

    @property
    def pool_blocks(self) -> int: ...

    def run_planned(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int = ...) -> JobOutcome: ...

    def run_stream(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int) -> JobOutcome: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Runs:
    """Pairs of one degree: (planned, stream) per round, and the best saving that one level allows."""

    optimum_tokens: int = 0
    pool_tokens: int = 0
    pairs: list[tuple[JobOutcome, JobOutcome]] = field(default_factory=list)
    capped: tuple[JobOutcome, JobOutcome] | None = None

    def ratio(self, figure: Callable[[JobOutcome], float]) -> float:
        """Median over rounds of planned over stream."""
        return median(figure(planned) / figure(stream) for planned, stream in self.pairs)


class BatchLLM:
    """The experiment.

    Args:
        make_rig: an engine with a pool of so many tokens.
    """

    claims = (*(judged.claim for judged in MEASURED), KERNEL, SIMULATED)

    def __init__(self, make_rig: Callable[[int], Rig], vocab_size: int) -> None:
        self._make_rig, self._vocab_size = make_rig, vocab_size

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        runs = {degree: self._measure(degree, SIZES[scale]) for degree in DEGREES}
        return [*_judge(runs, scale), pending(KERNEL.name, KERNEL_WAITS), pending(SIMULATED.name, SIMULATOR)]

    def _measure(self, degree: int, size: Size) -> _Runs:
        shape = JobShape(num_groups=size.num_requests // degree, degree=degree)
        prompts = make_job(shape, self._vocab_size, seed=degree)
        found = _Runs()
        ids = [each.prompt_ids for each in prompts]
        found.optimum_tokens = plan_prefixes(ids, BLOCK_SIZE, is_exact=True).saved_tokens
        whole = working_set_tokens(prompts, found.optimum_tokens)
        longest = max(len(each.prompt_ids) + each.output_tokens for each in prompts)
        found.pool_tokens = max(whole // POOL_SHARE, 2 * longest)
        rig = self._make_rig(found.pool_tokens)
        try:
            for _ in range(size.num_rounds):
                found.pairs.append((rig.run_planned(prompts), rig.run_stream(prompts, max_num_seqs=REQUEST_CAP)))
        finally:
            rig.close()
        # What the same 64 requests hold when memory is not short: the pool has room for everything.
        rig = self._make_rig(whole + whole // POOL_SHARE)
        try:
            found.capped = (
                rig.run_planned(prompts, max_num_seqs=REQUEST_CAP),
                rig.run_stream(prompts, max_num_seqs=REQUEST_CAP),
            )
        finally:
            rig.close()
        return found


def _judge(runs: dict[int, _Runs], scale: Scale) -> list[ClaimResult]:
    by_degree = ", ".join(f"degree {degree}: {{}}" for degree in DEGREES)

    def note(figure: Callable[[_Runs], float]) -> str:
        return by_degree.format(*(f"{figure(runs[degree]):.3f}" for degree in DEGREES))

    def of_optimum(found: _Runs) -> float:
        return min(planned.saved_tokens / found.optimum_tokens for planned, _ in found.pairs)

    def of_lru(found: _Runs) -> float:
        return found.ratio(lambda outcome: outcome.saved_tokens or 1)

    def peak(found: _Runs) -> float:
        assert found.capped is not None
        return found.capped[0].peak_held_blocks / found.capped[1].peak_held_blocks

    def speed(found: _Runs) -> float:
        return found.ratio(lambda outcome: outcome.tokens_per_s)

    def planning(found: _Runs) -> float:
        return max(planned.planning_s / planned.elapsed_s for planned, _ in found.pairs)

    same = [
        planned.texts[index] == stream.texts[index]
        for found in runs.values()
        for planned, stream in found.pairs
        for index in planned.texts
    ]
    pools = by_degree.format(*(f"pool of {runs[degree].pool_tokens} tokens" for degree in DEGREES))
    values = {
        OPTIMUM: (min(map(of_optimum, runs.values())), note(of_optimum)),
        LRU: (min(map(of_lru, runs.values())), f"the lesser of both; {note(of_lru)}; {pools}"),
        PEAK: (peak(runs[16]), f"blocks held at most, in a pool with room for the whole job; {note(peak)}"),
        FAST_16: (speed(runs[16]), f"all tokens of the job per second, median of rounds; {pools}"),
        FAST_2: (speed(runs[2]), "as at degree 16"),
        PLANNING: (max(map(planning, runs.values())), note(planning)),
        SAME: (sum(same) / len(same), f"{len(same)} greedy texts of planned and streamed runs"),
    }
    return [judged.judge(value, text, scale) for judged, (value, text) in values.items()]


@EXPERIMENTS.register("batchllm")
def build() -> BatchLLM:
    """With 26M random parameters: the publication is about time and memory, not about what is said."""
    from ziggurat.catalog.batch_rig import BatchRig
    from ziggurat.catalog.engine_rig import LLAMA_26M

    return BatchLLM(lambda pool_tokens: BatchRig(LLAMA_26M, pool_tokens), LLAMA_26M["vocab_size"])
