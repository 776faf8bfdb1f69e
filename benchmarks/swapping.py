# SPDX-License-Identifier: Apache-2.0
"""What memory pressure costs: the same requests with room for all, and with a quarter of it under swapping and under recomputing.

``python -m benchmarks.swapping [--rounds 5] [--output FILE]``: a model of 26M random parameters, 64 requests at once, 200 to 400 prompt and
100 to 200 output tokens that share nothing. The three engines take turns; texts must be the same. ``ratio`` is tokens/s over the roomy
engine's.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.catalog.batch_rig import BatchRig, JobShape, make_job, working_set_tokens
from ziggurat.catalog.engine_rig import LLAMA_26M

SHAPE = JobShape(num_groups=96, degree=1, shared_tokens=(1, 1), own_tokens=(200, 400), output_tokens=(100, 200))
MAX_NUM_SEQS = 64
WAYS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "swap": {"swap_space": "1GiB", "preemption_mode": "auto"},
    "recompute": {"preemption_mode": "recompute"},
}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    prompts = make_job(SHAPE, LLAMA_26M["vocab_size"], seed=1)
    at_once = working_set_tokens(prompts, 0) * MAX_NUM_SEQS // len(prompts)
    rigs = {
        name: BatchRig(LLAMA_26M, 2 * at_once if name == "roomy" else at_once // 4, **more)
        for name, more in WAYS.items()
    }
    runs: dict[str, list[Any]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, rig in rigs.items():
            runs[name].append(rig.run_stream(prompts, max_num_seqs=MAX_NUM_SEQS))
    texts = runs["roomy"][0].texts
    rows = []
    for name, rig in rigs.items():
        rates = [run.tokens_per_s for run in runs[name]]
        ratios = [run.tokens_per_s / base.tokens_per_s for run, base in zip(runs[name], runs["roomy"], strict=True)]
        counters = rig.counters
        rows.append(
            {
                "engine": name,
                "pool_tokens": rig.pool_blocks * 16,
                "tokens_per_s": round(statistics.median(rates), 1),
                "ratio": round(statistics.median(ratios), 3),
                "is_identical": all(run.texts == texts for run in runs[name]),
                "preemptions": counters.preemptions // args.rounds,
                "recomputed_tokens": counters.recomputed_tokens // args.rounds,
                "swapped_out_tokens": counters.swapped_out_tokens // args.rounds,
                "swapped_in_tokens": counters.swapped_in_tokens // args.rounds,
            }
        )
    for rig in rigs.values():
        rig.close()
    publish("python -m benchmarks.swapping", args.output, rounds=args.rounds, rows=rows)


if __name__ == "__main__":
    main()
