# SPDX-License-Identifier: Apache-2.0
"""S-LoRA (arXiv 2311.03285): thousands of adapters on one base model, batched, in one pool with the KV cache.

A shape of 26M parameters with random weights in bf16, adapters of q, k, v and o with ranks 8, 16, 32 and 64, popularity by Zipf's law,
prompts and texts of 8 to 64 tokens, all requests at once. The baseline merges one adapter at a time into the packed weights, as PEFT does,
and serves all its requests together before it swaps: the order that is kindest to swapping.

Swapping misses here by a wide margin, and will on any CPU: two cores are busy at 10 to 20 tokens per step, so that batching across adapters
gains little over batching within one, and a merge of 26M parameters takes 15 ms where a GPU's gigabytes take seconds. Three runs of the
first claim on one day gave 0.89 and 0.92 (quick) and 0.87 (full, where swapping came to 1.43): it stands on its line, and what it loses is
reading adapters again that preemptions had pushed out of the pool.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.lora_rig import RANKS, LoraRig, kernel_seconds, zipf_requests
from ziggurat.catalog.serving import SIMULATOR, Judged, Limit, pending

FLAT = Judged(name="throughput-1000-over-5", paper=0.949, unit="x", limit=Limit(low=0.9))
SWAPPING = Judged(name="over-merge-and-swap-at-100", paper=32, unit="x", limit=Limit(low=4))
OVERHEAD = Judged(
    name="overhead-at-rank-16", paper=None, unit="share of the base model's tokens/s", limit=Limit(high=0.35)
)
KERNEL = Judged(name="mbgmv-over-padded-bmm", paper=None, unit="x, ranks 8 to 64, 32 rows", limit=Limit(low=1.5))
JUDGED = (FLAT, SWAPPING, OVERHEAD, KERNEL)
POOL = Claim(name="unified-pool-batch", paper=None, unit="x a static half and half", kind="measured", target=">= 1.2")
PARALLEL = Claim(
    name="tensor-parallel-bytes", paper=None, unit="share of the formulas", kind="measured", target="0.95 .. 1.05"
)
CURVE = Claim(name="a100-curve-5-to-2000", paper=0.053, unit="drop of throughput", kind="simulated", target="<= 0.07")
REASONS = {
    POOL.name: "adapters take blocks of the KV pool; the static split to compare with is not built",
    PARALLEL.name: "waits for the cluster work (tensor parallel ranks)",
    CURVE.name: SIMULATOR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs."""

    num_requests: int
    num_rounds: int


SIZES: dict[Scale, Size] = {"quick": Size(num_requests=96, num_rounds=3), "full": Size(num_requests=384, num_rounds=5)}
NewRig = Callable[..., LoraRig]
Kernel = Callable[[int, int, Sequence[int]], tuple[float, float]]


class SLora:
    """The experiment.

    Args:
        new_rig: serves; tests bring one without a model.
        kernel: seconds of our kernel and of padded products.
    """

    claims = (*(judged.claim for judged in JUDGED), POOL, PARALLEL, CURVE)

    def __init__(self, new_rig: NewRig = LoraRig, kernel: Kernel = kernel_seconds) -> None:
        self._new_rig, self._kernel = new_rig, kernel

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        size = SIZES[scale]
        results = [*self._many(size, scale), self._overhead(size, scale), self._kernels(scale)]
        return [*results, *(pending(name, why) for name, why in REASONS.items())]

    def _many(self, size: Size, scale: Scale) -> list[ClaimResult]:
        """5, 100 and 1,000 adapters in turn, and 100 merged one after the other."""
        rig = self._new_rig(1000)
        try:
            loads = {count: zipf_requests(size.num_requests, count, seed=7) for count in (5, 100, 1000)}
            rig.serve(loads[5])
            seconds: dict[str, list[float]] = {"5": [], "100": [], "1000": [], "swap": []}
            for _ in range(size.num_rounds):
                for count, requests in loads.items():
                    seconds[str(count)].append(rig.serve(requests))
                seconds["swap"].append(rig.serve_swapping(loads[100]))
        finally:
            rig.close()
        tokens = sum(each.output_tokens for each in loads[5])
        rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
        distinct = {count: len({each.adapter for each in requests}) for count, requests in loads.items()}
        note = ", ".join(f"{name}: {rate:.0f} tokens/s" for name, rate in rates.items())
        used = f"of 1,000 adapters {distinct[1000]} were asked for, of 100 {distinct[100]}; {note}"
        return [
            FLAT.judge(rates["1000"] / rates["5"], used, scale),
            SWAPPING.judge(
                rates["100"] / rates["swap"], f"all requests of an adapter together, then the next; {used}", scale
            ),
        ]

    def _overhead(self, size: Size, scale: Scale) -> ClaimResult:
        rig = self._new_rig(1, rank=16)
        try:
            requests = zipf_requests(size.num_requests, 1, seed=9)
            base = [replace(each, adapter=None) for each in requests]
            rig.serve(base)
            pairs = [(rig.serve(base), rig.serve(requests)) for _ in range(size.num_rounds)]
        finally:
            rig.close()
        share = 1 - statistics.median(plain / adapted for plain, adapted in pairs)
        return OVERHEAD.judge(share, "hidden size 512: rank 16 adds 6 % of the multiply-adds of q, k, v and o", scale)

    def _kernels(self, scale: Scale) -> ClaimResult:
        ours_s, padded_s = self._kernel(32, 512, RANKS)
        return KERNEL.judge(
            padded_s / ours_s, f"{1e6 * ours_s:.0f} us against {1e6 * padded_s:.0f} us per matrix, fp32", scale
        )


@EXPERIMENTS.register("s-lora")
def build() -> SLora:
    """The experiment on this machine."""
    return SLora()
